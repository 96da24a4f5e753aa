"""Pictures of what a model says of a photograph, to look at."""

import math

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIDE = 384  # px of a picture's shorter side, at least
TINT = 0.55  # of a region's colour over the photograph
SMALLEST = 0.012  # part of the picture that gets its name written on it
RAMP = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO).reshape(256, 3)[
    :, ::-1
]


def colours(count):
    """uint8 [count, 3]: colours that neighbours in the list tell apart, by the golden ratio."""
    number = np.arange(count)
    hue, value = (255 * ((0.6 + number * 0.618034) % 1)), 200 + 55 * (number % 2)
    hsv = np.stack([hue, np.full(count, 190), value], -1).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv[None], "HSV").convert("RGB"))[0]


def label_map(image, labels, names, palette=None):
    """The photograph with its regions in colours and their names written on them.

    image: uint8 [H, W, 3]. labels: int [H, W], an index of names; any other is left as it is.
    palette: uint8 [names, 3], by default `colours`. Returns uint8 [H', W', 3], enlarged by a whole
    number.
    """
    palette = colours(len(names)) if palette is None else palette
    scale = enlargement(image)
    labels = np.where((labels >= 0) & (labels < len(names)), labels, -1)
    large = np.kron(labels, np.ones((scale, scale), labels.dtype))
    tinted = np.where(
        (large >= 0)[..., None], TINT * palette[large] + (1 - TINT) * photo(image), photo(image)
    )
    picture = Image.fromarray(tinted.astype(np.uint8))
    for category in np.unique(labels[labels >= 0]):
        parts, count = ndimage.label(labels == category)
        for part in range(1, count + 1):
            region = parts == part
            if region.mean() >= SMALLEST:
                write(picture, names[category], scale * (middle(region) + 0.5))
    return np.asarray(picture)


def outlines(image, masks, boxes=(), palette=None):
    """The photograph with masks filled and outlined, and boxes.

    image: uint8 [H, W, 3]. masks: bool [N, H, W]. boxes: float [N, 4], x0 y0 x1 y1 px. palette:
    uint8 [N, 3]. Returns uint8 [H', W', 3].
    """
    palette = colours(max(len(masks), len(boxes))) if palette is None else palette
    scale, picture = enlargement(image), photo(image)
    for mask, colour in zip(masks, palette, strict=False):
        large = np.kron(mask, np.ones((scale, scale), bool))
        picture = np.where(large[..., None], TINT * colour + (1 - TINT) * picture, picture)
        rim = large & ~ndimage.binary_erosion(large, iterations=max(1, scale // 2))
        picture[rim] = colour
    picture = picture.astype(np.uint8)
    for box, colour in zip(boxes, palette, strict=False):
        corners = np.round(scale * np.asarray(box)).astype(int).tolist()
        cv2.rectangle(picture, corners[:2], corners[2:], colour.tolist(), max(2, scale // 2))
    return picture


def heat(image, values):
    """The photograph under a map of heat. values: finite float [h, w] of any size, dark the least,
    bright the greatest. Returns uint8 [H', W', 3]."""
    low, high = float(np.min(values)), float(np.max(values))
    levels = (255 * (np.asarray(values, np.float32) - low) / max(high - low, 1e-9)).astype(np.uint8)
    grey = photo(image).mean(-1, keepdims=True)
    ramp = RAMP[cv2.resize(levels, grey.shape[1::-1], interpolation=cv2.INTER_CUBIC)]
    return (0.7 * ramp + 0.3 * grey).astype(np.uint8)


def photo(image):  # uint8 [H, W, 3] -> uint8 [H', W', 3]
    scale = enlargement(image)
    size = (scale * image.shape[1], scale * image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def enlargement(image):
    return max(1, math.ceil(SIDE / min(image.shape[:2])))


def middle(region):  # bool [H, W] -> int [2], row and column farthest from the region's edge
    distance = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    return np.array(np.unravel_index(distance.argmax(), region.shape))


def write(picture, text, place):
    """Draws text into a PIL image, its middle at `place`, (row, column), or as near as it fits."""
    pen, size = ImageDraw.Draw(picture), max(12, min(picture.size) // 26)
    font = ImageFont.load_default(size)
    left, top, right, bottom = pen.textbbox((0, 0), text, font, anchor="mm", stroke_width=2)
    row = min(max(place[0], -top), picture.height - bottom)
    column = min(max(place[1], -left), picture.width - right)
    pen.text(
        (column, row), text, "white", font, anchor="mm", stroke_width=2, stroke_fill=(20, 20, 20)
    )
