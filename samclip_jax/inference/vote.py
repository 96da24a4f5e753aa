"""A label map put right by the masks of everything in the photograph."""

import numpy as np

from samclip_jax.inference.frames import nearest
from samclip_jax.inference.mask_generator import MaskGenerator


def voted_by_masks(model, photograph, labels, reading):  # uint8 [H, W, 3], int [h, w] -> int [h, w]
    """`voted` by the masks that MaskGenerator finds with the reading's vote_points, vote_iou and
    vote_stability."""
    generator = MaskGenerator(
        model,
        points_per_side=reading.vote_points,
        pred_iou_thresh=reading.vote_iou,
        stability_score_thresh=reading.vote_stability,
    )
    masks = [record["segmentation"] for record in generator.generate(photograph)]
    return voted(labels, [nearest(mask, labels.shape) for mask in masks])


def voted(labels, masks):  # int [H, W], bool [H, W] each -> int [H, W]
    """In every mask the most frequent label of its pixels (CorrCLIP), the small masks over the
    large ones."""
    result = labels.copy()
    for mask in sorted(masks, key=lambda mask: -mask.sum()):
        if mask.any():
            values, counts = np.unique(labels[mask], return_counts=True)
            result[mask] = values[counts.argmax()]
    return result
