"""Masks for boxes, by COCO's and LVIS's average precision (SAM-CLIP table 1)."""

import collections
from typing import NamedTuple

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.data.annotations import BadAnnotation, box_of
from samclip_jax.data.coco import FEDERATED
from samclip_jax.data.detections import Detection
from samclip_jax.errors import UserError
from samclip_jax.evals.average_precision import (
    COCO_DETECTIONS,
    LVIS_DETECTIONS,
    average_precision,
)
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.masks import with_masks
from samclip_jax.inference import frames
from samclip_jax.inference.mask_generator import encode
from samclip_jax.models.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from samclip_jax.validation import NonNegativeInt, PositiveInt


class Prompt(NamedTuple):
    category: int  # from 1 on
    box: np.ndarray  # float32 [4], x0 y0 x1 y1, px of the photograph
    score: float | None  # the detector's; None: the mask's counts


def instance_segmentation(
    model,
    source,
    detections=None,
    mask_iterations: NonNegativeInt = 1,
    multimask: bool = True,
    batch_size: PositiveInt = 4,
    limit: PositiveInt | None = None,
):
    """AP, AP50, AP75, AP_small, AP_medium and AP_large of the masks for a detector's boxes: COCO's,
    or LVIS's, with AP_rare, AP_common and AP_frequent, where the source is LVIS.

    detections: what read_detections gives, whose scores the masks keep (as HQ-SAM does; Segment
    Anything does not say). None: the true boxes, with the predicted IoU as score; results
    are then called true_box_AP and so on. mask_iterations: how often a mask goes back as a prompt,
    with its box (Segment Anything, D.4: once; HQ-SAM: never). multimask: a box alone is answered by
    three masks, of which the surest counts (D.4), instead of by the single one (HQ-SAM).
    """
    task = "instance_segmentation"
    model.require("masks", what=task)
    side, rows = model.encoder.image_size, batch_size * model.device_count
    classes = getattr(source, "classes", None) or ["object"]
    ids = {name: id for id, name in enumerate(classes, 1)} | {None: 1}
    frequencies = getattr(source, "frequencies", None)
    # of detections with the same score those of the image with the smaller id come first
    image_ids = sorted(getattr(source, "image_ids", ()), key=lambda id: (len(id or ""), id or ""))
    image_numbers = {id: number for number, id in enumerate(image_ids, 1)}

    def prepare(record):
        """The frame, its size, the original one, the image and its objects as COCO's json has them,
        and the Prompts."""
        frame, size = frames.to_frame(record["image"], side)
        height, width = original = record["image"].shape[:2]
        annotations, crowds = field(record, "annotations"), record.get("crowds", ())
        id = image_numbers[record["image_id"]] if image_numbers else record["index"] + 1
        image = {"id": id, "height": height, "width": width}
        if frequencies:
            for name, key in FEDERATED.items():
                image[key] = [ids[category] for category in field(record, name)]
        annotated = [*with_masks(record, annotations)]
        boxes = [Detection(each["category"], xywh(each["box"]), None) for each, _ in annotated]
        objects = [
            {
                "image_id": id,
                "category_id": ids[each["category"]],
                "segmentation": run_lengths(mask),
                "area": float(each["area"]),
                "iscrowd": int(place >= len(annotated)),
            }
            for place, (each, mask) in enumerate([*annotated, *with_masks(record, crowds)])
        ]
        if detections is not None:
            boxes = detections.get(record["image_id"], [])
            if frequencies:
                present = {entry["category_id"] for entry in objects}
                boxes = limit_lvis(boxes, ids, present | {*image[FEDERATED["absent"]]})
            else:
                boxes = limit_coco(boxes)
        prompts = in_the_image(boxes, ids, record, original)
        return frame, size, original, image, objects, prompts

    def measure(samples):
        images, sizes, originals, entries, objects, prompts = zip(*samples, strict=True)
        encoded = model.encode_frames(stack(images, rows), stack(sizes, rows))
        index = np.repeat(np.arange(len(samples)), [len(each) for each in prompts])
        flat = [prompt for each in prompts for prompt in each]
        coords = [
            transforms.scale_coords(prompt.box.reshape(2, 2), originals[i], sizes[i])
            for i, prompt in zip(index, flat, strict=True)
        ]
        coords = np.reshape(coords, (-1, 2, 2))
        labels = np.tile((BOX_TOP_LEFT, BOX_BOTTOM_RIGHT), (len(flat), 1))
        arguments = encoded.embedding, index, coords, labels
        logits, scores = most_confident(*model.predict_masks(*arguments, multimask=multimask))
        for _ in range(mask_iterations):
            logits, scores = most_confident(*model.predict_masks(*arguments, logits))
        masks = []
        for i, (size, original, entry) in enumerate(zip(sizes, originals, entries, strict=True)):
            own = np.flatnonzero(index == i)
            for k, mask in zip(
                own, frames.to_masks(logits[own], (side, side), size, original), strict=True
            ):
                score = float(scores[k]) if flat[k].score is None else flat[k].score
                masks.append(
                    {
                        "image_id": entry["id"],
                        "category_id": flat[k].category,
                        "score": score,
                        "segmentation": run_lengths(mask),
                    }
                )
        objects = [entry for listed in objects for entry in listed]
        return {"entries": [*entries], "objects": objects, "masks": masks}

    def results(totals):
        entries, objects, masks = (totals[name] for name in ("entries", "objects", "masks"))
        if not objects:
            raise UserError(f"{source} has no object: nothing to compare masks with.")
        yield "instances", sum(not each["iscrowd"] for each in objects)
        yield "boxes", len(masks)
        if detections is not None:
            with_boxes = {mask["image_id"] for mask in masks}
            yield "images_without_boxes", totals["images"] - len(with_boxes)
        by_class = frequencies and [frequencies[name] for name in classes]
        precisions = average_precision(entries, objects, masks, classes, by_class)
        for name, value in precisions.items():
            yield name if detections is not None else f"true_box_{name}", value

    return Evaluation(task, source, rows, limit, prepare, measure, results)


def xywh(box):  # [x0, y0, x1, y1] -> [x, y, width, height]
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def most_confident(masks, scores):  # [K, M, h, w], [K, M] -> [K, h, w], [K]
    """Of each prompt's masks that with the highest predicted IoU."""
    prompts, highest = np.arange(len(scores)), scores.argmax(1)
    return masks[prompts, highest], scores[prompts, highest]


def run_lengths(mask):  # bool [H, W] -> COCO's compressed run lengths, text
    encoded = encode(mask)
    return {"size": [*mask.shape], "counts": encoded["counts"].decode()}


def limit_coco(detections):
    """Those of an image that COCO's AP counts: the COCO_DETECTIONS surest of each class."""
    by_class = collections.defaultdict(list)
    for each in detections:
        by_class[each.category].append(each)
    return [each for several in by_class.values() for each in top_scoring(several, COCO_DETECTIONS)]


def limit_lvis(detections, ids, judged):
    """Those of an image that LVIS's AP counts: of the LVIS_DETECTIONS surest those of a class that
    is in the image, or known not to be."""
    return [
        each for each in top_scoring(detections, LVIS_DETECTIONS) if ids[each.category] in judged
    ]


def top_scoring(detections, most):
    return sorted(detections, key=lambda each: -each.score)[:most]


def in_the_image(detections, ids, record, size):
    """A Prompt for each detection that lies in the image; others are dropped from the record."""
    prompts = []
    for each in detections:
        try:
            box = box_of(each.bbox, size)
            prompts.append(Prompt(ids[each.category], box, each.score))
        except BadAnnotation as bad:
            record["dropped"].append((f"a detected {each.category}", bad.reason, bad.detail))
    return prompts
