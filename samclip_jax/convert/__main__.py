"""Converts weights: released SAM and CLIP to our checkpoints, our models to SAM's layouts.

python -m samclip_jax.convert import SOURCE OUTPUT [--tokenizer=PATH] [--quick_gelu]
python -m samclip_jax.convert export CHECKPOINT OUTPUT --layout segment_anything|huggingface
"""

import argparse

import jax

from samclip_jax import checkpoint, families, models
from samclip_jax.convert.apply import import_weights
from samclip_jax.convert.export import export_weights
from samclip_jax.errors import UserError, command, program


@command
def main(arguments=None):
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be in use
    options = _parser().parse_args(arguments)
    {"import": _import, "export": _export}[options.command](options)


def _import(options):
    output = checkpoint.require_new(options.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} exists and is not a checkpoint: choose another directory.")
    imported = import_weights(options.source, options.quick_gelu, options.tokenizer)
    config, params, tokenizer, source = imported
    size = sum(array.nbytes for array in params.values())
    print(f"Writing {output}, {1e-9 * size:.2f} GB.", flush=True)
    checkpoint.save_model(output, config, params, tokenizer, source)
    rows = [
        ("model", families.of(config).release.size_name(config)),
        ("parameters", f"{models.count(params):,}"),
    ]
    rows += [("assumed", value) for value in source["assumed"]]
    rows += [("source", source["name"]), ("sha256", source["sha256"]), ("checkpoint", output)]
    print("\n".join(f"{name:<12}{value}" for name, value in rows))


def _export(options):
    left_out = export_weights(options.checkpoint, options.output, options.layout)
    print(f"{options.output} is written in the layout of {options.layout}.")
    if left_out:
        parts = ", ".join(sorted({name.split("/")[0] for name in left_out}))
        print(f"Not in that layout: {parts}; {models.count(left_out):,} parameters.")


def _parser():
    parser = argparse.ArgumentParser(prog=program(), description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("import", help="released weights to a checkpoint")
    add.add_argument("source", help="weight file, or the folder it was downloaded to")
    add.add_argument("output", help="directory of the new checkpoint")
    add.add_argument(
        "--tokenizer",
        help="CLIP's tokenizer.json, a folder with vocab.json and merges.txt, or OpenCLIP's "
        "bpe_simple_vocab_16e6.txt.gz; default: beside the weights",
    )
    add.add_argument(
        "--quick_gelu",
        action=argparse.BooleanOptionalAction,
        help="CLIP's activation; default: as the files beside the weights say",
    )
    add = commands.add_parser("export", help="a checkpoint's SAM as other projects read it")
    add.add_argument("checkpoint", help="checkpoint or training workdir")
    add.add_argument("output", help="file (segment_anything) or folder (huggingface) to write")
    add.add_argument("--layout", choices=("segment_anything", "huggingface"), required=True)
    return parser


if __name__ == "__main__":
    main()
