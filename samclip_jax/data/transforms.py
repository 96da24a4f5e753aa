"""From a photograph of any size to the size a model takes; uint8 to uint8, by Pillow's filters.

[H, W, 3] is an array, or a decode.Jpeg, in training and preparation: that is decoded no larger than
the result needs it, and the rest of a bilinear resize is OpenCV's, five times as fast.
"""

import math

import cv2
import numpy as np
from PIL import Image

from samclip_jax.data.decode import Jpeg

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
SLENDER = 8  # long sides to a short one; 1 x 12000 px as 224 x 2.7 million would fill the memory
HALF = 0.5 * 16 / 15  # up to which half a Jpeg's size does; libjpeg-turbo is slow at 5/8


def resize(image, height, width, filter=BILINEAR, box=None):  # [H, W, 3] -> [height, width, 3]
    """Antialiased resizing of `box` (x0, y0, x1, y1 in px, may lie between pixels), or of all."""
    if isinstance(image, Jpeg):
        return _resize_jpeg(image, height, width, filter, box)
    return np.asarray(Image.fromarray(image).resize((width, height), filter, box))


def _resize_jpeg(image, height, width, filter, box):
    """The file as small as the box still has [height, width] px, or by BILINEAR lacks a fifteenth,
    the box to whole px of that. Below a factor of two then linear between pixels, not antialiased,
    as tf.image.resize has it."""
    h, w = image.shape[:2]
    x0, y0, x1, y1 = box or (0, 0, w, h)
    scale = min(1, max(height / (y1 - y0), width / (x1 - x0)))
    if filter is BILINEAR and 0.5 < scale <= HALF:
        scale = 0.5
    small = image.at_least(math.ceil(h * scale), math.ceil(w * scale))
    y, x = small.shape[0] / h, small.shape[1] / w
    part = small[_whole(y0 * y, y1 * y, small.shape[0]), _whole(x0 * x, x1 * x, small.shape[1])]
    if filter is BILINEAR and part.shape[0] < 2 * height and part.shape[1] < 2 * width:
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return resize(part, height, width, filter)


def _whole(first, end, count):  # -> slice of one or more of `count` px
    first = min(round(first), count - 1)
    return slice(first, max(first + 1, round(end)))


def random_resized_crop(image, size, rng, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random part of the image as [size, size, 3] (torchvision RandomResizedCrop).

    Its share of the area is uniform in `scale`, its aspect log-uniform in `ratio`; the centre where
    none fits.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return resize(image, size, size, box=(x, y, x + w, y + h))
    w, h = min(width, height * ratio[1]), min(height, width / ratio[0])
    x, y = (width - w) / 2, (height - h) / 2
    return resize(image, size, size, box=(x, y, x + w, y + h))


def centre_crop(image, size):  # [H, W, 3] -> [size, size, 3]
    """CLIP's evaluation view: shortest side to `size`, bicubic, then the centre (OpenCLIP's)."""
    height, width = image.shape[:2]
    short = min(height, width)
    h, w = int(size * height / short), int(size * width / short)
    if max(h, w) > SLENDER * size:  # the same pixels, without those that the crop leaves out
        y, x = (round((side - size) / 2) for side in (h, w))
        box = (x * width / w, y * height / h, (x + size) * width / w, (y + size) * height / h)
        return resize(image, size, size, BICUBIC, box)
    image = resize(image, h, w, BICUBIC)
    y, x = (round((side - size) / 2) for side in image.shape[:2])
    return image[y : y + size, x : x + size]


def longest_shape(height, width, size):  # -> (height, width)
    """The shape whose longest side is `size` (ResizeLongestSide.get_preprocess_shape)."""
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest(image, size):  # [H, W, 3] -> [h, w, 3]
    """Longest side to `size`, as SAM sees a photograph (ResizeLongestSide.apply_image)."""
    return resize(image, *longest_shape(*image.shape[:2], size))


def flip(image):  # [H, W, 3] -> [H, W, 3]
    """Left to right."""
    return cv2.flip(image, 1)


def pad(image, size):  # [h, w, 3] -> [size, size, 3]
    """Zeros below and to the right."""
    padded = np.zeros((size, size, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def scale_coords(coords, old, new):  # [..., 2] -> float32 [..., 2]
    """x, y px of an image of shape `old` (height, width) in one of shape `new` (apply_coords)."""
    return np.float32(coords) * np.float32([new[1] / old[1], new[0] / old[0]])
