"""Simulated prompts: what a user might click or draw to ask for an annotated object.

A prompt is N labelled points, as in SAM's own export to ONNX, with one N for all so that shapes are
static. A box is its two corners, points without a box end in one NOT_A_POINT as in the original,
and the slots left over are ABSENT.
"""

import dataclasses

import numpy as np

from samclip_jax.data.decode import BadRecord
from samclip_jax.data.transforms import scale_coords
from samclip_jax.errors import UserError
from samclip_jax.validation import Area, NonNegativeFloat, PositiveInt, Share, Validated

# The labels of models/prompt_encoder.py, which worker processes cannot import: it needs jax.
BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, NOT_A_POINT, ABSENT = 0, 1, 2, 3, -1, -2


@dataclasses.dataclass(frozen=True)
class PromptConfig(Validated):
    """How prompts are drawn. box, point and points are the odds of the three kinds."""

    per_image: PositiveInt = 32  # SAM-CLIP appendix A
    box: NonNegativeFloat = 0.5  # box or point, evenly: Segment Anything appendix A
    point: NonNegativeFloat = 0.25
    points: NonNegativeFloat = 0.25  # 1 to max_points of them
    max_points: PositiveInt = 3
    negatives: Share = 0.0  # the chance that a point after the first lies on the background
    # standard deviation of a box's corners, in sides of the box: Segment Anything, appendix A
    jitter: NonNegativeFloat = 0.1
    max_jitter: NonNegativeFloat = 20.0  # px of the resized image; the same
    max_area: Area = 0.9  # larger objects are dropped, in areas of the image
    # points anywhere in the mask; False decodes no mask: SA-1B has one point for each, all there is
    interior: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not sum(self.odds):
            raise UserError("box, point or points must have odds above 0.")

    @property
    def odds(self):
        return (self.box, self.point, self.points)

    @property
    def slots(self):
        """N, the points of a prompt."""
        return max(2, (self.max_points if self.points else 1) + 1)


def simulate(annotations, old, new, config, rng):
    """Prompts for an image of shape `old` (height, width) that was resized to `new`.

    Returns points float32 [P, N, 2], x y in px of the resized image, and labels int32 [P, N]. Every
    object is asked for about equally often. BadRecord where there is none.
    """
    objects = [each for each in annotations if each["area"] <= config.max_area * old[0] * old[1]]
    if not objects:
        raise BadRecord("no_annotation", f"none of {len(annotations)} can be prompted")
    odds = np.array(config.odds) / sum(config.odds)
    points = np.zeros((config.per_image, config.slots, 2), np.float32)
    labels = np.full((config.per_image, config.slots), ABSENT, np.int32)
    for row, index in enumerate(np.resize(rng.permutation(len(objects)), config.per_image)):
        coords, values = prompt(objects[index], rng.choice(3, p=odds), old, new, config, rng)
        points[row, : len(coords)] = coords
        labels[row, : len(values)] = values
    return points, labels


def prompt(annotation, kind, old, new, config, rng):  # -> coords [n, 2], labels [n] or [n + 1]
    """One prompt of a kind: 0 box, 1 point, 2 points. A box where there is nothing to click on."""
    if kind > 0:
        count = 1 if kind == 1 else rng.integers(1, config.max_points + 1)
        coords, labels = clicks(annotation, count, config, rng)
        if labels:
            return scale_coords(coords, old, new), [*labels, NOT_A_POINT]
    corners = scale_coords(annotation["box"].reshape(2, 2), old, new)
    return jittered(corners, new, config, rng), [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]


def clicks(annotation, count, config, rng):  # -> coords [n, 2], labels [n]
    """Up to `count` points on the object, some beside it, x y in px of the photograph.

    Uniform in the mask; without one the annotation's own point; without that, none.
    """
    inside, mask = (), annotation["mask"]
    if config.interior and mask is not None:
        mask = np.asarray(mask)
        inside = np.flatnonzero(mask)
    if not len(inside):
        own = annotation["point"]
        return ([], []) if own is None else ([own], [FOREGROUND])
    x0, y0, x1, y1 = annotation["box"].astype(int)
    beside = np.zeros_like(mask)
    beside[y0 : y1 + 1, x0 : x1 + 1] = True
    beside = np.flatnonzero(beside & ~mask)
    negatives = rng.binomial(count - 1, config.negatives) if len(beside) else 0
    pixels = [*rng.choice(inside, count - negatives), *rng.choice(beside, negatives)]
    rows, columns = np.unravel_index(pixels, mask.shape)
    labels = [FOREGROUND] * (count - negatives) + [BACKGROUND] * negatives
    return np.stack([columns, rows], -1), labels


def jittered(corners, shape, config, rng):  # [2, 2] -> [2, 2]
    """A box as a hand would draw it: normal noise on each corner, cut to the image.

    Segment Anything appendix A. A noise that would turn the box inside out is left away.
    """
    limit = np.float32([shape[1], shape[0]])
    noise = rng.normal(0, 1, (2, 2)) * config.jitter * (corners[1] - corners[0])
    moved = np.clip(corners + np.clip(noise, -config.max_jitter, config.max_jitter), 0, limit)
    return moved if (moved[1] > moved[0]).all() else corners
