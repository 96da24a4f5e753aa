"""A prepared record as bytes, and a prepared data set as a directory:

    manifest.json          what was prepared from what, and every shard with its count and checksum
    rejects.jsonl          a line for each input that could not be used: key, reason, detail; and,
                           with its "annotation" too, for each annotation that was left out of one
    shards/*.array_record  records one after the other, random access

A record is msgpack of {"key": str, "image": bytes of an image file}, and where the source has them
"label": str, "captions": [str], "semantic": bytes of a grey png, 1 + each pixel's index in the
manifest's classes or 0, "annotations": [{"box": [x0, y0, x1, y1], "point": [x, y] or None, "area":
px, "category": str or None, "mask": run lengths or None}] and "size": [h, w] px of the masks.
"""

import bisect
import errno
import functools
import hashlib
import json
import operator
import os
import pathlib
import uuid

import cv2
import msgpack
import numpy as np

from samclip_jax.data.annotations import (
    CompressedMask,
    area_of,
    checked,
    cut_box,
    image_size,
    point_of,
    report_dropped,
    usable,
)
from samclip_jax.data.decode import BadRecord, open_image
from samclip_jax.data.storage import retried
from samclip_jax.errors import UserError

try:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
except ModuleNotFoundError:  # it has no build for Windows

    def ArrayRecordReader(*_, **__):
        raise UserError(
            "prepared data sets need the package array-record, which there is for Linux and macOS, "
            "not for Windows: use WSL there."
        )

    ArrayRecordWriter = ArrayRecordReader

MANIFEST, REJECTS, SHARDS = "manifest.json", "rejects.jsonl", "shards"
SPLITS = ("train", "validation")
SHARD_BYTES = 10**9  # of a shard, about: files are few where data are large, and still travel alone
READERS = 128  # open at once in a process, which may have 1,024 files by default, 256 on macOS
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
        with checked():
            size = image_size(dict(zip(("height", "width"), record.pop("size"), strict=True)))
        shape = record["image"].shape[:2]
        read = functools.partial(_annotation, size=size, shape=shape)
        record["annotations"], record["dropped"] = usable(record["annotations"], read)
        report_dropped(record["key"], record["dropped"])
    return record


def _annotation(stored, size, shape):
    box, mask = cut_box(stored["box"], shape), stored["mask"]
    if mask is not None:
        mask = CompressedMask({"counts": mask, "size": size}, size, shape)
    point, area = point_of(stored["point"], shape), area_of(stored["area"], box, mask)
    return stored | {"box": box, "point": point, "mask": mask, "area": area}


class ShardWriter:
    """An ArrayRecord file being written: `write` bytes, `close`; it appears when it is whole."""

    def __init__(self, path):
        self.path, self.count, self.bytes = path, 0, 0
        self._part = path.with_suffix(f".{uuid.uuid4().hex}.part")  # others may write the same
        self._writer = ArrayRecordWriter(str(self._part), "group_size:1,uncompressed")

    def write(self, data):
        self._writer.write(data)
        self.count += 1
        self.bytes += len(data)

    def close(self):
        """Its entry in the manifest."""
        self._writer.close()
        with open(self._part, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._part.stat().st_size
        self._part.replace(self.path)
        counted = {"records": self.count, "bytes": size, "sha256": checksum}
        return {"name": self.path.name, "split": self.path.name.partition("-")[0], **counted}


class Shards:
    """A random-access sequence of the records, bytes, in all shards of `entries` of a manifest.

    Its length is the manifest's. A shard is opened when one of its records is read, and no more
    than READERS of all sequences in a process stay open. Threads may read at once, and pickled it
    is as large as its entries. BadRecord: a record that is damaged. UserError, which names the
    shard: one that is missing, has another count of records, or cannot be read.
    """

    def __init__(self, folder, entries):
        self.files = [(str(folder / entry["name"]), entry["records"]) for entry in entries]
        self.checksums = [entry["sha256"] for entry in entries]
        self.ends = np.cumsum([entry["records"] for entry in entries]).tolist()

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index):
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self.ends, index)
        path, count = self.files[number]
        place = index - self.ends[number] + count
        read = functools.partial(_read, path, self.checksums[number], count, place)
        try:
            return retried(read, path)
        except OSError as error:
            raise UserError(
                f"{path} is not as it was prepared: {error.strerror or error}; copy it again."
            ) from None


@functools.lru_cache(READERS)
def _reader(path, checksum):  # the checksum tells a shard from an earlier one of the same name
    return ArrayRecordReader(path, "readahead_buffer_size:0", file_reader_buffer_size=1 << 15)


def _read(path, checksum, count, place):  # -> bytes
    """A shard's record. OSError with the errno that ArrayRecord has in words only, or without one
    where the shard itself is at fault."""
    opened = False
    try:
        reader = _reader(path, checksum)
        if not reader.ok():
            reader.close()  # which says why
        opened = True
        if reader.num_records() == count:
            return reader.read([place])[0]
    except RuntimeError as error:
        _reader.cache_clear()  # a reader that has failed fails ever after
        reason = str(error)
        if opened and reason.startswith("Corrupted"):
            raise BadRecord("truncated", f"record {place} of {path}: {reason}") from None
        for code in errno.errorcode:
            if f" failed: {os.strerror(code)}" in reason:
                raise OSError(code, os.strerror(code)) from None
        raise OSError(reason) from None
    _reader.cache_clear()  # the shard may be put right
    raise OSError(f"it holds {reader.num_records()} records, the manifest says {count}")


def read_manifest(folder):
    """The manifest of a prepared directory, None where there is none. UserError: it is damaged."""
    path = pathlib.Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        if (
            not isinstance(manifest, dict)
            or not {"shards", "classes", "records"} <= manifest.keys()
        ):
            raise ValueError("it lacks what data.prepare writes there")
    except ValueError as error:
        raise UserError(f"{path} is damaged, prepare the set again: {error}") from None
    return manifest
