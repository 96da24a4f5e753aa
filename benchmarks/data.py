"""The input streams beside a torch DataLoader with webdataset and Pillow: images a second.

python -m benchmarks.data --coco=DIR [--rounds=5] [--images=2000] [--report=FILE]
python -m benchmarks.data --coco=DIR --memory=200000 [--report=FILE]

DIR holds images/ of jpg files and instances.json in COCO's formats. The same files, as they are, go
into a tar for webdataset and through data.prepare for this project's streams; both give uint8
batches. At 224 and 448 px a random crop and flip; at 1024 px the longest side resized and padded,
here with 32 prompts an image. Every round runs each once, in turn, with one and with two worker
processes, for as many batches each; medians are compared. With --memory: how much the process and
its workers hold while so many images go through the 224-px stream. Needs the extra `oracle`.
"""

import argparse
import contextlib
import functools
import itertools
import math
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from samclip_jax.data import pipeline, prepare
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.errors import command
from samclip_jax.metrics import write_json
from samclip_jax.paths import existing, output_file

COPIES = 8  # of every photograph: Grain shuffles few records more slowly than many
BATCH = {224: 64, 448: 16, 1024: 4}
STREAMS = {
    224: pipeline.ClipStream(BATCH[224], resolutions=(224,)),
    448: pipeline.ClipStream(BATCH[448], resolutions=(448,), base_resolution=448),
    1024: pipeline.SamStream(BATCH[1024]),
}


def write_sets(coco, folder):
    """{resolution: (prepared set, tar)} of the photographs under coco/images."""
    with tarfile.open(folder / "images.tar", "w") as tar:
        for copy in range(COPIES):
            for path in sorted((coco / "images").iterdir()):
                tar.add(path, f"{copy}-{path.name}")
    one = functools.partial(prepare.run, workers=1)
    prepare.prepare("tar", folder / "images.tar", folder / "clip", Options(), one)
    images = str(coco / "images")
    prepare.prepare("coco", coco / "instances.json", folder / "sam", Options(), one, images=images)
    clip, sam = folder / "clip", folder / "sam"
    return {224: clip, 448: clip, 1024: sam}, folder / "images.tar"


def ours(path, resolution, workers):
    """An endless iterator of batches, which `close` ends."""
    source = make_source("prepared", path=path)
    return pipeline.stream(source, STREAMS[resolution], seed=0, workers=workers)


def random_resized_crop(image, size):
    """As torchvision has it: Pillow's own decoding, cropping and resizing."""
    rng = np.random.default_rng()
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.9, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
            break
    else:
        w, h, x, y = width, height, 0, 0
    image = image.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def resize_and_pad(image, size):
    scale = size / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    padded = Image.new("RGB", (size, size))
    padded.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    return padded


def peer(tar, resolution, workers):
    """The same by torch's DataLoader and webdataset; each worker reads the whole tar."""
    import torch
    import webdataset

    view = resize_and_pad if resolution == 1024 else random_resized_crop
    images = (
        webdataset.WebDataset([str(tar)] * max(1, workers), shardshuffle=False)
        .shuffle(100)
        .decode("pil")
        .to_tuple("jpg")
        .map(lambda sample: torch.from_numpy(np.array(view(sample[0], resolution))))
        .repeat()
    )
    loader = torch.utils.data.DataLoader(images, BATCH[resolution], num_workers=workers)
    batches = iter(loader)
    batches.close = getattr(batches, "_shutdown_workers", lambda: None)
    return batches


def rate(batches, resolution, images):
    """Images a second, once the workers are warm."""
    size = BATCH[resolution]
    with contextlib.closing(batches):
        for _ in range(4):
            next(batches)
        began = time.monotonic()
        for _ in range(images // size):
            next(batches)
        return images // size * size / (time.monotonic() - began)


def resident(process):
    """MB that a process holds for itself and shares, from /proc."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def children(process):
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def memory(path, images, report):
    """Prints, twenty times while images go by, what this process and its workers hold."""
    size, held = BATCH[224], []
    with contextlib.closing(ours(path, 224, workers=2)) as batches:
        for number in itertools.count(1):
            next(batches)
            if number % max(1, images // size // 20) == 0:
                parts = [resident(each) for each in (os.getpid(), *children(os.getpid()))]
                held.append([number * size, round(sum(parts))])
                print(f"{number * size:,} images: {held[-1][1]} MB", flush=True)
            if number * size >= images:
                break
    if report:
        write_json(report, {"images, MB": held})


@command
def main():
    parser = argparse.ArgumentParser(prog="data", description=__doc__.split("\n")[0])
    parser.add_argument("--coco", type=existing, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000, help="a run at 224 px")
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--report", type=output_file)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets, tar = write_sets(options.coco, Path(folder))
        if options.memory:
            memory(sets[224], options.memory, options.report)
            return
        rates = {}
        for turn in range(options.rounds):
            for resolution, workers in itertools.product(BATCH, (1, 2)):
                images = options.images * BATCH[resolution] // BATCH[224]
                row = rates.setdefault(f"{resolution} px, workers: {workers}", {})
                for name, made in {
                    "samclip_jax": (ours, sets[resolution]),
                    "webdataset": (peer, tar),
                }.items():
                    open_stream, path = made
                    batches = open_stream(path, resolution, workers)
                    row.setdefault(name, []).append(rate(batches, resolution, images))
            print(f"round {turn + 1}/{options.rounds}", flush=True)
    print("\n| | samclip_jax | webdataset | ratio |\n|---|---|---|---|")
    for name, row in rates.items():
        medians = [statistics.median(row[key]) for key in ("samclip_jax", "webdataset")]
        print(f"| {name} | {medians[0]:.0f} | {medians[1]:.0f} | {medians[0] / medians[1]:.2f} |")
    if options.report:
        write_json(options.report, rates)


if __name__ == "__main__":
    main()
