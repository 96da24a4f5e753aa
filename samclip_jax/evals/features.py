"""Frozen features of images, for probes and neighbours."""

from typing import NamedTuple

import numpy as np

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, collect, field, stack
from samclip_jax.inference.model import Layer


class Features(NamedTuple):
    """How images become features: squares of `size` px through a model's `layer`."""

    model: object
    layer: Layer
    size: int
    rows: int  # images at once, on all devices of this process together

    def pooled(self, images):  # list of uint8 [size, size, 3] -> float32 [n, D]
        return self._read(images, 0)

    def patches(self, images):  # list of uint8 [size, size, 3] -> float32 [n, h, w, C]
        return self._read(images, 1)

    @property
    def patch_shape(self):  # -> (h, w, C)
        return self.patches([np.zeros((self.size, self.size, 3), np.uint8)]).shape[1:]

    def _read(self, images, output):
        parts = []
        for i in range(0, len(images), self.rows):
            part = stack(images[i : i + self.rows], self.rows)
            features = self.model.features(part, self.layer)[output]
            parts.append(np.asarray(features, np.float32))
        return np.concatenate(parts)[: len(images)]


def class_numbers(source, train):
    """Of each class of the training images its number in `source`, int [classes]. UserError where
    they have not the same classes."""
    for each in (source, train):
        if not getattr(each, "classes", None):
            raise UserError(f"{each} has no classes: take one with labels.")
    if sorted(train.classes) != sorted(source.classes):
        only = sorted({*train.classes} ^ {*source.classes})[0]
        raise UserError(f"{train} and {source} have other classes: {only!r} is in one of them.")
    numbers = {name: number for number, name in enumerate(source.classes)}
    return np.array([numbers[name] for name in train.classes])


def extract_features(read, size, rows, train, numbers):
    """What read(list of centre crops of size px) gives of all records, one array, and
    numbers[label], int [N]. Of several processes each reads a part and has all."""

    def prepare(record):
        crop = transforms.centre_crop(record["image"], size)
        return crop, numbers[field(record, "label")]

    def measure(samples):
        crops, labels = zip(*samples, strict=True)
        return {"features": [*read(crops)], "labels": [*labels]}

    name = "features of the training images"
    evaluation = Evaluation(name, train, rows, None, prepare, measure, lambda totals: ())
    totals = collect(evaluation)
    return np.stack(totals["features"]), np.array(totals["labels"])
