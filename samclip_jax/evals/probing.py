"""Training of a probe on frozen features."""

import collections
import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
from absl import logging
from flax import nnx, traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from samclip_jax import models, sharding
from samclip_jax.config import OptimizerConfig
from samclip_jax.data.decode import BadRecord
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import READERS, ahead, prepared
from samclip_jax.optim import adamw
from samclip_jax.progress import Bar
from samclip_jax.validation import NonNegativeInt, PositiveInt, Validated


@dataclasses.dataclass(frozen=True)
class ProbeTraining(Validated):
    """How a probe learns."""

    epochs: PositiveInt
    batch_size: PositiveInt
    optimizer: OptimizerConfig
    seed: NonNegativeInt = 0


# CVNets examples/vit/segmentation/ade20k/deeplabv3_vit_base_clip_os_16.yaml, which trains the whole
# model; the rate and decay of config/segmentation/pascal_voc/deeplabv3_mobilevitv2.yaml
CVNETS = ProbeTraining(
    epochs=50,
    batch_size=32,
    optimizer=OptimizerConfig(
        learning_rate=5e-4,
        end_learning_rate=1e-6,
        warmup_steps=500,
        schedule_steps=0,  # as long as the training
        weight_decay=0.05,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        clip_norm=0.0,
    ),
)
ATTENTIVE = dataclasses.replace(
    CVNETS,
    epochs=20,
    batch_size=1024,
    optimizer=dataclasses.replace(
        CVNETS.optimizer,
        learning_rate=1e-3,
        end_learning_rate=0.0,
        warmup_steps=100,
        weight_decay=0.0,
    ),
)


def fit(probe, loss, batches, training, steps, mesh, name, answer=lambda logits: logits):
    """What a probe, an nnx module, says after AdamW on loss(probe(features), targets): a function,
    features [rows, ...] -> answer(logits) of each row.

    batches: (features, targets) arrays, `steps` of them; the cosine of the rate is as long where
    schedule_steps is 0. mesh: of sharding.replicas, whose devices share the rows of a batch, where
    they divide them.
    """
    optimizer = training.optimizer
    if not optimizer.schedule_steps:
        optimizer = dataclasses.replace(optimizer, schedule_steps=steps)
    probe.train()
    graph, *parts = nnx.split(probe, nnx.Param, ...)
    params, state = map(_flat, parts)
    update = adamw(optimizer, dict.fromkeys(params, 1.0))

    @jax.jit
    def step(params, state, moments, features, targets):
        def objective(params):
            module = models.merge(graph, params | state)
            value = loss(module(features), targets)
            return value, _flat(nnx.split(module, nnx.Param, ...)[2])

        (_, changed), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = update.update(gradient, moments, params)
        return optax.apply_updates(params, updates), changed, moments

    shared = P("rows") if training.batch_size % mesh.size == 0 else P()
    params, state, moments = sharding.copies(mesh, (params, state, update.init(params)))
    with Bar(None, f"{name} probe", steps, "steps", delay=10) as bar:
        for batch in batches:
            batch = jax.device_put(batch, NamedSharding(mesh, shared))
            params, state, moments = step(params, state, moments, *batch)
            bar.update(1)
    probe.eval()
    graph, _ = nnx.split(probe)

    def predict(params, rows, whole):
        return answer(models.merge(graph, params)(*rows))

    predict = sharding.on_shares(predict, mesh)
    return lambda features: np.asarray(predict(params | state, (features,), ()))


def _flat(state):  # -> {"a/b": array}
    return traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")


def training_steps(train, training):
    """Steps of the training's epochs of a source. UserError where the warm-up is longer."""
    steps = max(1, len(train) * training.epochs // training.batch_size)
    warmup = training.optimizer.warmup_steps
    if warmup >= steps:
        raise UserError(
            f"a warm-up of {warmup} steps is not over in {steps}, {training.epochs} epochs of "
            f"{len(train)} images: set training.optimizer.warmup_steps, or more training.epochs."
        )
    return steps


def samples(train, prepare, training, steps):
    """Lists of batch_size samples, prepare(record, rng=numpy generator), for `steps` steps: each
    epoch in another order, the same for the same seed; what cannot be used is left out, and said.
    UserError where no image can."""
    rng, batch, unusable = np.random.default_rng(training.seed), [], {}

    def order():
        while True:
            for index in rng.permutation(len(train)):
                yield int(index), rng.integers(2**63)

    def read(item):
        index, seed = item
        generator = np.random.default_rng(seed)
        sample, _ = prepared(train, index, functools.partial(prepare, rng=generator))
        return index, sample

    with ThreadPoolExecutor(READERS) as readers:
        for index, sample in ahead(readers, read, order(), training.batch_size + READERS):
            if isinstance(sample, BadRecord):
                if index not in unusable:
                    logging.warning("%s: training leaves out %s", train, sample)
                unusable[index] = sample.reason
                if len(unusable) == len(train):
                    reasons = dict(collections.Counter(unusable.values()))
                    raise UserError(f"no usable image in {train}: {reasons}")
                continue
            batch.append(sample)
            if len(batch) == training.batch_size:
                yield batch
                batch, steps = [], steps - 1
                if not steps:
                    return
