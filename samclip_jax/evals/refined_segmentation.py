"""Semantic segmentation by both heads (SAM-CLIP 4.4 and appendix C, tables 5 and 7)."""

import numpy as np

from samclip_jax.evals.batches import Evaluation, class_names, stack
from samclip_jax.evals.zero_shot_segmentation import confusion, scores, square
from samclip_jax.inference.refine import Refinement, refined_labels
from samclip_jax.validation import NonNegativeInt, PositiveInt

PAPER = Refinement()


def refined_segmentation(
    model,
    source,
    refinement: Refinement = PAPER,
    templates="openai",
    seed: NonNegativeInt = 0,
    batch_size: PositiveInt = 4,
    limit: PositiveInt | None = None,
):
    """mIoU of Predictor.segment(refine=True), on images resized to the encoder's square size.

    refinement: in a config the fields that differ from the paper's form, the defaults.
    """
    model.require("masks", "text", what="refined_segmentation")
    classes = class_names(source)
    text = model.class_embeddings(classes, templates)
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
        shapes = [semantic.shape for semantic in semantics]
        seeds = [(seed, index) for index in indices]
        labels = refined_labels(
            model, encoded.embedding, cosines, sizes[: len(samples)], shapes, refinement, seeds
        )
        pixels = np.zeros((len(classes),) * 2, int)
        for semantic, predicted in zip(semantics, labels, strict=True):
            pixels += confusion(semantic, predicted, len(classes))
        return {"pixels": pixels}

    def results(totals):
        yield from scores(name, totals["pixels"])

    name = "refined_segmentation"
    return Evaluation(name, source, rows, limit, prepare, measure, results)
