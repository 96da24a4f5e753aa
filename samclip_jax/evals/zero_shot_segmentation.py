"""Zero-shot semantic segmentation by text from the CLIP head (SAM-CLIP 4.2, table 2)."""

from typing import Literal

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, class_names, field, stack
from samclip_jax.inference import frames
from samclip_jax.validation import PositiveInt


def zero_shot_segmentation(
    model,
    source,
    image_size: PositiveInt = 448,
    templates="openai",
    upsample: Literal["logits", "labels"] = "logits",
    maskclip: bool = False,
    batch_size: PositiveInt = 16,
    limit: PositiveInt | None = None,
):
    """mIoU of the class whose text is nearest to each patch; the source's classes are the names.

    image_size: what images are resized to, square (4.2: 448); a CLIP sees its own size and answers
    with its patch tokens, plain or (maskclip) by its last block's values. upsample: "logits" before
    the argmax (4.2), or "labels" after it (appendix C).
    """
    classes = class_names(source)
    text = model.class_embeddings(classes, templates)
    size, rows = model.side or image_size, batch_size * model.device_count
    whole = (size, size)

    def measure(samples):
        images, semantics = zip(*samples, strict=True)
        dense = model.patch_embeddings(stack(images, rows), maskclip)[: len(samples)]
        pixels = np.zeros((len(classes),) * 2, int)
        for patches, semantic in zip(dense, semantics, strict=True):
            cosine = np.einsum("hwd,nd->nhw", patches, text)
            if upsample == "logits":
                labels = frames.label_map(cosine, whole, whole, semantic.shape)
            else:
                labels = nearest(cosine.argmax(0), semantic.shape)
            pixels += confusion(semantic, labels, len(classes))
        return {"pixels": pixels}

    def results(totals):
        yield from scores(name, totals["pixels"])

    name = "zero_shot_segmentation"
    return Evaluation(name, source, rows, limit, square(size), measure, results)


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


def confusion(truth, labels, classes):  # int [H, W], -1 is ignored -> [truth, label]
    kept = truth >= 0
    pairs = truth[kept].astype(int) * classes + labels[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores(name, total):
    """mIoU over the classes that occur in the truth, and the share of pixels that are right."""
    right, present = np.diag(total), total.sum(1) > 0
    if not present.any():
        raise UserError("no pixel of these maps has a class: nothing to compare with")
    union = total.sum(0) + total.sum(1) - right
    yield f"{name}_miou", (right[present] / union[present]).mean()
    yield f"{name}_pixel_accuracy", right.sum() / total.sum()
