"""The image encoder at 1024 px beside the PyTorch originals, on this machine's CPU or GPU.

python -m benchmarks.encoder [--dtype=float32] [--batch=1] [--rounds=5] [--report=FILE]

SAM ViT-B, the same random weights for all: this encoder, segment_anything's, and that of
transformers' SamModel. Every round runs each once, in turn; medians are compared. Needs the extra
`oracle`, and on a GPU a PyTorch and a jax that use it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from samclip_jax import families, models, sharding
from samclip_jax.errors import command
from samclip_jax.metrics import write_json
from samclip_jax.models.config import SamConfig
from samclip_jax.paths import output_file

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the originals as the tests have them


def encoders(config, images, dtype):
    """{name: (function that encodes, function of its answer -> numpy [B, C, S/16, S/16])}

    images: float32 [B, 3, S, S]. A function returns when the answer is there, on the device.
    """
    import originals
    import torch
    from parity import converted

    original = originals.randomise(originals.sam(config))
    hugging_face = originals.randomise(originals.huggingface_sam(config)).vision_encoder
    weights = {name: value.numpy() for name, value in original.state_dict().items()}
    graph, _ = models.split(families.abstract(config))
    params = {
        name: jax.device_put(x.astype(dtype)) for name, x in converted(config, weights).items()
    }

    def encode(params, images):
        with sharding.one_device():
            return models.merge(graph, params).encoder(images).embedding

    ours = jax.jit(encode)
    on_gpu = jax.default_backend() == "gpu"
    place = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, dtype)}
    ours_images = jax.device_put(images.transpose(0, 2, 3, 1).astype(dtype))
    torch_images = torch.from_numpy(images).to(**place)

    def torch_encoder(module, read):
        module.to(**place)

        def encode():
            with torch.no_grad():
                answer = read(module(torch_images))
            if on_gpu:
                torch.cuda.synchronize()
            return answer

        return encode, lambda answer: answer.float().cpu().numpy()

    return {
        "samclip_jax": (
            lambda: jax.block_until_ready(ours(params, ours_images)),
            lambda answer: np.asarray(answer, np.float32).transpose(0, 3, 1, 2),
        ),
        "segment_anything": torch_encoder(original.image_encoder, lambda x: x),
        "transformers": torch_encoder(hugging_face, lambda x: x.last_hidden_state),
    }


@command
def main():
    parser = argparse.ArgumentParser(prog="encoder", description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    config = SamConfig()
    size = config.encoder.image_size
    images = np.random.default_rng(0).standard_normal((options.batch, 3, size, size), np.float32)
    runs = encoders(config, images, options.dtype)
    began = time.monotonic()
    answers = {name: read(encode()) for name, (encode, read) in runs.items()}  # compiled, and warm
    reference = answers["segment_anything"]
    error = np.abs(answers["samclip_jax"] - reference).max() / np.abs(reference).max()
    print(f"ready in {time.monotonic() - began:.0f} s; error {error:.1e}", flush=True)
    seconds = {name: [] for name in runs}
    for turn in range(options.rounds):
        for name, (encode, _) in runs.items():
            began = time.monotonic()
            encode()
            seconds[name].append(time.monotonic() - began)
        last = ", ".join(f"{name} {values[-1]:.4g} s" for name, values in seconds.items())
        print(f"round {turn + 1}/{options.rounds}: {last}", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("\n| encoder | median, s | over segment_anything's |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.4g} | {median / medians['segment_anything']:.2f} |")
    if options.report:
        report = {"seconds": seconds, "medians": medians, "error": float(error)}
        write_json(options.report, report)


if __name__ == "__main__":
    main()
