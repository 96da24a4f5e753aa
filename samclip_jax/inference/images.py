"""Photographs as a user gives them, checked before they are used."""

import numpy as np

from samclip_jax.errors import UserError
from samclip_jax.inference.prompts import numbers, require_axes, require_values

PHOTOGRAPH, BATCH = ("H", "W", "3"), ("B", "H", "W", "3")


def checked(name, image, axes):
    """The array uint8 [H, W, 3] (axes PHOTOGRAPH) or [B, H, W, 3] (BATCH); Pillow's images too.

    UserError names the argument and says what another array has to go through first.
    """
    wanted = f"{name}: need uint8 [{', '.join(axes)}], RGB"
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise UserError(f"{wanted}; give images of different sizes one by one") from error
    except (OSError, RuntimeError, TypeError) as error:  # Pillow's of a bad file, torch's of a GPU
        raise UserError(f"{wanted}; got no array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != len(axes) or array.shape[-1] != 3 or not array.size:
        remedies = "; ".join(["", *_remedies(array, axes)])
        raise UserError(f"{wanted}; got {array.dtype} {list(array.shape)}{remedies}")
    return array


def checked_frames(frames, sizes, side):
    """uint8 [B, side, side, 3] and int32 [B, 2], height and width of the photograph in each frame.

    UserError names the argument. A size of 0 is a frame without a photograph.
    """
    frames = checked("frames", frames, BATCH)
    require_axes("frames", frames, ("B", side, side, 3), "made by inference.frames.to_frame")
    return frames, checked_sizes("sizes", sizes, (len(frames), 2), range(side + 1))


def checked_sizes(name, sizes, axes, known):  # -> int32 of these axes
    """Heights and widths of photographs in a frame, of a range of px; UserError names the
    argument."""
    sizes = numbers(name, sizes, axes, "height and width, px of the frame")
    require_values(name, sizes, known, f"whole px of the frame, {known[0]} to {known[-1]}")
    return sizes.astype(np.int32)


def _remedies(array, axes):
    """What makes an array of other axes or of another dtype one of the wanted ones."""
    if array.dtype.kind not in "biuf" or array.ndim < 2:
        yield "a photograph is np.asarray(PIL.Image.open(path).convert('RGB'))"
        return
    if array.ndim == len(axes) - 1 and axes == BATCH and array.shape[-1] == 3:
        yield "add the first axis, image[None]"
    elif array.ndim == len(axes) + 1:
        yield "give one photograph at a time"
    elif array.ndim == len(axes) - 1 or (array.ndim == len(axes) and array.shape[-1] in (1, 2, 4)):
        yield "convert it to RGB, as Pillow's .convert('RGB') does"
    elif array.ndim == len(axes) and array.shape[-3] == 3 != array.shape[-1]:
        yield "put the channels last, np.moveaxis(image, -3, -1)"
    if array.dtype.kind == "f":
        yield "if it is in 0 to 1, give (255 * image).round().astype(np.uint8)"
    elif array.dtype != np.uint8:
        yield "bring it to 0 to 255 and .astype(np.uint8)"
