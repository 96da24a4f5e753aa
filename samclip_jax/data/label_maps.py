"""Semantic maps: the class of every pixel, from files of values or painted from annotations.

A map is int32 [H, W], -1 where a pixel has no class. BadRecord, `bad_annotation`, says why one
cannot be read or that no pixel of it has a class.
"""

import contextlib
import functools
import io
import math

import numpy as np
from PIL import Image

from samclip_jax.data.annotations import (
    BadAnnotation,
    box_of,
    is_crowd,
    mask_of,
    shown,
    text_id,
    unknown_category,
    usable,
)
from samclip_jax.data.decode import BadRecord, line, read_file


def label_map(path, indices):
    """The map of a grey or palette png.

    indices: {value of a pixel: index of its class, or -1}. BadRecord for any other value, too.
    """
    return classes_of(png_values(path), indices, path)


def loadmat(file, **options):
    """scipy's, imported where there is one to read: it would be a third of every worker's start."""
    import scipy.io

    return scipy.io.loadmat(file, **options)


def mat_map(path, indices):
    """The same of PASCAL-Context's LabelMap, in a file of MATLAB's."""
    data = read_file(path)
    try:
        values = np.asarray(loadmat(io.BytesIO(data))["LabelMap"])
        if values.ndim != 2 or (values != values.astype(np.uint16)).any():
            raise ValueError(f"LabelMap is {values.dtype} {values.shape}, not [H, W] of classes")
    except Exception as error:  # scipy's reader has errors of its own
        raise BadRecord("bad_annotation", f"{path}: {line(error)}") from None
    return classes_of(values, indices, path)


def png_values(path):  # -> int [H, W]
    """The values of a grey or palette png as they are stored. BadRecord where it is none."""
    data = read_file(path)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            values = np.asarray(image)
    except Exception as error:  # readers trip over damaged files in every possible way
        raise BadRecord("bad_annotation", f"{path}: {line(error)}") from None
    if values.ndim != 2:
        raise BadRecord("bad_annotation", f"{path} has colours, not classes")
    bits, colours = data[24:26]  # of its header
    if colours == 0 and bits in (2, 4):  # of which Pillow makes brightness from 0 to 255
        values = values // (255 // (2**bits - 1))
    return values.astype(np.int32)


def classes_of(values, indices, path):
    """Values of pixels -> the map; path: the file, for messages."""
    table = np.full(1 << 16, -2, np.int32)
    table[list(indices)] = list(indices.values())
    classes = table[values.astype(np.uint16)]
    unknown = values[classes == -2]
    if len(unknown):
        raise BadRecord(
            "bad_annotation", f"{path} has the value {unknown[0]}, which is no class of this set"
        )
    return require_class(classes, path)


def require_class(classes, path):
    """The map itself, if a pixel of it has a class."""
    if not (classes >= 0).any():
        raise BadRecord("bad_annotation", f"no pixel of {path} has a class")
    return classes


def painted_map(image, indices, background, crowds=None):  # -> map, dropped
    """The map of an image of coco.match, its annotations painted in their order, and those that
    were left out, as annotations.usable has them.

    indices: {id of a category as text: index of its class, or -1}; background: the class of other
    pixels; crowds: that of crowds, None where they are like other objects. Where an annotation was
    left out pixels have no class, -1: those of its mask or, where that cannot be read, those of its
    box that would be background.
    """
    size = tuple(image["size"])
    classes = np.full(size, background, np.int32)
    paint = functools.partial(_paint, classes, size, indices, background, crowds)
    _, dropped = usable(image["annotations"], paint)
    return require_class(classes, "the image"), dropped


def _paint(classes, size, indices, background, crowds, entry):
    if not isinstance(entry, dict):
        raise BadAnnotation("bad_entry", f"{shown(entry)} is no json object")
    try:
        mask = mask_of(entry.get("segmentation"), size)
        if mask is None:
            raise BadAnnotation("bad_mask", "it has no segmentation")
    except BadAnnotation:
        with contextlib.suppress(BadAnnotation):  # some of its box is no background
            x0, y0, x1, y1 = box_of(entry.get("bbox"), size)
            inside = classes[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)]
            inside[inside == background] = -1
        raise
    category = text_id(entry.get("category_id"))
    if category not in indices:
        classes[np.asarray(mask)] = -1
        raise unknown_category(entry)
    of_crowd = crowds is not None and is_crowd(entry)
    classes[np.asarray(mask)] = crowds if of_crowd else indices[category]
