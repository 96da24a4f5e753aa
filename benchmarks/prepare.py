"""How fast data.prepare is, and what that makes of the paper's sets: disk, hours and hosts.

python -m benchmarks.prepare --coco=DIR [--images=1000] [--report=FILE]

DIR holds images/ of jpg files and instances.json in COCO's formats. Of them are made tars as
img2dataset's, the files as they are, and as SA-1B's: 2250 x 1500 px, each with 100 masks. Each is
prepared by one process; what the paper trains on is counted from the rate. Images that a --fraction
leaves out are found in the tars, not read.
"""

import argparse
import functools
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from samclip_jax.data import prepare
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.errors import command
from samclip_jax.metrics import write_json
from samclip_jax.paths import existing, output_file

CORES = 96  # of the host that hours are counted for
SIZE, MASKS = (1500, 2250), 100  # of an image of SA-1B
SETS = {  # the paper's (4.1): kind, images in the source, options
    "D_CLIP as it is": ("tar", 40.6e6, Options()),
    "D_CLIP, --shortest=512": ("tar", 40.6e6, Options(shortest=512)),
    "D_CLIP, --shortest=256": ("tar", 40.6e6, Options(shortest=256)),
    "D_SAM, --longest=1024": ("sa1b", 0.63e6, Options(longest=1024)),
    "D_SAM, --longest=1024 --masks": ("sa1b", 0.63e6, Options(longest=1024, masks=True)),
}


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tars(coco, folder, images):
    """{kind: folder of tars} with `images` of the web's and a tenth as many of SA-1B's."""
    source = make_source(
        "coco_instances", annotations=coco / "instances.json", images=coco / "images"
    )
    photographs = [source[i] for i in range(len(source))]
    files = sorted((coco / "images").iterdir())
    for kind in ("tar", "sa1b"):
        (folder / kind).mkdir()
    with tarfile.open(folder / "tar/00000.tar", "w") as tar:
        for i in range(images):
            add(tar, f"{i:09d}.jpg", files[i % len(files)].read_bytes())
    with tarfile.open(folder / "sa1b/sa_000000.tar", "w") as tar:
        for i in range(max(1, images // 10)):
            image, annotations = as_in_sa1b(photographs[i % len(photographs)])
            add(tar, f"sa_{i}.jpg", image)
            add(tar, f"sa_{i}.json", annotations)
    return {kind: folder / kind for kind in ("tar", "sa1b")}


def as_in_sa1b(record):
    """A photograph enlarged, as jpg, and its masks as json, each as often as makes MASKS."""
    height, width = SIZE
    file = io.BytesIO()
    Image.fromarray(np.asarray(record["image"])).resize((width, height)).save(file, "JPEG")
    masks = [np.uint8(np.asarray(each["mask"])) for each in record["annotations"]]
    masks = [np.array(Image.fromarray(mask).resize((width, height), 0)) for mask in masks]
    runs = [rle.encode(np.asfortranarray(mask)) for mask in masks if mask.any()]
    found = []
    for i in range(MASKS if runs else 0):
        each = runs[i % len(runs)]
        box = rle.toBbox(each).tolist()
        segmentation = {"size": SIZE, "counts": each["counts"].decode()}
        point = [[box[0] + box[2] / 2, box[1] + box[3] / 2]]
        found.append({"bbox": box, "segmentation": segmentation, "point_coords": point})
    image = {"height": height, "width": width}
    return file.getvalue(), json.dumps({"image": image, "annotations": found}).encode()


@command
def main():
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__.split("\n")[0])
    parser.add_argument("--coco", type=existing, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--report", type=output_file)
    arguments = parser.parse_args()
    rows, one = {}, functools.partial(prepare.run, workers=1)
    with tempfile.TemporaryDirectory() as folder:
        tars = write_tars(arguments.coco, Path(folder), arguments.images)
        for name, (kind, images, options) in SETS.items():
            output = Path(folder) / "out" / name
            began = time.monotonic()
            made = prepare.prepare(kind, tars[kind], output, options, one)
            each = (time.monotonic() - began) / made["inputs"]
            size = sum(shard["bytes"] for shard in made["shards"]) / made["records"]
            rows[name] = {
                "images a second and core": 1 / each,
                "kB an image": size / 1e3,
                "TB": images * size / 1e12,
                f"hours on {CORES} cores": images * each / 3600 / CORES,
            }
    columns = next(iter(rows.values()))
    print("\n| | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")
    if arguments.report:
        write_json(arguments.report, rows)


if __name__ == "__main__":
    main()
