"""Semantic segmentation by a head on frozen features (SAM-CLIP table 3, figure 4)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.features import Features, class_numbers
from samclip_jax.evals.probing import CVNETS, ProbeTraining, fit, samples, training_steps
from samclip_jax.evals.zero_shot_segmentation import confusion, scores
from samclip_jax.inference.frames import nearest
from samclip_jax.inference.model import Layer
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
    labels to the map. The defaults are CVNets', without its average of the weights (EMA), colours,
    turns and noise, and with a warm-up that begins at 0.
    """
    numbers = class_numbers(source, train)
    features = Features(model, layer, image_size, batch_size * model.device_count)
    steps = training_steps(train, training)
    if short[0] > short[1]:
        raise UserError(f"short must be the least and the most px, got {short}")
    crop = functools.partial(augmented, image_size, short, longest, class_share, numbers)

    def batches():
        for batch in samples(train, crop, training, steps):
            images, maps = zip(*batch, strict=True)
            yield features.patches(images), np.stack(maps)

    channels = features.patch_shape[-1]
    probe = HEADS[head](channels, len(source.classes), nnx.Rngs(training.seed))
    parts = model.mesh.size if training.batch_size % model.mesh.size == 0 else 1
    loss = functools.partial(cross_entropy, parts=parts)
    answer = functools.partial(pixels_of, (image_size,) * 2)
    predict = fit(probe, loss, batches(), training, steps, model.mesh, head, answer)

    def prepare(record):
        image = transforms.resize(record["image"], image_size, image_size, transforms.BICUBIC)
        return image, field(record, "semantic")

    def measure(samples):
        images, semantics = zip(*samples, strict=True)
        labels = predict(stack(features.patches(images), features.rows))
        pixels = 0
        for semantic, label in zip(semantics, labels, strict=False):
            pixels += confusion(semantic, nearest(label, semantic.shape), len(source.classes))
        return {"pixels": pixels}

    def results(totals):
        yield "training_images", len(train)
        yield from scores(name, totals["pixels"])

    name = "segmentation_probe"
    return Evaluation(name, source, features.rows, limit, prepare, measure, results)


def cross_entropy(logits, labels, parts=1):  # [B, h, w, classes], int [B, H, W], -1: not counted
    """The mean over the pixels of the enlarged logits, which exist for one image of each of the
    `parts` of the batch, those of the devices, at a time."""

    @jax.checkpoint
    def of_images(images):
        logits, labels = images
        logits = enlarged(logits, labels.shape[1:])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (losses * (labels >= 0)).sum()

    images = (x.reshape(parts, -1, *x.shape[1:]).swapaxes(0, 1) for x in (logits, labels))
    return jax.lax.map(of_images, tuple(images)).sum() / jnp.maximum((labels >= 0).sum(), 1)


def pixels_of(size, logits):  # [B, h, w, classes] -> int [B, *size], one image at a time
    return jax.lax.map(lambda each: enlarged(each[None], size)[0].argmax(-1), logits)


def augmented(size, short, longest, class_share, numbers, record, rng):
    """uint8 [size, size, 3] and int32 [size, size] of a record; zeros and no class beside it."""
    image, semantic = record["image"], field(record, "semantic")
    semantic = np.where(semantic < 0, -1, numbers[semantic])
    height, width = image.shape[:2]
    scale = rng.integers(short[0], short[1] + 1) / min(height, width)
    scale = min(scale, longest / max(height, width))
    sides = [max(1, int(side * scale)) for side in (height, width)]
    image = transforms.resize(image, *sides, transforms.BICUBIC)
    semantic = nearest(semantic, sides)
    missing = [(0, max(0, size - side)) for side in sides]
    image = np.pad(image, [*missing, (0, 0)])
    semantic = np.pad(semantic, missing, constant_values=-1)
    for _ in range(CROPS):
        y, x = (rng.integers(side - size + 1) for side in semantic.shape)
        labels = semantic[y : y + size, x : x + size]
        classes, counts = np.unique(labels, return_counts=True)
        counted = counts[classes >= 0]
        if len(classes) > 1 and counted.sum() and counted.max() < class_share * counted.sum():
            break
    crop = image[y : y + size, x : x + size]
    if rng.random() < 0.5:
        crop, labels = crop[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(crop), np.int32(labels)
