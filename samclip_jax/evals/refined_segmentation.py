"""Semantic segmentation by both heads (SAM-CLIP 4.4 and appendix C, tables 5 and 7)."""

import numpy as np

from samclip_jax.evals.batches import Batches, class_names, stack
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
    side = model.encoder.image_size
    total = np.zeros((len(classes),) * 2, int)
    batches = Batches(source, square(side), batch_size, limit, "refined_segmentation")
    for batch in batches:
        images, semantics = zip(*batch, strict=True)
        sizes = np.full((batch_size, 2), side)
        encoded = model.encode_frames(stack(images, batch_size), sizes)
        _, dense = model.head(encoded.tokens)
        cosines = np.einsum("bhwd,nd->bnhw", dense[: len(batch)], text)
        shapes = [semantic.shape for semantic in semantics]
        seeds = [(seed, batches.images + i) for i in range(len(batch))]
        labels = refined_labels(
            model, encoded.embedding, cosines, sizes[: len(batch)], shapes, refinement, seeds
        )
        for semantic, predicted in zip(semantics, labels, strict=True):
            total += confusion(semantic, predicted, len(classes))
    yield from batches.counts()
    yield from scores("refined_segmentation", total)
