"""Semantic segmentation by a head on frozen features (SAM-CLIP table 3, figure 4)."""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from samclip_jax.data import transforms
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.features import Features, Layer, places
from samclip_jax.evals.probing import CVNETS, ProbeTraining, fit, samples, steps_of
from samclip_jax.evals.zero_shot_segmentation import confusion, scores
from samclip_jax.inference.frames import nearest
from samclip_jax.models.probes import DeepLabV3, Linear, PSPNet, enlarged
from samclip_jax.validation import PositiveInt, Share

HEADS = {"linear": Linear, "deeplabv3": DeepLabV3, "pspnet": PSPNet}
CROPS = 10  # tries for one in which no class has more than its share


def segmentation_probe(
    model,
    source,
    train,
    head: Literal["linear", "deeplabv3", "pspnet"] = "linear",
    layer: Layer = None,
    image_size: PositiveInt = 512,
    short: tuple[PositiveInt, PositiveInt] = (256, 768),
    longest: PositiveInt = 1024,
    class_share: Share = 0.75,
    training: ProbeTraining = CVNETS,
    batch_size: PositiveInt = 16,
    limit: PositiveInt | None = None,
):
    """mIoU of a head that is trained on another source, the model frozen.

    train: that source. head: see models/probes.py. layer: see
    Model.features. A training image's short side becomes one of `short` px, its long side at most
    `longest`; of it a crop of image_size px, mirrored or not, in which no class has more than
    class_share of the pixels, if one of ten has not. Others are resized to that square, and their
    labels to the map. The defaults are CVNets'.
    """
    numbers = places(source, train)
    features = Features(model, layer, image_size, batch_size * model.device_count)
    steps = steps_of(train, training)
    crop = functools.partial(augmented, image_size, short, longest, class_share, numbers)

    def batches():
        for batch in samples(train, crop, training, steps):
            images, maps = zip(*batch, strict=True)
            yield features.patches(images), np.stack(maps)

    channels = features.patch_shape()[-1]
    probe = HEADS[head](channels, len(source.classes), nnx.Rngs(training.seed))
    probe = fit(probe, cross_entropy, batches(), training, steps, model.mesh, head)
    answer = nnx.jit(lambda probe, x: enlarged(probe(x), (image_size,) * 2).argmax(-1))

    def prepare(record):
        image = transforms.resize(record["image"], image_size, image_size)
        return image, field(record, "semantic")

    def measure(samples):
        images, semantics = zip(*samples, strict=True)
        patches = stack(features.patches(images), features.rows)
        labels = np.asarray(answer(probe, patches))
        pixels = 0
        for semantic, label in zip(semantics, labels, strict=False):
            pixels += confusion(semantic, nearest(label, semantic.shape), len(source.classes))
        return {"pixels": pixels}

    def results(totals):
        yield "training_images", len(train)
        yield from scores(name, totals["pixels"])

    name = "segmentation_probe"
    return Evaluation(name, source, features.rows, limit, prepare, measure, results)


def cross_entropy(logits, labels):  # [B, h, w, classes], int [B, H, W], -1 does not count
    """The mean over the pixels of the enlarged logits."""
    logits = enlarged(logits, labels.shape[1:])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    counted = labels >= 0
    return (losses * counted).sum() / jnp.maximum(counted.sum(), 1)


def augmented(size, short, longest, class_share, numbers, record, rng):
    """uint8 [size, size, 3] and int32 [size, size] of a record; zeros and no class beside it."""
    image, semantic = record["image"], field(record, "semantic")
    semantic = np.where(semantic < 0, -1, numbers[semantic])
    height, width = image.shape[:2]
    scale = rng.integers(short[0], short[1] + 1) / min(height, width)
    scale = min(scale, longest / max(height, width))
    sides = [max(1, round(side * scale)) for side in (height, width)]
    image = transforms.resize(image, *sides)
    semantic = nearest(semantic, sides)
    missing = [(0, max(0, size - side)) for side in sides]
    image = np.pad(image, [*missing, (0, 0)])
    semantic = np.pad(semantic, missing, constant_values=-1)
    for _ in range(CROPS):
        y, x = (rng.integers(side - size + 1) for side in semantic.shape)
        labels = semantic[y : y + size, x : x + size]
        counts = np.unique(labels[labels >= 0], return_counts=True)[1]
        if len(counts) > 1 and counts.max() <= class_share * counts.sum():
            break
    crop = image[y : y + size, x : x + size]
    if rng.random() < 0.5:
        crop, labels = crop[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(crop), np.int32(labels)
