"""The encoder's square frame: a photograph at its top left, zeros below or to the right."""

import functools

import numpy as np

from samclip_jax.data import transforms

ROWS = 64  # of a photograph, in label_map: bounds the memory for many classes


def to_frame(image, side):  # uint8 [H, W, 3] -> uint8 [side, side, 3], (h, w)
    """The photograph with its longest side at `side`, padded, and its size in the frame."""
    resized = transforms.resize_longest(image, side)
    return transforms.pad(resized, side), resized.shape[:2]


def to_photograph(maps, extent, size, original):  # float [..., h, w] -> float32 [..., H, W]
    """Maps of a frame at the photograph's own size (segment_anything Sam.postprocess_masks).

    maps cover `extent` px of the frame, the photograph its first `size` px and has itself
    `original` px; all (height, width). Bilinear to the frame, cut, bilinear to the photograph:
    both are linear along rows and columns, so each side is one product with a matrix.
    """
    rows, columns = _matrices(maps, extent, size, original)
    return rows @ (maps.astype(np.float32) @ columns.T)


def to_masks(maps, extent, size, original):  # float [K, h, w] -> bool [H, W], K times
    """Where to_photograph's maps are over 0, one after the other.

    Only what the values over 0 reach is computed: of most objects a small part of the photograph.
    """
    rows, columns = _matrices(maps, extent, size, original)
    for logits in maps.astype(np.float32):
        above = logits > 0
        y, x = _reached(rows, above.any(1)), _reached(columns, above.any(0))
        down, across = rows[y].any(0), columns[x].any(0)  # what these are made of
        inside = rows[y, down] @ (logits[down][:, across] @ columns[x, across].T)
        mask = np.zeros(original, bool)
        mask[y, x] = inside > 0
        yield mask


def _reached(matrix, inputs):  # float [outputs, inputs], bool [inputs] -> slice
    """The outputs that any of these inputs has a part in."""
    outputs = np.flatnonzero(matrix[:, inputs].any(1))
    return slice(outputs[0], outputs[-1] + 1) if len(outputs) else slice(0, 0)


def likeliest(maps):  # [N, ...] -> int [...]
    return maps.argmax(0)


def label_map(maps, extent, size, original, labels=likeliest):  # float [N, h, w] -> int32 [H, W]
    """What `labels` makes of the maps at the photograph's own size, the argmax over them; arguments
    as to_photograph."""
    rows, columns = _matrices(maps, extent, size, original)
    maps = maps.astype(np.float32) @ columns.T
    blocks = [labels(rows[i : i + ROWS] @ maps) for i in range(0, len(rows), ROWS)]
    return np.concatenate(blocks).astype(np.int32)


def nearest(labels, shape):  # [h, w], (H, W) -> [H, W]
    """Whole pixels repeated, or left out."""
    rows, columns = (
        (np.arange(side) + 0.5) * old // side for side, old in zip(shape, labels.shape, strict=True)
    )
    return labels[rows.astype(int)[:, None], columns.astype(int)]


def at_patches(maps, size, patch):  # float [N, h, w] -> float32 [N, rows, columns]
    """Maps of a photograph at the middles of the frame's patches that its (height, width) px in it
    reach."""

    def matrix(inputs, side):
        middles = np.arange(patch // 2, side + patch // 2, patch)
        return _bilinear(inputs, side)[np.minimum(middles, side - 1)]

    rows, columns = map(matrix, maps.shape[-2:], size)
    return rows @ (maps.astype(np.float32) @ columns.T)


def _matrices(maps, extent, size, original):
    return [_matrix(*side) for side in zip(maps.shape[-2:], extent, size, original, strict=True)]


@functools.lru_cache(64)
def _matrix(inputs, extent, size, original):  # -> float32 [original, inputs]
    return _bilinear(size, original) @ _bilinear(inputs, extent)[:size]


def _bilinear(inputs, outputs):  # -> float32 [outputs, inputs]
    """F.interpolate(mode="bilinear", align_corners=False) along one side, as a matrix."""
    place = np.maximum((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0)
    left = np.minimum(place.astype(int), inputs - 1)
    right = np.minimum(left + 1, inputs - 1)
    matrix = np.zeros((outputs, inputs), np.float32)
    np.add.at(matrix, (np.arange(outputs), left), 1 - (place - left))
    np.add.at(matrix, (np.arange(outputs), right), place - left)
    return matrix
