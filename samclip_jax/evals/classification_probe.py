"""Classification by a probe on frozen features (SAM-CLIP table 4, figure 4)."""

import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from samclip_jax.data import transforms
from samclip_jax.evals.batches import Evaluation, field, stack
from samclip_jax.evals.features import Features, class_numbers, extract_features
from samclip_jax.evals.probing import ATTENTIVE, ProbeTraining, fit, samples, training_steps
from samclip_jax.evals.zero_shot_classification import accuracies, hits
from samclip_jax.inference.model import Layer
from samclip_jax.models.probes import Attentive
from samclip_jax.progress import Bar
from samclip_jax.validation import PositiveFloat, PositiveInt

CHUNK = 4096  # training images whose logits exist at once
TOLERANCE = 1e-6  # of the gradient's largest entry, at which the optimum is reached
KEPT_BYTES = 4 << 30  # of patches' features that are computed once, not in every epoch


def classification_probe(
    model,
    source,
    train,
    probe: Literal["linear", "attentive"] = "linear",
    layer: Layer = None,
    image_size: PositiveInt = 224,
    C: PositiveFloat = 0.316,
    iterations: PositiveInt = 1000,
    training: ProbeTraining = ATTENTIVE,
    batch_size: PositiveInt = 64,
    limit: PositiveInt | None = None,
):
    """Top-1 and top-5 accuracy of a probe that is trained on another source, the model frozen.

    train: that source. probe: "linear", logistic regression on the pooled
    feature, its optimum by L-BFGS within `iterations`, C as scikit-learn has it (CLIP's README:
    0.316); or "attentive", see models/probes.py, on those of the patches, by AdamW as `training`
    says. layer: see Model.features. image_size: of centre crops; a CLIP sees its own size.
    """
    numbers = class_numbers(source, train)
    features = Features(model, layer, model.side or image_size, batch_size * model.device_count)
    classes = len(source.classes)
    if probe == "linear":
        inputs, labels = extract_features(
            features.pooled, features.size, features.rows, train, numbers
        )
        kernel, bias = logistic_regression(inputs, labels, classes, C, iterations, model.mesh)
    else:
        steps = training_steps(train, training)
        attentive = Attentive(features.patch_shape[-1], classes, nnx.Rngs(training.seed))
        batches = patches_of(features, train, numbers, training, steps)
        predict = fit(attentive, cross_entropy, batches, training, steps, model.mesh, probe)

    def prepare(record):
        return transforms.centre_crop(record["image"], features.size), field(record, "label")

    def measure(samples):
        crops, labels = zip(*samples, strict=True)
        if probe == "linear":
            logits = features.pooled(crops) @ kernel + bias
        else:
            patches = stack(features.patches(crops), features.rows)
            logits = predict(patches)[: len(crops)]
        return {"hits": hits(logits, labels)}

    def results(totals):
        yield "training_images", len(train)
        yield from accuracies(name, totals)

    name = "classification_probe"
    return Evaluation(name, source, features.rows, limit, prepare, measure, results)


def cross_entropy(logits, labels):  # [B, classes], int [B] -> the mean
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def patches_of(features, train, numbers, training, steps):
    """(patches, labels) of each step. Where all patches have room they are computed once."""

    def prepare(record, rng):
        crop = transforms.centre_crop(record["image"], features.size)
        return crop, numbers[field(record, "label")]

    if len(train) * math.prod(features.patch_shape) * 4 > KEPT_BYTES:
        for batch in samples(train, prepare, training, steps):
            crops, labels = zip(*batch, strict=True)
            yield features.patches(crops), np.array(labels)
        return
    patches, labels = extract_features(
        features.patches, features.size, features.rows, train, numbers
    )
    rng = np.random.default_rng(training.seed)
    order = itertools.chain.from_iterable(rng.permutation(len(labels)) for _ in itertools.count())
    for _ in range(steps):
        chosen = [*itertools.islice(order, training.batch_size)]
        yield patches[chosen], labels[chosen]


def logistic_regression(inputs, labels, classes, C, iterations, mesh):
    """float [N, D], int [N] -> kernel float32 [D, classes], bias [classes]: the least of
    C sum(cross-entropy) + |kernel|^2 / 2, as sklearn.linear_model.LogisticRegression."""
    count, chunk = len(labels), CHUNK // mesh.size * mesh.size
    missing = -count % chunk
    arrays = (
        np.pad(inputs, ((0, missing), (0, 0))).reshape(-1, chunk, inputs.shape[1]),
        np.pad(labels, (0, missing)).reshape(-1, chunk),
        np.pad(np.ones(count, np.float32), (0, missing)).reshape(-1, chunk),
    )
    arrays = jax.device_put(arrays, NamedSharding(mesh, P(None, "rows")))
    params = {
        "kernel": jnp.zeros((inputs.shape[1], classes)),
        "bias": jnp.zeros(classes),
    }
    solver = optax.lbfgs()

    @jax.jit
    def step(params, state, arrays):
        def objective(params):
            @jax.checkpoint
            def chunk(total, arrays):
                inputs, labels, weights = arrays
                logits = inputs @ params["kernel"] + params["bias"]
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return total + weights @ losses, None

            total, _ = jax.lax.scan(chunk, 0.0, arrays)
            return total / count + jnp.square(params["kernel"]).sum() / (2 * C * count)

        value, gradient = optax.value_and_grad_from_state(objective)(params, state=state)
        change, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        largest = jnp.max(jnp.array([jnp.abs(leaf).max() for leaf in gradient.values()]))
        return optax.apply_updates(params, change), state, largest

    state = solver.init(params)
    with Bar(None, "linear probe", iterations, "iterations", delay=10) as bar:
        for _ in range(iterations):
            params, state, largest = step(params, state, arrays)
            bar.update(1)
            if largest < TOLERANCE:
                break
    return np.asarray(params["kernel"]), np.asarray(params["bias"])
