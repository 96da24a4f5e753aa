"""Retrieval between images and captions (SAM-CLIP table 1, by DataComp's protocol)."""

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.data.decode import BadRecord
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.inference.texts import text_list
from samclip_jax.validation import PositiveInt

RANKS = (1, 5, 10)
ROWS = 1024  # queries that are ranked at once


def retrieval(
    model,
    source,
    image_size: PositiveInt = 336,
    captions: PositiveInt | None = 5,
    batch_size: PositiveInt = 64,
    limit: PositiveInt | None = None,
):
    """Recall at 1, 5 and 10 of images by their captions and of captions by their image.

    mean_recall_at_1, of both directions, is what table 1 calls image retrieval. image_size: of a
    merged model's centre crop; a CLIP sees its own size. captions: of each image the first so many,
    of COCO's five to seven the first five; None: all. They are taken without a template.
    """
    size, rows = model.side or image_size, batch_size * model.device_count

    def prepare(record):
        try:
            texts = text_list("captions", field(record, "captions"))[:captions]
        except UserError as error:
            raise BadRecord("bad_annotation", error) from error
        return transforms.centre_crop(record["image"], size), texts

    def measure(samples):
        crops, texts = zip(*samples, strict=True)
        return {
            "image": [*model.encode_crops(stack(crops, rows))[: len(samples)]],
            "text": [*model.encode_text([text for each in texts for text in each])],
            "captions": [len(each) for each in texts],
        }

    def results(totals):
        images, texts = np.stack(totals["image"]), np.stack(totals["text"])
        numbers = np.arange(len(images))
        owners = np.repeat(numbers, totals["captions"])  # the image that each text belongs to
        yield "captions", len(texts)
        by_text = recalls(texts, owners, images, numbers)
        by_image = recalls(images, numbers, texts, owners)
        for rank, image, text in zip(RANKS, by_text, by_image, strict=True):
            yield f"image_recall_at_{rank}", image
            yield f"text_recall_at_{rank}", text
        yield "mean_recall_at_1", (by_text[0] + by_image[0]) / 2

    return Evaluation("retrieval", source, rows, limit, prepare, measure, results)


def recalls(queries, wanted, gallery, owners):  # [Q, D], int [Q], [G, D], int [G] -> [3]
    """The share of queries whose RANKS nearest neighbours have one with the owner they want."""
    hits = np.zeros(len(RANKS), int)
    for first in range(0, len(queries), ROWS):
        rows = slice(first, first + ROWS)
        nearest = np.argsort(-(queries[rows] @ gallery.T), axis=1, kind="stable")[:, : RANKS[-1]]
        right = owners[nearest] == wanted[rows, None]
        hits += [right[:, :rank].any(1).sum() for rank in RANKS]
    return hits / len(queries)
