"""Which device holds what: a mesh ("data", "fsdp"), one rule for state and one for batches.

State is cut over "fsdp" and copied over "data"; batches are cut over both. XLA derives the rest.
"""

import functools
import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from samclip_jax.errors import UserError

MINIMUM_SIZE = 2**16  # arrays below stay whole on every device: to cut them saves nothing
OVERRIDES = [  # (regex of a name, the dimension to cut instead of the largest divisible one)
    (r"token_embed$", -1),  # tokens look up whole rows: no device owns words
]


def make_mesh(fsdp=1):
    """All devices of the job; `fsdp` of them share one copy of the state."""
    count = jax.device_count()
    if count % fsdp:
        raise UserError(f"fsdp={fsdp} does not divide the {count} devices here")
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def shardings(mesh, tree):
    """A NamedSharding for every leaf, array or ShapeDtypeStruct; scalars are copied everywhere."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, np.shape(leaf), mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, tree)


def shard(mesh, tree):
    """The tree as global arrays laid out by `shardings`; every process holds the same values."""
    return jax.device_put(tree, shardings(mesh, tree))


def shard_batch(mesh, batch):
    """Each process's numpy part [B / processes, ...] as global arrays [B, ...] cut along B.

    On one host, a batch too small for every device is cut over the longer axis that
    divides it and copied over the other. UserError where B fits neither.
    """
    images = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    choices = [("data", "fsdp")]
    if jax.process_count() == 1:
        choices += sorted([("data",), ("fsdp",)], key=lambda axes: -mesh.shape[axes[0]])
    for axes in choices:
        if images % np.prod([mesh.shape[axis] for axis in axes]) == 0:
            cut = NamedSharding(mesh, P(axes))
            place = functools.partial(jax.make_array_from_process_local_data, cut)
            return jax.tree.map(place, batch)
    raise UserError(
        f"a batch of {images} images does not divide over {mesh.size} devices; "
        f"use a batch_size that is a multiple of {mesh.size}"
    )


def _spec(name, shape, parts):
    """Cuts the largest dimension that `parts` divides, or none."""
    if parts == 1 or np.prod(shape) < MINIMUM_SIZE:
        return P()
    forced = next((dim for regex, dim in OVERRIDES if re.search(regex, name)), None)
    allowed = range(len(shape)) if forced is None else [forced % len(shape)]
    fitting = [dim for dim in allowed if shape[dim] % parts == 0]
    if not fitting:
        return P()
    cut = max(fitting, key=lambda dim: shape[dim])
    return P(*(None,) * cut, "fsdp")
