"""Data sets as they are released, cut into units that can be prepared one by one.

A kind makes, of a source, what has `units`, (name, what to read, its fingerprint) in an order that
does not depend on the machine, and `read(what, damaged, wanted)`, which gives the inputs of one, if
their keys are wanted, and appends to `damaged` what is wrong with the unit itself. `classes` are
those it knows, in their order, None where the labels that are found are all. An input is an image
with what belongs to it.
"""

import dataclasses
import json
import os
import pathlib
import zlib

import numpy as np

from samclip_jax.data.coco import CocoInstances
from samclip_jax.data.decode import BadRecord, line, read_file
from samclip_jax.data.files import ImageFolder
from samclip_jax.errors import UserError

FILES = 4096  # of a folder, COCO or TFDS in one unit, or a 64th of them, but no fewer than 256


@dataclasses.dataclass
class Input:
    """An image file's bytes and, where the source has them, what is known of the image.

    annotations: entries in COCO's format, or SA-1B's; categories: {id as text: name} of them, None
    where they have none. semantic: int [H, W], index into the kind's classes, -1 without a class;
    dropped: what annotations.usable left out of it. size: height and width in px of the image that
    these were made for. error: the BadRecord that came instead of the bytes.
    """

    key: str
    image: bytes = b""
    label: str | None = None
    captions: list | None = None
    annotations: list | None = None
    categories: dict | None = None
    dropped: list = dataclasses.field(default_factory=list)
    semantic: np.ndarray | None = None
    size: tuple | None = None
    error: BadRecord | None = None


class Kind:
    """The least that a kind has. dropped: (image, annotation, reason, detail) of the annotations
    that belong to no input."""

    classes = None
    dropped = ()


class Listed(Kind):
    """Image files that are known by name.

    items: [(path under `root`, what is known of the image)], where are, if at all, "key", else the
    path is it, "label", "captions", "annotations" with the "size" they were made for, "error", why
    it cannot be used, and "map", what `semantic` makes an Input's semantic and dropped of.
    """

    def __init__(self, root, items, classes=None, semantic=None, categories=None, dropped=()):
        self.root, self.items = root, items
        self.classes, self.semantic = classes, semantic
        self.categories, self.dropped = categories, dropped

    def __getstate__(self):  # a worker is sent its unit, not all of them
        return self.__dict__ | {"items": None, "dropped": ()}

    def units(self):
        return _in_units(self.items)

    def read(self, items, damaged, wanted):
        for name, known in items:
            entry = Input(known.get("key") or pathlib.Path(name).as_posix())
            if not wanted(entry.key):
                continue
            entry.label, entry.captions = known.get("label"), known.get("captions")
            entry.annotations, entry.size = known.get("annotations"), known.get("size")
            entry.categories = self.categories
            if known.get("error"):
                entry.error = BadRecord("bad_annotation", known["error"])
            elif "map" in known:
                try:
                    entry.semantic, entry.dropped = self.semantic(known["map"])
                    entry.size = entry.semantic.shape
                except BadRecord as error:
                    entry.error = error
            yield entry if entry.error else _from_file(entry, self.root / name)


def folder(source, labels=False):
    """Images under a folder. labels: its sub-folders are their classes."""
    images = ImageFolder(source, labels)
    if not labels:
        return Listed(images.path, [(name, {}) for name in images.files])
    known = {name: {"label": name} for name in images.classes}
    items = [(name, known[name.split(os.sep)[0]]) for name in images.files]
    return Listed(images.path, items, images.classes)


def coco(source, images):
    """COCO's instances, or LVIS'; the image files lie in the folder `images`."""
    instances = CocoInstances(source, images)
    items = [(image["key"], image) for image in instances.images]
    extra = {"categories": instances.categories, "dropped": instances.dropped}
    return Listed(instances.folder, items, instances.classes, **extra)


class Tfds(Kind):
    """A split of a data set of tensorflow_datasets, with images and, perhaps, a label.

    It lies in the folder that TFDS_DATA_DIR names, or is made there by TFDS.
    """

    def __init__(self, source, split="train"):
        self.source, self.split = source, split
        images = self._open()
        info = images.dataset_info
        if "image" not in info.features:
            raise UserError(f"{source} has no 'image', only {', '.join(info.features)}")
        label = info.features["label"] if "label" in info.features else None
        self.classes = getattr(label, "names", None)  # a ClassLabel has them
        self.length, self.prefix = len(images), f"{info.full_name}/{split}"

    def units(self):
        return _in_units(range(self.length), of=self.prefix)

    def read(self, indices, damaged, wanted):
        images = self._open()
        for index in indices:
            entry = Input(f"{self.prefix}/{index}")
            if not wanted(entry.key):
                continue
            try:
                example = images[index]
            except Exception as error:  # every data set's own
                if isinstance(error, RuntimeError) and " failed: " in str(error):  # the storage's
                    raise UserError(
                        f"{entry.key} was not read: {line(error)}; run the same again when its "
                        "storage answers"
                    ) from None
                entry.error = BadRecord("truncated", line(error))
            else:
                entry.image = example["image"]
                if self.classes and example["label"] >= 0:  # -1: a split without labels
                    entry.label = self.classes[example["label"]]
            yield entry

    def _open(self):
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise UserError("tfds needs: pip install -e .[tfds]") from None
        try:
            raw = {"image": tfds.decode.SkipDecoding()}
            return tfds.data_source(self.source, split=self.split, decoders=raw)
        except ImportError as error:
            raise UserError(
                f"TFDS has yet to make {self.source!r}, and needs more for it ({error}): pip "
                "install -e .[tfds]"
            ) from None
        except Exception as error:  # of its own kinds, and of every data set's own
            if "TFRECORD" in str(error):
                raise UserError(
                    f"TFDS has {self.source!r} as tfrecord, which cannot be read at random; set "
                    "TFDS_DATA_DIR to another folder, where it is made as array_record."
                ) from None
            raise UserError(
                f"TFDS gives no {self.split!r} of {self.source!r}: {line(error)}"
            ) from None


KINDS = {
    "folder": folder,
    "coco": coco,
    "tfds": Tfds,
}


def _from_file(entry, path):
    try:
        entry.image = read_file(path)
    except BadRecord as error:
        entry.error = error
    return entry


def _in_units(items, of=""):
    """Units of items, told apart by what is in them."""
    count = min(FILES, max(256, len(items) // 64))
    for first in range(0, len(items), count):
        part = list(items[first : first + count])
        yield f"{first // count:05d}", part, zlib.crc32((of + json.dumps(part)).encode())
