"""Annotations as they are found in the world, dirt included, to arrays.

Numbers of a file are checked here before a C library or an allocation sees them. An annotation that
cannot be used is dropped under one of REASONS; its image and the other annotations stay.
"""

import contextlib
import json
import math
import reprlib

import numpy as np
from absl import logging
from pycocotools import mask as rle

from samclip_jax.data.decode import BadRecord, line

REASONS = (
    "bad_entry",  # no json object, or without what tells it from others
    "bad_box",  # not four finite numbers, or no pixel of the image lies in it
    "bad_mask",  # neither polygons nor run lengths that fit the image, or no pixel lies in it
    "no_mask",  # nothing to compare a predicted mask with; in evaluation only
    "large_mask",  # over --max_mask_area; in data.prepare only
    "bad_caption",  # no text, or a blank one
    "unknown_category",  # its id is not among the categories
    "unknown_image",  # its id is not among the images
)
MAX_SIDE, MAX_PIXELS = 1 << 17, 1 << 28  # of an image with annotations
MAX_POLYGONS, MAX_OUTLINE = 4096, 1 << 21  # of an annotation; px
REACH = 4  # image sides, how far from the origin a polygon's corner may lie


class BadAnnotation(Exception):
    """An annotation that cannot be used: `reason` is one of REASONS, `detail` says more."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def usable(entries, read):
    """The annotations that read(entry) makes, and [(name, reason, detail)] of the dropped ones.

    name: the annotation's id, or #n where it has none, its place among the entries. An entry that
    becomes None, a crowd, is in neither list. BadRecord where `entries` is no list.
    """
    if not isinstance(entries, list):
        raise BadRecord("bad_annotation", f"its annotations are {shown(entries)}, not a list")
    annotations, dropped = [], []
    for place, entry in enumerate(entries):
        try:
            annotations.append(read(entry))
        except BadAnnotation as bad:
            dropped.append((entry_name(entry, place), bad.reason, bad.detail))
    return [each for each in annotations if each is not None], dropped


def report_dropped(image, dropped):
    """Writes the first annotations that training or evaluation leaves out to the log."""
    for name, reason, detail in dropped:
        text = "%s: annotation %s is left out, %s: %s"
        logging.log_first_n(logging.WARNING, text, 10, image, name, reason, detail)


def entry_name(entry, place):
    """An entry's id as text, or #place."""
    name = text_id(entry.get("id")) if isinstance(entry, dict) else None
    return f"#{place}" if name is None else name


def annotation(entry, size, categories=None):
    """An annotation from COCO's or SA-1B's json for an image of `size`; None where it is a crowd.

    categories: {id as text: name}, None for a set that has none. The box is cut to the image. The
    point is None where it is not in the image; an area that is no number is the mask's, if there
    is one, or the box's. BadAnnotation where category, box or mask cannot be used.
    """
    if not isinstance(entry, dict):
        raise BadAnnotation("bad_entry", f"{shown(entry)} is no json object")
    return None if is_crowd(entry) else _annotation(entry, size, categories)


def crowd(entry, size, categories):
    """The same of a crowd, and None where it is none."""
    is_one = isinstance(entry, dict) and is_crowd(entry)
    return _annotation(entry, size, categories) if is_one else None


def _annotation(entry, size, categories):
    category = None
    if categories is not None:
        category = categories.get(text_id(entry.get("category_id")))
        if category is None:
            raise unknown_category(entry)
    box = box_of(entry.get("bbox"), size)
    mask = mask_of(entry.get("segmentation"), size)
    points = entry.get("point_coords")
    point = point_of(points[0], size) if isinstance(points, list) and points else None
    area = area_of(entry.get("area"), box, mask)
    return {"box": box, "point": point, "mask": mask, "area": area, "category": category}


def is_crowd(entry):
    """Whether an entry is COCO's region of many objects: "iscrowd" is 1 or true, also as text."""
    return str(entry.get("iscrowd")).lower() in ("1", "1.0", "true")


def unknown_category(entry):
    """The BadAnnotation of an entry whose category is not in the list."""
    detail = f"category_id {shown(entry.get('category_id'))} is not among the categories"
    return BadAnnotation("unknown_category", detail)


def box_of(bbox, size):
    """x, y, width, height in px -> float32 [4], x0 y0 x1 y1, cut to an image of `size`."""
    x, y, width, height = _four(bbox)
    return cut_box([x, y, x + width, y + height], size)


def cut_box(corners, size):
    """x0, y0, x1, y1 in px -> the same as float32 [4], cut to an image of `size`. BadAnnotation."""
    box = np.clip(_four(corners), 0, np.float64([size[1], size[0]] * 2)).astype(np.float32)
    if not (box[2:] > box[:2]).all():
        detail = f"nothing of the box {shown(corners)} lies in {size[1]} x {size[0]} px"
        raise BadAnnotation("bad_box", detail)
    return box


def _four(values):
    try:
        a, b, c, d = numbers(values).tolist()
    except ValueError as error:
        detail = f"the box {shown(values)} is not four finite numbers: {error}"
        raise BadAnnotation("bad_box", detail) from None
    return [a, b, c, d]


def point_of(coords, size):
    """x, y in px -> float32 [2], or None where that is no point of an image of `size`."""
    try:
        x, y = numbers(coords).tolist()
    except ValueError:
        return None
    return np.float32([x, y]) if 0 <= x < size[1] and 0 <= y < size[0] else None


def area_of(area, box, mask):
    """px, as it is given; the mask's or, where there is none, the box's if it is no number."""
    if not _is_number(area) or not 0 <= area <= MAX_PIXELS:
        width, height = (box[2:] - box[:2]).tolist()
        area = width * height if mask is None else mask.area
    return float(area)


def mask_of(segmentation, size):
    """A CompressedMask, None where `segmentation` has no polygon of three corners or is empty."""
    if segmentation is None or segmentation in ([], {}):
        return None
    mask = CompressedMask(segmentation, size)
    return None if mask.lengths is None else mask


class CompressedMask:
    """COCO polygons or run lengths of an image of `size` that become bool [H, W] when numpy asks
    for the array: of that size or, the nearest pixels, of `shape`.

    segmentation: {"size": [h, w], "counts": a list or COCO's string of run lengths}, or polygons, a
    list of [x, y, x, y, ...] or of [[x, y], ...], or one of those. What of a polygon lies outside
    the image is cut off. BadAnnotation says what is wrong with it, also that no pixel lies in it.

    lengths: run lengths down the columns, off and on by turns, int64 [runs]; None of polygons none
    of which has three corners.
    """

    def __init__(self, segmentation, size, shape=None):
        self.size, self.shape = tuple(size), tuple(shape or size)
        try:
            if isinstance(segmentation, list):
                self.lengths = _drawn(_polygons(segmentation, self.size), self.size)
            elif isinstance(segmentation, dict):
                self.lengths = _runs(segmentation, self.size)
            else:
                raise ValueError(f"segmentation {shown(segmentation)} is no list or object")
            if self.lengths is not None and not self.area:
                raise ValueError(f"no pixel of {size[1]} x {size[0]} px lies in the mask")
        except ValueError as error:
            raise BadAnnotation("bad_mask", str(error)) from None

    @property
    def area(self):
        """px of the image of `size`."""
        return int(self.lengths[1::2].sum())

    def __array__(self, dtype=None, copy=None):
        counts, (height, width) = self.lengths, self.size
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T
        if self.shape != self.size:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for new, old in zip(self.shape, self.size, strict=True)
            )
            mask = mask[np.ix_(rows, columns)]
        return mask.astype(bool if dtype is None else dtype)


def _drawn(polygons, size):  # -> int64 [runs], None where there are no polygons
    if not polygons:
        return None
    return _run_lengths(rle.merge(rle.frPyObjects(polygons, *size))["counts"])


def _polygons(segmentation, size):  # -> [[x, y, x, y, ...]], those of three corners or more
    one = not any(isinstance(polygon, list) for polygon in segmentation) or _are_pairs(segmentation)
    polygons = [_corners(polygon) for polygon in ([segmentation] if one else segmentation)]
    polygons = [corners for corners in polygons if len(corners) >= 3]
    if len(polygons) > MAX_POLYGONS:
        raise ValueError(f"{len(polygons)} polygons, over {MAX_POLYGONS}")
    outline, reach = 0, REACH * max(size)
    for corners in polygons:
        if np.abs(corners).max() > reach:
            raise ValueError(
                f"a corner at {np.abs(corners).max():g} px, far outside {size[1]} x {size[0]} px"
            )
        outline += np.abs(corners - np.roll(corners, 1, 0)).max(1).sum()
    if outline > min(math.prod(size), MAX_OUTLINE) + 8 * reach:
        raise ValueError(f"an outline of {outline:.0f} px, more than the image has pixels")
    return [corners.ravel().tolist() for corners in polygons]


def _are_pairs(polygon):
    """Whether it is three or more [x, y]: as flat polygons they would have one corner each."""
    return len(polygon) > 2 and all(
        isinstance(corner, list) and len(corner) == 2 and not isinstance(corner[0], list)
        for corner in polygon
    )


def _corners(polygon):  # [x, y, x, y, ...] or [[x, y], ...] -> float64 [n, 2]
    if isinstance(polygon, list) and any(isinstance(corner, list) for corner in polygon):
        if not all(isinstance(corner, list) and len(corner) == 2 for corner in polygon):
            raise ValueError(f"polygon {shown(polygon)} mixes corners and numbers")
        polygon = [number for corner in polygon for number in corner]
    flat = numbers(polygon)
    if len(flat) % 2:
        raise ValueError(f"a polygon of {len(flat)} numbers, which are no pairs")
    return flat.reshape(-1, 2)


def _runs(segmentation, size):  # -> int64 [runs]
    """Not left to pycocotools, which fills a mask whose runs end early with whatever lies in
    memory."""
    height, width = size
    declared, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(declared, (list, tuple)) or list(declared) != [height, width]:
        raise ValueError(f"a mask of size {shown(declared)}, the image has {[height, width]}")
    if isinstance(counts, (str, bytes)):
        counts = _run_lengths(counts)
    elif not isinstance(counts, list) or set(map(type, counts)) != {int}:
        raise ValueError(f"counts {shown(counts)} are no whole numbers")
    try:
        counts = np.array(counts, np.int64)
    except OverflowError:
        raise ValueError("a run length past all images") from None
    if not len(counts) or counts.min() < 0 or counts.max() > height * width:
        raise ValueError(f"run lengths that are none of {height * width} px")
    if counts.sum() != height * width:
        raise ValueError(f"run lengths of {counts.sum()} px, the image has {height * width}")
    return counts


def _run_lengths(text):  # str or bytes -> int64 [runs]
    """COCO's string form: characters of 5 bits, lowest first, bit 6 set where the number goes on;
    from the fourth number on differences to the last but one. ValueError."""
    text = text.encode() if isinstance(text, str) else text
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(digits < 32)
    if not len(last) or last[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() > 63:
        raise ValueError(f"counts {shown(text)} are no run lengths as COCO writes them")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:  # 35 bits
        raise ValueError("a run length past all images")
    place = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    lengths = np.add.reduceat((digits & 31) << place, first)
    lengths -= np.where(digits[last] & 16, 1 << 5 * (last - first + 1), 0)
    lengths[1::2], lengths[2::2] = np.cumsum(lengths[1::2]), np.cumsum(lengths[2::2])
    return lengths


def numbers(values):  # -> float64 [n]
    """A list of finite numbers, none of them text or true or false. ValueError says what is not."""
    if not isinstance(values, list):
        raise ValueError(f"{shown(values)} is no list")
    if not set(map(type, values)) <= {int, float}:
        wrong = next(value for value in values if type(value) not in (int, float))
        raise ValueError(f"{shown(wrong)} is no number")
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        raise ValueError("a number past all images") from None
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value):
    """A value of a file as text that is short whatever it is."""
    return reprlib.repr(value)


def text_id(value):
    """An id as text: 7, 7.0 and "7" are one. None where it is neither number nor text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def image_size(entry):  # -> (height, width), px
    """Of the image that annotations were made for, by its entry in their json, or BadRecord."""
    size = []
    for name in ("height", "width"):
        side = entry.get(name) if isinstance(entry, dict) else None
        if not _is_number(side) or not 1 <= side <= MAX_SIDE or side != int(side):
            detail = f"{name} {shown(side)} is not a whole number of px from 1 to {MAX_SIDE}"
            raise BadRecord("bad_annotation", detail)
        size.append(int(side))
    if math.prod(size) > MAX_PIXELS:
        raise BadRecord("bad_annotation", f"{size[1]} x {size[0]} px are over {MAX_PIXELS}")
    return tuple(size)


def sa1b_contents(data):
    """SA-1B's json of an image, bytes -> size, entries for `annotation`. BadRecord."""
    with checked():
        contents = json.loads(data)
        return image_size(contents["image"]), contents["annotations"]


@contextlib.contextmanager
def checked():
    """What json that is not as it should be raises becomes BadRecord."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadRecord("bad_annotation", line(error)) from None
