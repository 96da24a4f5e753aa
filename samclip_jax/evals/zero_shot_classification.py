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
        scores = model.encode_crops(stack(images, rows))[: len(samples)] @ text.T
        ranked = np.argsort(-scores, axis=1, kind="stable")
        return {"hits": (ranked == np.array(labels)[:, None]).sum(0)}

    def results(totals):
        hits = totals["hits"]  # hits[k]: images whose label is the k-th likeliest class
        yield "zero_shot_accuracy", hits[0] / totals["images"]
        yield "zero_shot_top5_accuracy", hits[:5].sum() / totals["images"]

    name = "zero_shot_classification"
    return Evaluation(name, source, rows, limit, prepare, measure, results)
