"""Images a second of each evaluation beside those of the bare encoder, on all devices here.

python -m benchmarks.evaluation [--checkpoint=runs/demo/stage3] [--images=256] [--rounds=3]

The same scenes of the demo's world for all, drawn before. Every round evaluates and encodes in
turn; medians are compared. Bare is the encoder pass, and the CLIP head's where texts need it, over
batches that lie ready, each awaited.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from samclip_jax.data import transforms
from samclip_jax.data.shapes import TEMPLATES
from samclip_jax.data.sources import make_source
from samclip_jax.errors import command
from samclip_jax.evals import EVALUATORS, results
from samclip_jax.inference.model import load

OPTIONS = {  # of the evaluators; image_size, px, where it is not the encoder's
    "zero_shot_classification": dict(templates=TEMPLATES, image_size=96),
    "zero_shot_segmentation": dict(templates=TEMPLATES, image_size=192),
    "refined_segmentation": dict(templates=TEMPLATES),
    "box_masks": {},
    "instance_segmentation": {},
}
ROWS = 4  # images that a device takes at once


def bare(model, task, images):
    """Seconds of the model alone on uint8 [N, S, S, 3]."""
    sizes = np.full((ROWS * model.device_count, 2), images.shape[1])

    def encode_frames(batch):
        encoded = model.encode_frames(batch, sizes[: len(batch)])
        if "segmentation" in task:
            model.head(encoded.tokens)
        jax.block_until_ready(encoded)

    texts = {
        "zero_shot_classification": model.encode_crops,
        "zero_shot_segmentation": model.patch_embeddings,
    }
    encode = texts.get(task, encode_frames)
    began = time.monotonic()
    for first in range(0, len(images), ROWS * model.device_count):
        encode(images[first : first + ROWS * model.device_count])
    return time.monotonic() - began


def evaluated(model, task, source):
    """Seconds of the evaluation."""
    began = time.monotonic()
    results(EVALUATORS[task](model, source, batch_size=ROWS, **OPTIONS[task]))
    return time.monotonic() - began


@command
def main():
    parser = argparse.ArgumentParser(prog="evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="runs/demo/stage3")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = load(options.checkpoint, devices=jax.local_devices())
    kinds = {"split": "tuning", "size": options.images, "image_size": 192, "keep": True}
    objects, scenes = (make_source(name=f"shape_{kind}", **kinds) for kind in ("objects", "scenes"))
    print("| task | images a second | bare | share |", "|---|---|---|---|", sep="\n", flush=True)
    for task, given in OPTIONS.items():
        source = objects if task == "zero_shot_classification" else scenes
        side = given.get("image_size", model.encoder.image_size)
        pictures = (source[i]["image"] for i in range(options.images))
        images = np.stack([transforms.resize(x, side, side, transforms.BICUBIC) for x in pictures])
        seconds = [
            (evaluated(model, task, source), bare(model, task, images))
            for _ in range(options.rounds + 1)  # the first compiles
        ][1:]
        whole, alone = (
            options.images / statistics.median(column) for column in zip(*seconds, strict=True)
        )
        print(f"| {task} | {whole:.1f} | {alone:.1f} | {whole / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
