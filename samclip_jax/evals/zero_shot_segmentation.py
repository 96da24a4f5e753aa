"""Zero-shot semantic segmentation by text from the CLIP head (SAM-CLIP 4.2, table 2)."""

from typing import Literal

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.classes import Background, Classes
from samclip_jax.inference import frames
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
    window: PositiveInt | None = None,
    stride: PositiveInt | None = None,
    upsample: Literal["logits", "labels"] = "logits",
    maskclip: bool = False,
    batch_size: PositiveInt = 16,
    limit: PositiveInt | None = None,
):
    """mIoU of the class whose text is nearest to each patch; the source's classes are the names.

    image_size: what images are resized to, square (4.2: 448); a CLIP sees its own size and answers
    with its patch tokens, plain or (maskclip) by its last block's values. window: the side of
    windows every `stride` px instead, of an image whose short side is image_size, see
    inference/windows.py; a CLIP's are of its own size. background, background_threshold, names: see
    classes.py. upsample: "logits" before the argmax (4.2), or "labels" after it (appendix C).
    """
    classes = Classes(source, background, background_threshold, names)
    text = model.class_embeddings(classes.texts, templates)
    scale = model.logit_scale
    rows = batch_size * model.device_count
    if window is None:
        size = model.side or image_size
        prepare = square(size)
    else:
        windows = Windows(image_size, model.side or window, stride, model.patch)

        def prepare(record):
            return windows.resized(record["image"]), field(record, "semantic")

    def dense(images):  # list of uint8 [h, w, 3] -> list of [rows, columns, D]
        if window is None:
            return model.patch_embeddings(stack(images, rows), maskclip)[: len(images)]
        parts = [windows.cut(image) for image in images]
        every = np.concatenate(parts)
        batches = (every[i : i + rows] for i in range(0, len(every), rows))
        features = [model.patch_embeddings(stack(each, rows), maskclip) for each in batches]
        features = np.concatenate(features)[: len(every)]
        ends = np.cumsum([len(each) for each in parts])[:-1]
        return [*map(windows.joined, images, np.split(features, ends))]

    def chosen(cosine):
        return classes.labels(cosine, scale)

    def measure(samples):
        images, semantics = zip(*samples, strict=True)
        pixels = 0
        for image, patches, semantic in zip(images, dense(images), semantics, strict=True):
            cosine = np.einsum("hwd,nd->nhw", patches, text)

            if upsample == "logits":
                size = image.shape[:2]
                labels = frames.label_map(cosine, size, size, semantic.shape, chosen)
            else:
                labels = nearest(chosen(cosine), semantic.shape)
            pixels += confusion(classes.truth(semantic), labels, classes.count)
        return {"pixels": pixels}

    def results(totals):
        yield from scores(name, totals["pixels"])

    name = "zero_shot_segmentation"
    return Evaluation(name, source, rows, limit, prepare, measure, results)


def square(size):
    """prepare(record): the image as uint8 [size, size, 3] and the semantic map at its own size."""

    def prepare(record):
        image = transforms.resize(record["image"], size, size, transforms.BICUBIC)
        return image, field(record, "semantic")

    return prepare


def nearest(labels, shape):  # [h, w], (H, W) -> [H, W]
    rows, columns = (
        (np.arange(side) + 0.5) * old // side for side, old in zip(shape, labels.shape, strict=True)
    )
    return labels[rows.astype(int)[:, None], columns.astype(int)]


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
