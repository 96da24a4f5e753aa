"""Semantic segmentation by two models one after the other: SAM segments everything, CLIP names each
crop (SAM-CLIP table 5, the baseline "SAM+CLIP pipeline")."""

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.classes import Background, Classes
from samclip_jax.evals.zero_shot_segmentation import confusion, scores
from samclip_jax.inference import frames
from samclip_jax.inference.mask_generator import MaskGenerator
from samclip_jax.validation import PositiveInt, Share


def cascade_segmentation(
    model,
    source,
    clip=None,
    image_size: PositiveInt = 336,
    points_per_side: PositiveInt = 32,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    templates="openai",
    background: Background = "class",
    background_threshold: Share | None = None,
    names: str | None = None,
    batch_size: PositiveInt = 64,
    limit: PositiveInt | None = None,
):
    """mIoU of the label that the boxes of MaskGenerator's masks get as images of their own.

    model: makes the masks; points_per_side, pred_iou_thresh, stability_score_thresh: of its
    MaskGenerator, by default those of SamAutomaticMaskGenerator. clip: the Model that names
    them; None: the merged model itself, whose crops are image_size px. Of masks that overlap the
    smallest counts; a pixel of none is background or, where that is no class, wrong. background,
    background_threshold, names: see classes.py. batch_size: of crops, for which the CLIP's own
    preprocessing is used.
    """
    name = "cascade_segmentation"
    model.require("masks", what=name)
    namer = model if clip is None else clip
    namer.require("summary", "text", what=f"{name} without clip" if clip is None else "clip")
    classes = Classes(source, background, background_threshold, names)
    text = namer.class_embeddings(classes.texts, templates)
    scale = namer.logit_scale
    filters = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
    }
    side, rows = namer.side or image_size, batch_size * namer.device_count

    def prepare(record):
        return record["image"], field(record, "semantic")

    def named(crops):  # list of uint8 [side, side, 3] -> int [len(crops)]
        batches = (crops[i : i + rows] for i in range(0, len(crops), rows))
        images = [namer.encode_crops(stack(each, rows))[: len(each)] for each in batches]
        return classes.labels(text @ np.concatenate(images).T, scale) if images else []

    def measure(samples):
        ((image, semantic),) = samples
        records = MaskGenerator(model, **filters).generate(image)
        records.sort(key=lambda record: -record["area"])
        crops = [transforms.centre_crop(boxed(image, each["bbox"]), side) for each in records]
        labels = np.full(image.shape[:2], classes.background)
        for record, label in zip(records, named(crops), strict=True):
            labels[record["segmentation"]] = label
        labels = frames.nearest(labels, semantic.shape)
        pixels = confusion(classes.truth(semantic), labels, classes.count)
        return {"pixels": pixels, "masks": len(records)}

    def results(totals):
        yield "masks", totals["masks"]
        yield from scores(name, totals["pixels"])

    return Evaluation(name, source, 1, limit, prepare, measure, results)


def boxed(image, bbox):  # [H, W, 3], x, y, width, height as MaskGenerator has them -> [h, w, 3]
    x, y, width, height = bbox
    return image[y : y + height + 1, x : x + width + 1]
