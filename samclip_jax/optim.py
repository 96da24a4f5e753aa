"""Gradients of a batch part by part, and AdamW with a learning-rate factor for every parameter."""

import re

import jax
import jax.numpy as jnp
import optax

from samclip_jax.errors import UserError


def partition(params, lr_factors):
    """(trainable, frozen, factors): a flat dict of parameters in two, by lr_factors.

    lr_factors: ((regex, factor or None), ...); the first that matches at the start of a name
    counts, None freezes. UserError where a name matches none or a regex matches no name.
    """
    for pattern, _ in lr_factors:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"--config.lr_factors: {pattern!r} is no regex: {error}") from None
    factors, used = {}, set()
    for name in params:
        for pattern, factor in lr_factors:
            if re.match(pattern, name):
                factors[name] = factor
                used.add(pattern)
                break
        else:
            raise UserError(
                f"--config.lr_factors: no regex matches {name!r}; end with ('.*', None)"
            )
    unused = [p for p, _ in lr_factors if p not in used and p != ".*"]
    if unused:
        raise UserError(f"--config.lr_factors: {unused[0]!r} matches no parameter of the model")
    trainable = {name: leaf for name, leaf in params.items() if factors[name] is not None}
    if not trainable:
        raise UserError("--config.lr_factors freezes every parameter: nothing to train")
    frozen = {name: leaf for name, leaf in params.items() if factors[name] is None}
    return trainable, frozen, {name: factors[name] for name in trainable}


def schedule(config):
    """Linear warm-up, then a cosine; step -> learning rate. `config` is an OptimizerConfig."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(config.schedule_steps, config.warmup_steps + 1),
        end_value=config.end_learning_rate,
    )


def adamw(config, factors):
    """The optax transformation for a flat dict with these factors. Decays kernels only."""

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask={n: is_decayed(n) for n in factors}),
        scale_by_factors(factors),
        optax.scale_by_learning_rate(schedule(config)),
    )


def is_decayed(name):
    """Whether weight decay acts on the parameter of this name: on what multiplies activations."""
    return name.endswith("/kernel")


def scale_by_factors(factors):
    """The optax transformation that multiplies every update by its parameter's factor."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def mean_over_parts(function, batch, count, axis=0):
    """The mean of function(part) over `count` equal parts of the batch, one after the other.

    batch: a tree of arrays, cut along `axis`; function: part -> a tree of arrays. UserError where
    they do not divide.
    """
    if count == 1:
        return function(batch)
    size = jax.tree.leaves(batch)[0].shape[axis]
    if size % count:
        raise UserError(f"a batch of {size} does not divide into {count} micro_batches")

    def cut(x):  # [.., size, ..] -> [count, .., size / count, ..], every device's share into all
        x = x.reshape(*x.shape[:axis], size // count, count, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis + 1, 0)

    parts = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], parts)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))

    def body(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(body, zero, parts)
    return jax.tree.map(lambda x: x / count, total)
