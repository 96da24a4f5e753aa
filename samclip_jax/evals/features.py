"""Frozen features of images, for probes and neighbours."""

from typing import Literal, NamedTuple

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError, under
from samclip_jax.evals.batches import Evaluation, collect, field, stack

# The layer that is read; None: the last that a model has of these. The paper does not say which.
Layer = Literal["encoder", "head", "embedding"] | None


class Features(NamedTuple):
    """How images become features: squares of `size` px through a model's `layer`."""

    model: object
    layer: Layer
    size: int
    rows: int  # images at once, on all devices of this process together

    def __call__(self, images):
        """list of uint8 [size, size, 3] -> pooled float32 [n, D], patches float32 [n, h, w, C]."""
        parts = []
        for i in range(0, len(images), self.rows):
            part = stack(images[i : i + self.rows], self.rows)
            parts.append(self.model.features(part, self.layer))
        return [np.concatenate(each)[: len(images)] for each in zip(*parts, strict=True)]


def classified(source, train):
    """The source of the training images, `train` as make_source has it, and of each of its classes
    the number in `source`. UserError where they have not the same classes."""
    with under("train: "):
        train = make_source(**train)
    for each in (source, train):
        if not getattr(each, "classes", None):
            raise UserError(f"{each} has no classes: take one with labels.")
    if sorted(train.classes) != sorted(source.classes):
        only = sorted({*train.classes} ^ {*source.classes})[0]
        raise UserError(f"{train} and {source} have other classes: {only!r} is in one of them.")
    places = {name: place for place, name in enumerate(source.classes)}
    return train, np.array([places[name] for name in train.classes])


def of_all(features, source, places, name, patches=False):
    """The pooled features of all records, float32 [N, D], or those of their patches, [N, h, w, C],
    and places[label], int [N]. Of several processes each reads a part and has all."""

    def prepare(record):
        crop = transforms.centre_crop(record["image"], features.size)
        return crop, places[field(record, "label")]

    def measure(samples):
        crops, labels = zip(*samples, strict=True)
        return {"features": [*features(crops)[patches]], "labels": [*labels]}

    evaluation = Evaluation(name, source, features.rows, None, prepare, measure, None)
    totals = collect(evaluation)
    return np.stack(totals["features"]), np.array(totals["labels"])
