"""The image encoder at 1024 px beside the PyTorch originals, on this machine's CPU.

python -m benchmarks.encoder [--rounds=5] [--report=FILE]       (needs the extra `oracle`)

SAM ViT-B, float32, the same random weights for all: this encoder, segment_anything's, and that of
transformers' SamModel. Every round runs each once, in turn; medians are compared.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from samclip_jax import models
from samclip_jax.errors import command
from samclip_jax.metrics import write_json
from samclip_jax.models.config import SamConfig

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the originals as the tests have them


def encoders(config):
    """{name: function of an image [1, 3, S, S] -> embedding [1, C, S/16, S/16], all numpy}."""
    import originals
    import torch
    from parity import converted

    original = originals.randomise(originals.sam(config))
    hugging_face = originals.randomise(originals.huggingface_sam(config)).vision_encoder
    weights = {name: value.numpy() for name, value in original.state_dict().items()}
    graph, _ = models.split(models.abstract(config))
    params = jax.device_put(converted(config, weights))
    ours = jax.jit(lambda params, x: models.merge(graph, params).encoder(x).embedding)

    def torch_encoder(run):
        def encode(image):
            with torch.no_grad():
                return run(torch.from_numpy(image)).numpy()

        return encode

    return {
        "samclip_jax": lambda x: np.asarray(ours(params, x.transpose(0, 2, 3, 1))).transpose(
            0, 3, 1, 2
        ),
        "segment_anything": torch_encoder(original.image_encoder),
        "transformers": torch_encoder(lambda x: hugging_face(x).last_hidden_state),
    }


@command
def main():
    parser = argparse.ArgumentParser(prog="encoder", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    config = SamConfig()
    size = config.encoder.image_size
    image = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    runs = encoders(config)
    answers, began = {}, time.monotonic()
    for name, run in runs.items():  # compiled, and warm
        answers[name] = run(image)
    reference = answers["segment_anything"]
    error = np.abs(answers["samclip_jax"] - reference).max() / np.abs(reference).max()
    print(f"ready in {time.monotonic() - began:.0f} s; error {error:.1e}", flush=True)
    seconds = {name: [] for name in runs}
    for turn in range(given.rounds):
        for name, run in runs.items():
            began = time.monotonic()
            run(image)
            seconds[name].append(time.monotonic() - began)
        last = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"round {turn + 1}/{given.rounds}: {last}", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("\n| encoder | median, s | over segment_anything's |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / medians['segment_anything']:.2f} |")
    if given.report:
        report = {"seconds": seconds, "medians": medians, "error": float(error)}
        write_json(given.report, report)


if __name__ == "__main__":
    main()
