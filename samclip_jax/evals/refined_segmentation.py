"""Semantic segmentation by both heads (SAM-CLIP 4.4 and appendix C, tables 5 and 7)."""

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.classes import Background, Classes
from samclip_jax.evals.zero_shot_segmentation import confusion, scores
from samclip_jax.inference import frames
from samclip_jax.inference.reading import PAPER, Reading, pruned, require_readable
from samclip_jax.inference.refine import Refinement, refined_labels
from samclip_jax.inference.vote import voted_by_masks
from samclip_jax.inference.windows import Windows
from samclip_jax.validation import NonNegativeInt, PositiveInt, Share

REFINEMENT = Refinement()  # the paper's form


def refined_segmentation(
    model,
    source,
    refinement: Refinement = REFINEMENT,
    templates="openai",
    background: Background = "class",
    background_threshold: Share | None = None,
    names: str | None = None,
    reading: Reading = PAPER,
    seed: NonNegativeInt = 0,
    batch_size: PositiveInt = 4,
    limit: PositiveInt | None = None,
):
    """mIoU of Predictor.segment(refine=True), on images resized to the encoder's square size.

    refinement, reading: in a config the fields that differ from the paper's form, the defaults.
    background, background_threshold, names: see classes.py; the threshold is of the decoder's
    masks.
    """
    name = "refined_segmentation"
    model.require("masks", "text", what=name)
    require_readable(model, reading)
    classes = Classes(source, background, background_threshold, names)
    text = model.class_embeddings(classes.texts, templates)
    side, rows = model.encoder.image_size, batch_size * model.device_count
    windows = None if reading.window is None else Windows(reading, model.patch)

    def prepare(record):
        photograph = record["image"]
        image = transforms.resize(photograph, side, side, transforms.BICUBIC)
        whole = None if windows is None else windows.resized(photograph)
        semantic = classes.truth(field(record, "semantic"))
        return image, whole, photograph if reading.vote_points else None, semantic, record["index"]

    def cosines(tokens, images):  # of each float [texts, h, w], on the patches of the frame
        if windows is None:
            _, dense = model.head(tokens, reading=reading)
            return np.einsum("bhwd,nd->bnhw", dense[: len(images)], text)
        maps = windows.read(model, images, rows, reading)
        maps = (np.einsum("hwd,nd->nhw", dense, text) for dense in maps)
        return [frames.at_patches(cosines, (side, side), model.patch) for cosines in maps]

    def measure(samples):
        images, wholes, photographs, semantics, indices = zip(*samples, strict=True)
        sizes = np.full((rows, 2), side)
        encoded = model.encode_frames(stack(images, rows), sizes)
        maps = [
            classes.of_classes(pruned(each, model.logit_scale, reading.prune))
            for each in cosines(encoded.tokens, wholes)
        ]
        shapes = [semantic.shape for semantic in semantics]
        seeds = [(seed, index) for index in indices]
        arguments = encoded.embedding, maps, sizes[: len(samples)], shapes, refinement, seeds
        label_maps = refined_labels(model, *arguments, background_threshold)
        pixels = 0
        for semantic, labels, photograph in zip(semantics, label_maps, photographs, strict=True):
            labels = classes.of_asked(labels)
            if reading.vote_points:
                labels = voted_by_masks(model, photograph, labels, reading)
            pixels += confusion(semantic, labels, classes.count)
        return {"pixels": pixels}

    def results(totals):
        yield from scores(name, totals["pixels"])

    return Evaluation(name, source, rows, limit, prepare, measure, results)
