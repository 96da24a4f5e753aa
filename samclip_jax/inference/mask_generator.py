"""Masks of everything in a photograph; as segment_anything.SamAutomaticMaskGenerator."""

import dataclasses
from typing import Literal

import numpy as np
from pycocotools import mask as rle
from scipy import ndimage

from samclip_jax.errors import UserError
from samclip_jax.inference.predictor import Predictor
from samclip_jax.validation import NonNegativeFloat, PositiveInt, check

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
CROP_NMS_THRESH = 0.7  # the original's, which it also uses after min_mask_region_area


class MaskGenerator:
    """Prompts with a grid of points and keeps the sure, stable masks, each object once.

    The arguments are the original's, which explains them; crops (crop_n_layers) are not there.
    UserError names an argument that cannot be used.
    """

    def __init__(
        self,
        model,
        points_per_side=32,
        points_per_batch=64,
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        stability_score_offset=1.0,
        box_nms_thresh=0.7,
        crop_n_layers=0,
        min_mask_region_area=0,
        output_mode="binary_mask",
    ):
        model.require("masks", what="MaskGenerator")
        if crop_n_layers:
            raise UserError("MaskGenerator has no crops: leave crop_n_layers at 0")
        check("output_mode", output_mode, OutputMode)
        check("points_per_side", points_per_side, PositiveInt)
        check("points_per_batch", points_per_batch, PositiveInt)
        check("pred_iou_thresh", pred_iou_thresh, float)
        check("stability_score_thresh", stability_score_thresh, float)
        check("stability_score_offset", stability_score_offset, NonNegativeFloat)
        check("box_nms_thresh", box_nms_thresh, NonNegativeFloat)
        check("min_mask_region_area", min_mask_region_area, NonNegativeFloat)
        self.predictor = Predictor(model)
        self.points_per_side = points_per_side
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image):  # uint8 [H, W, 3] -> list of records
        """One dict a mask, the surest first:

        segmentation: bool [H, W], or run lengths; area: px; bbox: x, y, width, height;
        predicted_iou and stability_score: what it was filtered by; point_coords: [[x, y]] of its
        prompt; crop_box: the whole image.
        """
        self.predictor.set_image(image)
        height, width = self.predictor.original_size
        points = point_grid(self.points_per_side) * (width, height)
        candidates = [
            candidate
            for i in range(0, len(points), self.points_per_batch)
            for candidate in self._candidates(points[i : i + self.points_per_batch])
        ]
        self.predictor.reset_image()
        scores = np.array([candidate.predicted_iou for candidate in candidates])
        candidates = [candidates[i] for i in nms(_boxes(candidates), scores, self.box_nms_thresh)]
        if self.min_mask_region_area:
            candidates = self._without_small_regions(candidates)
        return [self._record(candidate, width, height) for candidate in candidates]

    def _candidates(self, points):  # float [K, 2], x, y in px of the photograph
        """What the filters leave of the masks for these points."""
        labels = np.ones((len(points), 1), np.int32)
        low_res_masks, scores = self.predictor.predict_low_res(points[:, None], labels)
        sure = (scores > self.pred_iou_thresh) | (self.pred_iou_thresh <= 0)
        prompt, answer = np.nonzero(sure)  # before they are made large
        logits = self.predictor.postprocess_masks(low_res_masks[prompt, answer])
        threshold = self.predictor.mask_threshold
        stability = stability_score(logits, threshold, self.stability_score_offset)
        stable = (stability >= self.stability_score_thresh) | (self.stability_score_thresh <= 0)
        return [
            Candidate(
                rle=encode(logits[i] > threshold),
                predicted_iou=float(scores[prompt[i], answer[i]]),
                stability_score=float(stability[i]),
                point=points[prompt[i]].tolist(),
            )
            for i in np.flatnonzero(stable)
        ]

    def _without_small_regions(self, candidates):
        """Small holes filled, small islands dropped; of duplicates the one left unchanged stays."""
        cleaned, unchanged = [], []
        for candidate in candidates:
            mask = rle.decode(candidate.rle).astype(bool)
            clean = remove_small_regions(mask, self.min_mask_region_area)
            cleaned.append(dataclasses.replace(candidate, rle=encode(clean)))
            unchanged.append(float((clean == mask).all()))
        kept = nms(_boxes(cleaned), np.array(unchanged), max(self.box_nms_thresh, CROP_NMS_THRESH))
        return [cleaned[i] for i in kept]

    def _record(self, candidate, width, height):
        mask = rle.decode(candidate.rle).astype(bool)
        x0, y0, x1, y1 = mask_box(mask)
        segmentation = {
            "binary_mask": lambda: mask,
            "uncompressed_rle": lambda: run_lengths(mask),
            "coco_rle": lambda: candidate.rle | {"counts": candidate.rle["counts"].decode()},
        }
        return {
            "segmentation": segmentation[self.output_mode](),
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "predicted_iou": candidate.predicted_iou,
            "point_coords": [candidate.point],
            "stability_score": candidate.stability_score,
            "crop_box": [0, 0, width, height],
        }


@dataclasses.dataclass(frozen=True)
class Candidate:
    rle: dict  # COCO's compressed run lengths: a grid of points gives thousands of masks
    predicted_iou: float
    stability_score: float
    point: list  # x, y of the prompt, px of the photograph


def point_grid(side):  # -> float [side * side, 2], x, y in 0 to 1, row by row
    line = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(line, line)
    return np.stack([x, y], -1).reshape(-1, 2)


def stability_score(logits, threshold, offset):  # [K, H, W] -> [K]
    """IoU of the masks at threshold + offset and threshold - offset; NaN for no mask at all."""
    inner = (logits > threshold + offset).sum((1, 2))
    outer = (logits > threshold - offset).sum((1, 2))
    return inner / np.where(outer > 0, outer, np.nan)


def mask_box(mask):  # bool [H, W] -> x0, y0, x1, y1
    """The outermost pixels; as in the original x1 and y1 are not one past them. Empty: zeros."""
    if not mask.any():
        return 0, 0, 0, 0
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]), int(ys[-1])


def _boxes(candidates):  # -> float [K, 4]
    boxes = [mask_box(rle.decode(candidate.rle)) for candidate in candidates]
    return np.array(boxes, float).reshape(-1, 4)


def nms(boxes, scores, threshold):  # [K, 4], [K] -> int [kept], best first
    """Greedy non-maximum suppression: drops a box whose IoU with a better one is over threshold."""
    order = np.argsort(-scores, kind="stable")
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        union = area[best] + area[order] - shared
        order = order[shared <= threshold * union]
    return np.array(kept, int)


def remove_small_regions(mask, area):  # bool [H, W] -> bool [H, W]
    """Fills holes, then drops islands, of under `area` px; the largest island always stays."""
    mask = mask | _small(~mask, area)
    small = _small(mask, area)
    if small.any() and (small == mask).all():
        regions, _ = ndimage.label(mask, np.ones((3, 3)))
        return regions == np.bincount(regions.ravel())[1:].argmax() + 1
    return mask & ~small


def _small(mask, area):
    """The connected parts, diagonals included, of under `area` px."""
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())
    sizes[0] = area
    return (sizes < area)[regions]


def run_lengths(mask):
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def encode(mask):  # bool [H, W] -> COCO's compressed run lengths
    return rle.encode(np.asfortranarray(mask, np.uint8))
