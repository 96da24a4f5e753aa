"""Label maps from both heads: the CLIP head says what and where, SAM's decoder says how far."""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import ndimage, special

from samclip_jax.inference import frames
from samclip_jax.models.prompt_encoder import (
    ABSENT,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    NOT_A_POINT,
)
from samclip_jax.validation import NonNegativeFloat, NonNegativeInt, Share, Validated

BOX = (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)
MOST = 100.0  # more than any of SAM's logits
CELLS = 4  # of the decoder's masks along one side of a patch


@dataclasses.dataclass(frozen=True)
class Refinement(Validated):
    """How the CLIP head's map becomes prompts. The defaults are the paper's form (4.4, appendix C)
    where it says one; it does not say how cosines become SAM's logits."""

    points: NonNegativeInt = 3  # a prompt, at most; the paper: 1 to 3
    threshold: Share = 0.5  # points are drawn where the class is surer than this (paper, VOC)
    scale: NonNegativeFloat | None = None  # of the cosines before their softmax; model.logit_scale
    limit: NonNegativeFloat = 10.0  # of the log odds of the mask prompt; SAM's logits reach that
    components: bool = False  # a prompt for every connected part of a class; the paper: a class
    min_patches: NonNegativeFloat = 4.0  # of a prompted class or part; the largest counts always
    clip_weight: NonNegativeFloat = 0.0  # of the log odds in the decoder's logits; the paper: 0
    peak: bool = False  # the points are the surest ones of the class, not drawn
    box: bool = False  # a prompt has the box of its class or part, too
    mask_scale: NonNegativeFloat = 1.0  # of the log odds as a mask prompt
    min_iou: Share | None = None  # a mask with a lower predicted IoU is the CLIP head's instead


class Prompt(NamedTuple):
    category: int  # index of the class
    points: np.ndarray  # float32 [points + 1 or, with a box, 2, 2], px of the frame
    labels: np.ndarray  # int32 [as many]
    mask: np.ndarray  # float32 [4h, 4w], logits


def refined_labels(
    model, embedding, cosines, sizes, originals, options, seeds, background_threshold=None
):
    """Label maps of a batch of encoder passes, for every image int32 [H, W] (its original size).

    embedding [B, h, w, C]. For every image: cosine float [N, rows, columns], over the patches that
    the photograph covers; its size in the frame and its original one, (height, width) px; a seed
    for the points that are drawn. background_threshold: where no mask is as probable as this the
    label is -1.
    """
    grid = tuple(CELLS * side for side in embedding.shape[1:3])
    stride = model.encoder.patch / CELLS
    scale = model.logit_scale if options.scale is None else options.scale
    odds = [log_odds(cosine, scale, options.limit) for cosine in cosines]
    prompts = [
        choose_prompts(each, grid, stride, options, np.random.default_rng(seed))
        for each, seed in zip(odds, seeds, strict=True)
    ]
    image = np.repeat(np.arange(len(prompts)), [len(chosen) for chosen in prompts])
    flat = [prompt for chosen in prompts for prompt in chosen]
    category, points, labels, masks = (np.stack(part) for part in zip(*flat, strict=True))
    prompted = masks * np.float32(options.mask_scale)
    low_res_masks, scores = model.predict_masks(embedding, image, points, labels, prompted)
    if options.min_iou is not None:
        unsure = (scores < options.min_iou)[..., None, None]
        low_res_masks = np.where(unsure, masks[:, None], low_res_masks)

    extent = (model.encoder.image_size,) * 2
    maps = []
    for i, (size, original) in enumerate(zip(sizes, originals, strict=True)):
        classes = np.unique(category[image == i])
        logits = np.stack(
            [low_res_masks[(image == i) & (category == each), 0].max(0) for each in classes]
        )
        rows, columns = odds[i].shape[1:]
        logits[:, :rows, :columns] += options.clip_weight * odds[i][classes]
        if background_threshold is not None:
            constant = np.clip(special.logit(background_threshold), -MOST, MOST)
            logits = np.concatenate([logits, np.full_like(logits[:1], constant)])
            classes = np.append(classes, -1)
        labels = frames.label_map(logits, extent, size, original)
        maps.append(classes[labels].astype(np.int32))
    return maps


def log_odds(cosine, scale, limit):  # float [N, rows, columns] -> float32 [N, 4 rows, 4 columns]
    """What the CLIP head would give as mask logits: log p / (1 - p) of its softmax, limited."""
    size = tuple(CELLS * side for side in cosine.shape[1:])
    logits = scale * frames.to_photograph(cosine, size, size, size)
    sure = special.log_softmax(logits, axis=0)
    with np.errstate(divide="ignore"):
        odds = sure - np.log(-np.expm1(sure))
    return np.clip(odds, -limit, limit)


def choose_prompts(odds, grid, stride, options, rng):
    """A Prompt for every class that is the likeliest somewhere, or for every part of one; none for
    those too small.

    odds [N, rows, columns] on the mask grid, whose cells are `stride` px of the frame wide.
    """
    labels = odds.argmax(0)
    parts = [
        (category, part)
        for category in np.unique(labels)
        for part in connected(labels == category, options.components)
    ]
    areas = np.array([part.sum() for _, part in parts])
    least = min(areas.max(), options.min_patches * CELLS**2)
    prompts = []
    for category, part in (parts[i] for i in np.flatnonzero(areas >= least)):
        confidence = special.expit(odds[category]) * part
        if (confidence > options.threshold).any():
            confidence = np.where(confidence > options.threshold, confidence, 0)
        weight = confidence.ravel().astype(np.float64)
        count = min(options.points, np.count_nonzero(weight))
        if options.peak:
            chosen = np.argsort(-weight, kind="stable")[:count]
        else:
            chosen = rng.choice(labels.size, count, replace=False, p=weight / weight.sum())
        last = BOX if options.box else (NOT_A_POINT,)
        points = np.zeros((options.points + len(last), 2), np.float32)
        kinds = np.full(len(points), ABSENT, np.int32)
        y, x = np.unravel_index(chosen, labels.shape)
        points[:count] = (np.stack([x, y], -1) + 0.5) * stride - 0.5
        kinds[:count], kinds[-len(last) :] = FOREGROUND, last
        if options.box:
            y, x = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
            points[-2:] = np.array([[x[0], y[0]], [x[-1] + 1, y[-1] + 1]]) * stride
        mask = np.full(grid, -options.limit, np.float32)
        elsewhere = (labels == category) & ~part
        mask[: labels.shape[0], : labels.shape[1]] = np.where(
            elsewhere, -options.limit, odds[category]
        )
        prompts.append(Prompt(int(category), points, kinds, mask))
    return prompts


def connected(mask, apart):  # bool [h, w] -> list of bool [h, w]
    """The mask, or (apart) its connected parts, diagonal neighbours included."""
    if not apart:
        return [mask]
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    return [parts == i + 1 for i in range(count)]
