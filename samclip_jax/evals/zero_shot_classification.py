"""Zero-shot classification of whole images (SAM-CLIP 4.2, table 1)."""

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.evals.batches import Evaluation, class_names, field, stack
from samclip_jax.validation import PositiveInt


def zero_shot_classification(
    model,
    source,
    image_size: PositiveInt = 336,
    templates="openai",
    batch_size: PositiveInt = 64,
    limit: PositiveInt | None = None,
):
    """Top-1 and top-5 accuracy; the source's classes are the names.

    image_size: of a merged model's centre crop (table 1: 336); a CLIP sees its own size.
    """
    classes = class_names(source)
    text = model.class_embeddings(classes, templates)
    size, rows = model.side or image_size, batch_size * model.device_count

    def prepare(record):
        return transforms.centre_crop(record["image"], size), field(record, "label")

    def measure(samples):
        images, labels = zip(*samples, strict=True)
        cosines = model.encode_crops(stack(images, rows))[: len(samples)] @ text.T
        return {"hits": hits(cosines, labels)}

    def results(totals):
        yield from accuracies("zero_shot", totals)

    name = "zero_shot_classification"
    return Evaluation(name, source, rows, limit, prepare, measure, results)


def hits(scores, labels):  # float [B, classes], int [B] -> int [classes]
    """The number of images whose label is the likeliest class, the second, and so on."""
    ranked = np.argsort(-scores, axis=1, kind="stable")
    return (ranked == np.array(labels)[:, None]).sum(0)


def accuracies(name, totals):
    """Top-1 and top-5 accuracy by the sum of all `hits`."""
    yield f"{name}_accuracy", totals["hits"][0] / totals["images"]
    yield f"{name}_top5_accuracy", totals["hits"][:5].sum() / totals["images"]
