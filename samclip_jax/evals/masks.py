"""Masks for a box or for a point, against the true ones (Segment Anything, section 7.1)."""

from typing import Literal

import numpy as np
from scipy import ndimage

from samclip_jax.data import transforms
from samclip_jax.data.decode import BadRecord
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.inference import frames
from samclip_jax.models.prompt_encoder import (
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    NOT_A_POINT,
)
from samclip_jax.validation import PositiveInt

Threshold = float | Literal["best"] | None  # a logit
THRESHOLDS = np.arange(-10, 10.25, 0.25)  # that "best" chooses from, logits


def box_masks(
    model,
    source,
    threshold: Threshold = None,
    batch_size: PositiveInt = 4,
    limit: PositiveInt | None = None,
):
    """Mean IoU over instances for the single mask of each one's box: `box_miou`, at logit 0.

    threshold: a logit to report too, or "best" to find the one with the highest mean (tune it on
    other images than those that are reported). Area ratio: of all predicted masks to the true ones.
    """
    return _masks(model, source, "box", box_prompt, False, threshold, batch_size, limit)


def point_masks(
    model,
    source,
    threshold: Threshold = None,
    batch_size: PositiveInt = 4,
    limit: PositiveInt | None = None,
):
    """The same for the innermost point of each mask; of three answers the surest counts."""
    return _masks(model, source, "point", point_prompt, True, threshold, batch_size, limit)


def box_prompt(box, mask):
    return box.reshape(2, 2), (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)


def point_prompt(box, mask):
    """The pixel that lies farthest from the mask's outline."""
    (window,) = ndimage.find_objects(mask.astype(np.int8))
    depth = ndimage.distance_transform_edt(np.pad(mask[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    point = (window[1].start + x, window[0].start + y)
    return (point, (0, 0)), (FOREGROUND, NOT_A_POINT)


def _masks(model, source, name, prompt, multimask, threshold, batch_size, limit):
    task = f"{name}_masks"
    model.require("masks", what=task)
    side, rows = model.encoder.image_size, batch_size * model.device_count
    thresholds = np.array([0.0])
    if threshold is not None:
        thresholds = np.union1d(0, THRESHOLDS if threshold == "best" else threshold)

    def prepare(record):
        """The frame, its size, the original one, and (coords, labels, mask) for each instance."""
        frame, size = frames.to_frame(record["image"], side)
        original = record["image"].shape[:2]
        instances = []
        for annotation, mask in with_masks(record, field(record, "annotations")):
            coords, labels = prompt(annotation["box"], mask)
            instances.append((transforms.scale_coords(coords, original, size), labels, mask))
        if not instances:
            raise BadRecord("no_annotation", record["key"])
        return frame, size, original, instances

    def measure(samples):
        images, sizes, originals, instances = zip(*samples, strict=True)
        encoded = model.encode_frames(stack(images, rows), stack(sizes, rows))
        index = np.repeat(np.arange(len(samples)), [len(each) for each in instances])
        flat = [instance for each in instances for instance in each]
        coords, labels, masks = zip(*flat, strict=True)
        low_res_masks, scores = model.predict_masks(
            encoded.embedding, index, coords, labels, multimask=multimask
        )
        surest = low_res_masks[np.arange(len(flat)), scores.argmax(1)]
        ious, areas = np.zeros(len(thresholds)), np.zeros(len(thresholds), int)
        for image, logits, mask in zip(index, surest, masks, strict=True):
            logits = frames.to_photograph(logits, (side, side), sizes[image], originals[image])
            iou, area = overlap(logits, mask, thresholds)
            ious, areas = ious + iou, areas + area
        true_area = int(sum(mask.sum() for mask in masks))
        return {"ious": ious, "areas": areas, "true_area": true_area, "instances": len(flat)}

    def results(totals):
        count, ious = totals["instances"], totals["ious"] / totals["instances"]
        area_ratios = totals["areas"] / totals["true_area"]
        yield "instances", count
        at_zero = int(np.flatnonzero(thresholds == 0)[0])
        yield f"{name}_miou", ious[at_zero]
        yield f"{name}_area_ratio", area_ratios[at_zero]
        if threshold is not None:
            is_best = threshold == "best"
            other = ious.argmax() if is_best else np.flatnonzero(thresholds == threshold)[0]
            yield f"{name}_threshold", thresholds[other]
            yield f"{name}_miou_at_threshold", ious[other]
            yield f"{name}_area_ratio_at_threshold", area_ratios[other]

    return Evaluation(task, source, rows, limit, prepare, measure, results)


def with_masks(record, annotations):
    """(annotation, bool [H, W]) of a record's annotations; one with no mask, or with an empty one,
    is dropped."""
    for place, annotation in enumerate(annotations):
        mask = None if annotation["mask"] is None else np.asarray(annotation["mask"])
        if mask is not None and mask.any():
            yield annotation, mask
        else:
            record["dropped"].append((f"#{place}", "no_mask", "no mask, or an empty one"))


def overlap(logits, mask, thresholds):  # [H, W], bool [H, W], [T] ascending -> [T], [T]
    """IoU and area of logits > t for every threshold t, from one pass over the pixels."""
    bins = np.searchsorted(thresholds, logits.ravel())  # the number of thresholds below each pixel

    def above(bins):
        counts = np.bincount(bins, minlength=len(thresholds) + 1)
        return counts[::-1].cumsum()[::-1][1:]

    area, shared = above(bins), above(bins[mask.ravel()])
    return shared / (area + mask.sum() - shared), area
