"""Stage 2 at the paper's batch on TPU pods, compiled and not run: memory, operations, time.

python -m benchmarks.pod [NAME ...] [--report=FILE]

3,072 CLIP images at 224 px or 768 at 448 with a ViT-L/14 teacher, 32 SAM images with 32 prompts
each, the whole step as trained, each CLIP resolution a program. Needs the libtpu package and no
TPU; a row takes some minutes on two cores. NAMEs: rows of the table, all by default.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from configs import stage2
from samclip_jax.compile_only import compile_only
from samclip_jax.errors import UserError, command
from samclip_jax.families import to_dict
from samclip_jax.metrics import write_json
from samclip_jax.models.config import ImageEncoderConfig, SamConfig
from samclip_jax.paths import output_file

VIT_H = ImageEncoderConfig(width=1280, depth=32, heads=16, mlp_width=5120)
ROWS = {  # name: (topology, encoder, changes to configs/stage2.py)
    "v5e-8": ("v5e:2x4", None, {"fsdp": 8, "micro_batches": 4}),
    "v5e-32": ("v5e:4x8", None, {"fsdp": 8}),
    "v5e-64": ("v5e:8x8", None, {"fsdp": 8}),
    "v5e-64, no remat": ("v5e:8x8", None, {"fsdp": 8, "remat": False}),
    "v5e-256": ("v5e:16x16", None, {"fsdp": 8}),
    "v5p-64": ("v5p:4x4x4", None, {"fsdp": 8}),
    "v6e-64": ("v6e:8x8", None, {"fsdp": 8}),
    "v5p-64, ViT-H": ("v5p:4x4x4", VIT_H, {"fsdp": 8}),
    "v5e-64, ViT-H": ("v5e:8x8", VIT_H, {"fsdp": 16, "micro_batches": 2}),
}


HEADER = """
| | GB a chip | operations / ideal | ms compute / memory / links | roofline / ideal | ms | stage 2 \
| compiled, s |
|---|---|---|---|---|---|---|---|"""


def experiment(encoder, changes, folder):
    """configs/stage2.py, with another SAM and with changes."""
    config = stage2.get_config()
    if encoder:
        sam = {"config": to_dict(SamConfig(encoder)), "source": None}
        (folder / "model.json").write_text(json.dumps(sam))
        config.init = config.teachers.sam = str(folder)
    config.fsdp = changes["fsdp"]
    config.remat = changes.get("remat", config.remat)
    for stream in config.streams.values():
        stream.micro_batches = changes.get("micro_batches", stream.micro_batches)
    return config


def row(name, report):
    """A line of the table in docs/tpu.md."""
    if not report["fits"]:
        return f"| {name} | {report['hbm_bytes_per_device'] / 1e9:.1f}, does not fit | | | | | | |"
    operations = [p["flops_per_device"] / p["ideal_flops_per_device"] for p in report["programs"]]
    over = [p["roofline_seconds"] / p["ideal_seconds"] for p in report["programs"]]
    times = " / ".join(
        f"{1e3 * sum(p['seconds'][part] for p in report['programs']) / len(over):.0f}"
        for part in report["programs"][0]["seconds"]
    )
    return (
        f"| {name} | {report['hbm_bytes_per_device'] / 1e9:.1f} of "
        f"{report['hbm_limit_bytes'] / 1e9:.0f} | {max(operations):.2f} | {times} | "
        f"{max(over):.2f} | {1e3 * report['roofline_seconds']:.0f} | {report['hours']:,.0f} h, "
        f"{report['chip_hours']:,.0f} chip-hours | {report['compile_seconds']:.0f} |"
    )


@command
def main():
    parser = argparse.ArgumentParser(prog="pod", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in ROWS]:
        raise UserError(f"no row {unknown[0]!r}; they are {', '.join(ROWS)}")
    report = {}
    for name in options.names or ROWS:
        topology, encoder, changes = ROWS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            config = experiment(encoder, changes, Path(folder))
            try:
                compile_only(config, topology, path)
            except UserError as error:  # too large, the report says so too; or a mistake
                if not path.exists():
                    raise
                print(f"{name}: {error}", flush=True)
            report[name] = json.loads(path.read_text()) | {"changes": changes}
            if encoder:
                report[name]["encoder"] = dataclasses.asdict(encoder)
        if options.report:
            write_json(options.report, report)
    print(HEADER)
    print("\n".join(row(*item) for item in report.items()))


if __name__ == "__main__":
    main()
