"""A prepared record as bytes, and a prepared data set as a directory:

    manifest.json          what was prepared from what, and every shard with its count and checksum
    rejects.jsonl          a line for each input that could not be used: key, reason, detail
    shards/*.array_record  records one after the other, random access

A record is msgpack of {"key": str, "image": bytes of an image file}, and where the source has them
"label": str, "captions": [str], "semantic": bytes of a grey png, 1 + each pixel's index in the
manifest's classes or 0, "annotations": [{"box": [x0, y0, x1, y1], "point": [x, y] or None, "area":
px, "category": str or None, "mask": run lengths or None}] and "size": [h, w] px of the masks.
"""

import hashlib
import json
import pathlib
import uuid

import cv2
import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from samclip_jax.data.annotations import CompressedMask
from samclip_jax.data.decode import open_image

MANIFEST, REJECTS, SHARDS = "manifest.json", "rejects.jsonl", "shards"
SPLITS = ("train", "validation")
NAMES = "surrogateescape"  # files may have names that are no UTF-8


def encode(record):
    """The record as bytes; "semantic", int [h, w] from -1 on, is given as an array."""
    if "semantic" in record:
        pixels = (record["semantic"] + 1).astype(np.uint16)
        pixels = pixels if pixels.max() > 255 else pixels.astype(np.uint8)
        record = record | {"semantic": cv2.imencode(".png", pixels)[1].tobytes()}
    return msgpack.packb(record, unicode_errors=NAMES)


def decode(data):
    """Bytes -> the record as sources have it, "label" still a name. BadRecord if it is damaged."""
    record = msgpack.unpackb(data, unicode_errors=NAMES)
    record["image"] = open_image(record["image"])
    if "semantic" in record:
        pixels = cv2.imdecode(np.frombuffer(record["semantic"], np.uint8), cv2.IMREAD_UNCHANGED)
        record["semantic"] = pixels.astype(np.int32) - 1
    if "annotations" in record:
        size, shape = tuple(record.pop("size")), record["image"].shape[:2]
        record["annotations"] = [_annotation(each, size, shape) for each in record["annotations"]]
    return record


def _annotation(stored, size, shape):
    point, mask = stored["point"], stored["mask"]
    return stored | {
        "box": np.float32(stored["box"]),
        "point": None if point is None else np.float32(point),
        "mask": mask and CompressedMask({"counts": mask, "size": size}, size, shape),
    }


class Shard:
    """An ArrayRecord file being written: `write` bytes, `close`; it appears when it is whole."""

    def __init__(self, path):
        self.path, self.count = path, 0
        self._part = path.with_suffix(f".{uuid.uuid4().hex}.part")  # others may write the same
        self._writer = ArrayRecordWriter(str(self._part), "group_size:1,uncompressed")

    def write(self, data):
        self._writer.write(data)
        self.count += 1

    def close(self):
        """Its entry in the manifest."""
        self._writer.close()
        with open(self._part, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._part.stat().st_size
        self._part.replace(self.path)
        counted = {"records": self.count, "bytes": size, "sha256": checksum}
        return {"name": self.path.name, "split": self.path.name.partition("-")[0], **counted}


def read_shards(paths):
    """A random-access sequence of the bytes in all these files."""
    return ArrayRecordDataSource([str(path) for path in paths])


def read_manifest(folder):
    """The manifest of a prepared directory, None where there is none."""
    path = pathlib.Path(folder) / MANIFEST
    return json.loads(path.read_bytes()) if path.exists() else None
