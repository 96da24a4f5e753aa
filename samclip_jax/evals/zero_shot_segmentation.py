"""Zero-shot semantic segmentation by text from the CLIP head (SAM-CLIP 4.2, table 2)."""

from typing import Literal

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.classes import Background, Classes
from samclip_jax.inference import frames
from samclip_jax.inference.reading import PAPER, Reading, pruned, require_readable
from samclip_jax.inference.vote import voted_by_masks
from samclip_jax.inference.windows import Windows
from samclip_jax.validation import PositiveInt, Share


def zero_shot_segmentation(
    model,
    source,
    image_size: PositiveInt = 448,
    templates="openai",
    background: Background = "class",
    background_threshold: Share | None = None,
    names: str | None = None,
    upsample: Literal["logits", "labels"] = "logits",
    maskclip: bool = False,
    reading: Reading = PAPER,
    batch_size: PositiveInt = 16,
    limit: PositiveInt | None = None,
):
    """mIoU of the class whose text is nearest to each patch; the source's classes are the names.

    image_size: what images are resized to, square (4.2: 448), where the reading has no windows; a
    CLIP sees its own size and answers with its patch tokens, plain or (maskclip) by its last
    block's values. background, background_threshold, names: see classes.py. upsample: "logits"
    before the argmax (4.2), or "labels" after it (appendix C). reading: in a config the fields that
    differ from the paper's form.
    """
    require_readable(model, reading)
    classes = Classes(source, background, background_threshold, names)
    text = model.class_embeddings(classes.texts, templates)
    scale = model.logit_scale
    rows = batch_size * model.device_count
    if maskclip and model.side is None:
        raise UserError("maskclip is for a plain CLIP: leave it False for a merged model")
    windows = None if reading.window is None else Windows(reading, model.patch)

    def prepare(record):
        photograph = record["image"]
        if windows is None:
            side = model.side or image_size
            image = transforms.resize(photograph, side, side, transforms.BICUBIC)
        else:
            image = windows.resized(photograph)
        semantic = classes.truth(field(record, "semantic"))
        return image, semantic, photograph if reading.vote_points else None

    def chosen(cosine):
        return classes.labels(cosine, scale)

    def measure(samples):
        images, semantics, photographs = zip(*samples, strict=True)
        if windows is None:
            dense = model.patch_embeddings(stack(images, rows), maskclip, reading)
        else:
            dense = windows.read(model, images, rows, reading, maskclip=maskclip)
        pixels = 0
        for image, patches, semantic, photograph in zip(
            images, dense[: len(samples)], semantics, photographs, strict=True
        ):
            cosine = pruned(np.einsum("hwd,nd->nhw", patches, text), scale, reading.prune)
            if upsample == "logits":
                size = image.shape[:2]
                labels = frames.label_map(cosine, size, size, semantic.shape, chosen)
            else:
                labels = frames.nearest(chosen(cosine), semantic.shape)
            if reading.vote_points:
                labels = voted_by_masks(model, photograph, labels, reading)
            pixels += confusion(semantic, labels, classes.count)
        return {"pixels": pixels}

    def results(totals):
        yield from scores(name, totals["pixels"])

    name = "zero_shot_segmentation"
    return Evaluation(name, source, rows, limit, prepare, measure, results)


def confusion(truth, labels, classes):  # int [H, W] -> int [truth, label], the last label: none
    """Counts of pixels; in the truth -1 does not count, among the labels it is none of the classes,
    which is wrong."""
    counted = truth >= 0
    labels = np.where(labels < 0, classes, labels)[counted]
    pairs = truth[counted].astype(int) * (classes + 1) + labels
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def scores(name, total):  # as confusion has it
    """mIoU over the classes that occur in the truth, and the share of pixels that are right."""
    right, present = np.diag(total), total.sum(1) > 0
    if not present.any():
        raise UserError("no pixel of these maps has a class: nothing to compare with")
    union = total.sum(0)[:-1] + total.sum(1) - right
    yield f"{name}_miou", (right[present] / union[present]).mean()
    yield f"{name}_pixel_accuracy", right.sum() / total.sum()
