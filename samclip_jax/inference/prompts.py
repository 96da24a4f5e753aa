"""Prompts as a user gives them: checked, and as the mask decoder takes them."""

import jax.numpy as jnp
import numpy as np

from samclip_jax.errors import UserError
from samclip_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    NOT_A_POINT,
)

POINTS = "x and y of each point, px of the photograph"
LABELS = "1 (foreground), 0 (background) or -1 (no point) for each point"
BOX = "x0, y0, x1, y1, px of the photograph"
MASK = "the low_res_masks of an earlier answer"


def decoder_prompts(point_coords, point_labels, boxes, mask_input, size, grid, single=False):
    """K prompts: coords float [K, N, 2], labels int32 [K, N], masks float [K, 4h, 4w] or None.

    The arguments are those of Predictor.predict_batch or, with single, of Predictor.predict.
    size: (height, width) of the photograph; grid: (4h, 4w). As in the original a box is the points
    of two corners, and points without a box end in one NOT_A_POINT; ABSENT slots make N a power of
    two. UserError names the argument that cannot be used.
    """
    box = "box" if single else "boxes"
    arguments = {
        "point_coords": (point_coords, ("N", 2), POINTS),
        "point_labels": (point_labels, ("N",), LABELS),
        box: (boxes, (4,), BOX),
        "mask_input": (mask_input, (1, *grid), MASK),
    }
    read = _of_one_prompt if single else _of_prompts
    prompts = {name: read(name, *rest) for name, rest in arguments.items() if rest[0] is not None}
    if not prompts:
        raise UserError("nothing to predict from: give points, a box or a mask")
    counts = {name: len(array) for name, array in prompts.items()}
    if len(set(counts.values())) > 1:
        counts = ", ".join(f"{count} in {name}" for name, count in counts.items())
        raise UserError(f"every argument must be for the same K prompts; got {counts}")
    count = len(next(iter(prompts.values())))
    coords, labels = np.zeros((count, 0, 2)), np.zeros((count, 0), np.int32)
    if point_coords is not None or point_labels is not None:
        coords, labels = _points(prompts.get("point_coords"), prompts.get("point_labels"), size)
        if count and not labels.size and len(prompts) == 2:
            raise UserError("nothing to predict from: point_coords is empty, give a box or a mask")
        if boxes is None:
            coords = np.concatenate([coords, np.zeros((count, 1, 2))], 1)
            labels = np.concatenate([labels, np.full((count, 1), NOT_A_POINT)], 1)
    if boxes is not None:
        corners = prompts[box].astype(float).reshape(count, 2, 2)
        corners = np.sort(corners, axis=1)  # whichever two were given
        _check_near(box, corners, size)
        coords = np.concatenate([coords, corners], 1)
        labels = np.concatenate([labels, np.tile([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], (count, 1))], 1)
    slots = max(2, 1 << (coords.shape[1] - 1).bit_length())
    spare = ((0, 0), (0, slots - coords.shape[1]))
    coords = np.pad(coords, (*spare, (0, 0)))
    labels = np.pad(labels, spare, constant_values=ABSENT)
    return coords, labels, None if mask_input is None else prompts["mask_input"][:, 0]


def decoder_arguments(index, points, labels, masks, embedding):
    """The arguments of Model.predict_masks but the embedding, as a list of arrays [K, ...].

    UserError names the argument that cannot be used. Points may lie outside of the frame; labels
    are any of prompt_encoder's.
    """
    images, h, w = embedding.shape[:3]
    index = numbers("index", index, ("K",), "the image of each prompt")
    require_values("index", index, range(images), f"0 to {images - 1}, an image of the embedding")
    points = numbers("points", points, ("K", "N", 2), "x and y of each point, px of the frame")
    labels = numbers("labels", labels, ("K", "N"), "a label for each point")
    known = range(ABSENT, BOX_BOTTOM_RIGHT + 1)
    require_values("labels", labels, known, f"{known[0]} to {known[-1]} (models/prompt_encoder.py)")
    arrays = [index.astype(np.int32), points.astype(np.float32), labels.astype(np.int32)]
    if masks is not None:
        masks = numbers("masks", masks, ("K", 4 * h, 4 * w), "logits")
        arrays.append(masks.astype(np.float32))
    if labels.shape != points.shape[:2] or len({len(array) for array in arrays}) > 1:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise UserError(f"index, points, labels and masks must be of the same K prompts: {shapes}")
    return arrays


def numbers(name, value, axes, meaning, remedies=None):
    """The value as an array of real numbers, finite as float32, with these axes.

    axes: the length of each, or a letter for any length; [] stands for none along such a first
    axis; "..." first for any axes. remedies: what to do about an array with so many axes.
    UserError names the argument.
    """
    array = _real(name, value, meaning)
    if axes[0] == "...":
        axes = ("N",) * (array.ndim - len(axes) + 1) + axes[1:]
    if array.shape == (0,) and isinstance(axes[0], str):
        array = np.zeros([0 if isinstance(axis, str) else axis for axis in axes])
    require_axes(name, array, axes, meaning, remedies)
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))
    if not finite.all():
        raise UserError(f"{name} must be finite, {meaning}; got {array[~finite][0]}")
    return array


def require_axes(name, array, axes, meaning, remedies=None):
    """UserError that names the argument unless its array has these axes; see `numbers`."""
    shape = np.shape(array)
    if len(shape) != len(axes) or any(
        axis != length and not isinstance(axis, str)
        for axis, length in zip(axes, shape, strict=True)
    ):
        wanted = f"[{', '.join(map(str, axes))}], {meaning}"
        remedy = (remedies or {}).get(len(shape), "")
        raise UserError(f"{name} must be {wanted}; got {list(shape)}{remedy}")


def require_values(name, array, known, wanted):
    """UserError that names the argument and `wanted` unless all of its values are known ones."""
    unknown = array[~np.isin(array, known)]
    if unknown.size:
        raise UserError(f"{name} must be {wanted}; got {unknown[0]}")


def _real(name, value, meaning):
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(
            f"{name} must be one array, {meaning}; its rows differ in length"
        ) from error
    except (TypeError, RuntimeError) as error:  # of torch: a tensor on a GPU, one with gradients
        raise UserError(f"{name} must be one array, {meaning}; {error}") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise UserError(f"{name} must be real numbers, {meaning}; got {array.dtype}")
    return array


def _of_prompts(name, value, axes, meaning):  # -> [K, *axes]
    return numbers(name, value, ("K", *axes), meaning, {len(axes): "; for one prompt use predict"})


def _of_one_prompt(name, value, axes, meaning):  # -> [1, *axes]
    value = _real(name, value, meaning)
    if name == "box" and value.shape == (1, 4):  # as the original's examples have it
        value = value[0]
    remedies = {len(axes) + 1: "; for several prompts use predict_batch"}
    if name.startswith("point"):
        remedies[len(axes) - 1] = "; one point is point_coords=[[x, y]], point_labels=[1]"
    elif name == "mask_input":
        remedies[len(axes)] = "; of several take one, low_res_masks[i : i + 1]"
    return numbers(name, value, axes, meaning, remedies)[None]


def _points(coords, labels, size):  # -> float [K, N, 2], int32 [K, N]
    if coords is None or labels is None:
        raise UserError("point_coords and point_labels go together: give both")
    if coords.shape[:2] != labels.shape:
        raise UserError(
            f"points need [x, y] and a label each; got {coords.shape[1]} point_coords and "
            f"{labels.shape[1]} point_labels"
        )
    require_values("point_labels", labels, (NOT_A_POINT, BACKGROUND, FOREGROUND), LABELS)
    coords = coords.astype(float)
    _check_near("point_coords", coords[labels != NOT_A_POINT], size)
    return coords, labels.astype(np.int32)


def _check_near(name, coords, size):  # [..., 2]
    """UserError for what lies farther from the photograph than its longest side."""
    height, width = size
    distance = np.maximum(-coords, coords - (width, height)).max(-1)
    if (distance > max(size)).any():
        x, y = coords[distance > max(size)][0]
        raise UserError(
            f"{name} must be px of the photograph, {width} x {height} (width x height); "
            f"got x = {x:g}, y = {y:g}, far outside"
        )
