"""Annotations and label maps as they are found in the world, dirt included, to arrays."""

import contextlib
import io
import json

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from samclip_jax.data.decode import BadRecord, line, read_file


def label_map(path, values):  # -> int32 [H, W]
    """The index in `values` of each pixel of a grey or palette png, -1 where it is none of them.

    BadRecord where it is missing, damaged or of colours.
    """
    data = read_file(path)
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    except Exception as error:  # readers trip over damaged files in every possible way
        raise BadRecord("bad_annotation", f"{path}: {line(error)}") from None
    if pixels.ndim != 2:
        raise BadRecord("bad_annotation", f"{path} has colours, not classes")
    indices = np.full(1 << 16, -1, np.int32)
    indices[values] = range(len(values))
    return indices[pixels.astype(np.uint16)]


class CompressedMask:
    """COCO polygons or run lengths of an image of `size` that become bool [H, W] when numpy asks
    for the array: of that size or, the nearest pixels, of `shape`."""

    def __init__(self, segmentation, size, shape=None):
        self.segmentation, self.size, self.shape = segmentation, size, shape or size

    def __array__(self, dtype=None, copy=None):
        try:
            counts, (height, width) = self.lengths(), self.size
        except Exception as error:  # pycocotools raises bare Exceptions too
            raise BadRecord("bad_annotation", line(error)) from None
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T
        if self.shape != self.size:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for new, old in zip(self.shape, self.size, strict=True)
            )
            mask = mask[np.ix_(rows, columns)]
        return mask.astype(bool if dtype is None else dtype)

    def lengths(self):
        """Run lengths down the columns, off and on by turns. ValueError where they do not fit.

        Never decoded by pycocotools, which fills a mask whose runs end early with whatever lies in
        memory.
        """
        if isinstance(self.segmentation, list):
            merged = rle.merge(rle.frPyObjects(self.segmentation, *self.size))
            return _run_lengths(merged["counts"])
        counts = self.segmentation["counts"]
        counts = np.array(counts if isinstance(counts, list) else _run_lengths(counts))
        height, width = self.size
        if tuple(self.segmentation["size"]) != self.size or counts.sum() != height * width:
            raise ValueError(f"the mask is not of {self.size} px")
        return counts


def _run_lengths(text):  # str or bytes -> int [runs]
    """COCO's string form: characters of 5 bits, lowest first, bit 6 set where the number goes on;
    from the fourth number on differences to the last but one."""
    digits = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8) - 48
    last = np.flatnonzero(digits < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    place = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((digits & 31).astype(np.int64) << place, first)
    numbers -= np.where(digits[last] & 16, 1 << 5 * (last - first + 1), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers


def annotation(entry, size, point=None, category=None):
    """An annotation from COCO's or SA-1B's json, its box cut to the image; None where no box is
    left (NaN, outside, flat)."""
    height, width = size
    x, y, w, h = np.float32(entry["bbox"])
    box = np.float32([x, y, x + w, y + h])
    if not np.isfinite(box).all():
        return None
    box = np.clip(box, 0, np.float32([width, height, width, height]))
    if not (box[2:] > box[:2]).all():
        return None
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):  # a polygon has three corners or more
        segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
    if point is not None:
        point = np.float32(point)
        if not ((point >= 0) & (point < np.float32([width, height]))).all():
            point = None
    return {
        "box": box,
        "point": point,
        "mask": CompressedMask(segmentation, size) if segmentation else None,
        "area": float(entry.get("area", w * h)),
        "category": category,
    }


def sa1b_objects(data):
    """SA-1B's json, bytes -> (size, [(entry, point)]); what is wrong in it is for `checked`."""
    contents = json.loads(data)
    size = contents["image"]["height"], contents["image"]["width"]
    return size, [(each, each["point_coords"][0]) for each in contents["annotations"]]


@contextlib.contextmanager
def checked():
    """What json that is not as it should be raises becomes BadRecord."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BadRecord("bad_annotation", line(error)) from None
