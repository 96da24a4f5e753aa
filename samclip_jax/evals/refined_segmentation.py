"""Semantic segmentation by both heads (SAM-CLIP 4.4 and appendix C, tables 5 and 7)."""

import numpy as np

from samclip_jax.evals.batches import Evaluation, stack
from samclip_jax.evals.classes import Background, Classes
from samclip_jax.evals.zero_shot_segmentation import confusion, scores, square
from samclip_jax.inference.refine import Refinement, refined_labels
from samclip_jax.validation import NonNegativeInt, PositiveInt, Share

PAPER = Refinement()


def refined_segmentation(
    model,
    source,
    refinement: Refinement = PAPER,
    templates="openai",
    background: Background = "class",
    background_threshold: Share | None = None,
    names: str | None = None,
    seed: NonNegativeInt = 0,
    batch_size: PositiveInt = 4,
    limit: PositiveInt | None = None,
):
    """mIoU of Predictor.segment(refine=True), on images resized to the encoder's square size.

    refinement: in a config the fields that differ from the paper's form, the defaults. background,
    background_threshold, names: see classes.py; the threshold is of the decoder's masks.
    """
    model.require("masks", "text", what="refined_segmentation")
    classes = Classes(source, background, background_threshold, names)
    text = model.class_embeddings(classes.texts, templates)
    side, rows = model.encoder.image_size, batch_size * model.device_count
    resized = square(side)

    def prepare(record):
        return *resized(record), record["index"]

    def measure(samples):
        images, semantics, indices = zip(*samples, strict=True)
        sizes = np.full((rows, 2), side)
        encoded = model.encode_frames(stack(images, rows), sizes)
        _, dense = model.head(encoded.tokens)
        cosines = np.einsum("bhwd,nd->bnhw", dense[: len(samples)], text)
        cosines = [classes.of_classes(cosine) for cosine in cosines]
        shapes = [semantic.shape for semantic in semantics]
        seeds = [(seed, index) for index in indices]
        photographs = cosines, sizes[: len(samples)], shapes
        labels = refined_labels(
            model, encoded.embedding, *photographs, refinement, seeds, background_threshold
        )
        pixels = 0
        for semantic, predicted in zip(semantics, labels, strict=True):
            predicted = np.append(classes.asked, classes.background)[predicted]
            pixels += confusion(classes.truth(semantic), predicted, classes.count)
        return {"pixels": pixels}

    def results(totals):
        yield from scores(name, totals["pixels"])

    name = "refined_segmentation"
    return Evaluation(name, source, rows, limit, prepare, measure, results)
