"""Classification by the nearest training images (DINO, arXiv 2104.14294, appendix F)."""

import jax
import jax.numpy as jnp
import numpy as np

from samclip_jax import sharding
from samclip_jax.data import transforms
from samclip_jax.evals.batches import Evaluation, field
from samclip_jax.evals.features import Features, class_numbers, extract_features
from samclip_jax.evals.zero_shot_classification import accuracies, hits
from samclip_jax.inference.model import Layer
from samclip_jax.models.layers import unit
from samclip_jax.validation import PositiveFloat, PositiveInt


def knn(
    model,
    source,
    train,
    neighbours: PositiveInt = 20,
    temperature: PositiveFloat = 0.07,
    layer: Layer = None,
    image_size: PositiveInt = 224,
    batch_size: PositiveInt = 64,
    limit: PositiveInt | None = None,
):
    """Top-1 and top-5 accuracy of a vote of the nearest images of another source.

    train: that source. An image's neighbours are those with the highest
    cosine; each votes for its class with exp(cosine / temperature). layer: see Features.
    image_size: of centre crops; a CLIP sees its own size.
    """
    numbers = class_numbers(source, train)
    features = Features(model, layer, model.side or image_size, batch_size * model.device_count)
    gallery, labels = extract_features(
        features.pooled, features.size, features.rows, train, numbers
    )
    neighbours = min(neighbours, len(gallery))
    gallery = sharding.copies(model.mesh, (np.asarray(unit(gallery)), labels.astype(np.int32)))
    static = dict(neighbours=neighbours, temperature=temperature, classes=len(source.classes))

    def prepare(record):
        return transforms.centre_crop(record["image"], features.size), field(record, "label")

    def measure(samples):
        crops, wanted = zip(*samples, strict=True)
        votes = np.asarray(model.run(_votes, features.pooled(crops), whole=gallery, **static))
        return {"hits": hits(votes, wanted)}

    def results(totals):
        yield "training_images", len(labels)
        yield from accuracies("knn", totals)

    return Evaluation("knn", source, features.rows, limit, prepare, measure, results)


def _votes(module, gallery, labels, queries, neighbours, temperature, classes):
    """[G, D] unit, int [G], [B, D] -> [B, classes]."""
    cosines = jnp.einsum("bd,gd->bg", unit(queries), gallery, precision=jax.lax.Precision.HIGHEST)
    nearest, which = jax.lax.top_k(cosines, neighbours)
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)  # up to a factor
    return (weights[..., None] * jax.nn.one_hot(labels[which], classes)).sum(1)
