"""Which device holds what: a mesh ("data", "fsdp", "image"), one rule for state, one for batches.

State is sharded over "fsdp" and replicated over the other axes. A batch is sharded over all three;
one whose images do not divide over all devices over "data" and "fsdp", and then those along "image"
share images: their rows of tokens, their windows, their prompts. XLA derives the rest.

A model that only answers has a mesh ("rows",) of this process's devices: every device has a copy of
it and takes a share of the rows of a call, alone.
"""

import contextlib
import contextvars
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from samclip_jax.errors import UserError

AXES = ("data", "fsdp", "image")
MINIMUM_SIZE = 2**16  # smaller arrays are replicated: to shard them saves nothing
OVERRIDES = [  # (regex of a name, the dimension to shard instead of the largest divisible one)
    (r"token_embed$", -1),  # tokens look up whole rows: no device owns words
]


def make_mesh(fsdp=1, batches=(), devices=None):
    """All devices of the job; `fsdp` of them share one copy of the state.

    batches: the numbers of images in the batches to come. Where one of them does not divide over
    the devices, "image" is as large as it takes. Several slices of a TPU lie along "data",
    whose sums are the only ones that pass between slices. UserError where fsdp does not divide.
    """
    devices = jax.devices() if devices is None else devices
    together = math.gcd(len(devices), *batches)  # devices that have images of their own
    if together % fsdp:
        kept = "" if together == len(devices) else f"{together} groups that share images, of "
        raise UserError(
            f"--config.fsdp={fsdp} does not divide {kept}the {len(devices)} devices here"
        )
    shape = (together // fsdp, fsdp, len(devices) // together)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise UserError(
                f"{slices} slices need a data axis that they divide, it is {shape[0]}: raise the "
                f"smallest batch, {min(batches, default=0)} images, or lower --config.fsdp={fsdp}"
            )
        inner = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(mesh, tree):
    """A NamedSharding for every leaf, array or ShapeDtypeStruct; scalars are copied everywhere."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, np.shape(leaf), mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, tree)


def shard(mesh, tree):
    """The tree as global arrays laid out by `shardings`; every process holds the same values."""
    return jax.device_put(tree, shardings(mesh, tree))


def _spec(name, shape, parts):
    """Shards the largest dimension that `parts` divides, or none."""
    if parts == 1 or np.prod(shape) < MINIMUM_SIZE:
        return P()
    forced = next((dim for regex, dim in OVERRIDES if re.search(regex, name)), None)
    allowed = range(len(shape)) if forced is None else [forced % len(shape)]
    fitting = [dim for dim in allowed if shape[dim] % parts == 0]
    if not fitting:
        return P()
    sharded = max(fitting, key=lambda dim: shape[dim])
    return P(*(None,) * sharded, "fsdp")


# ---------------------------------------------------------------------------------------- batches


class BatchAxes(NamedTuple):
    """The axes that a batch is sharded over: between its images, and within each of them."""

    mesh: Mesh
    images: tuple
    within: tuple

    @classmethod
    def of(cls, mesh, images):
        """Those of a batch of so many images. UserError where it does not divide."""
        if images % mesh.size == 0:
            return cls(mesh, AXES, ())
        groups = mesh.shape["data"] * mesh.shape["fsdp"]
        if images % groups == 0:
            return cls(mesh, AXES[:2], AXES[2:])
        raise UserError(
            f"a batch of {images} images does not divide over {mesh.size} devices; "
            f"use a batch_size that is a multiple of {mesh.size}"
        )

    @property
    def shared(self):
        """How many devices share an image."""
        return math.prod(self.mesh.shape[axis] for axis in self.within)

    def sharding(self, *spec):
        return NamedSharding(self.mesh, P(*spec))

    def ranges(self, images, addressable=False):
        """{device: the images it has}, a range each."""
        sharding = self.sharding(self.images)
        indices = sharding.devices_indices_map((images,))
        keep = sharding.addressable_devices if addressable else indices
        return {device: range(images)[indices[device][0]] for device in keep}


def process_part(mesh, images):
    """(index, count): this process makes the `index`-th of `count` equal parts of a batch.

    Processes whose devices share images make the same part. UserError where they share unevenly.
    """
    needs = {}
    for device, part in BatchAxes.of(mesh, images).ranges(images).items():
        needs.setdefault(device.process_index, set()).update(part)
    parts = sorted({tuple(sorted(part)) for part in needs.values()})
    if sum(map(len, parts)) != images or len({len(part) for part in parts}) != 1:
        raise UserError(
            f"a batch of {images} images does not divide over {len(needs)} hosts; use a batch_size "
            f"that is a multiple of {len(needs)}"
        )
    return parts.index(tuple(sorted(needs[jax.process_index()]))), len(parts)


def batch_shardings(mesh, images, batch):
    """A NamedSharding for every leaf [images, ...]: photographs are sharded within as well."""
    axes = BatchAxes.of(mesh, images)

    def place(path, _):
        photographs = jax.tree_util.keystr(path, simple=True) == "image"
        return axes.sharding(axes.images, axes.within if photographs else ())

    return jax.tree_util.tree_map_with_path(place, batch)


def shard_batch(mesh, images, batch):
    """A batch of so many images as global arrays [images, ...]; a process gives its part."""
    ranges = BatchAxes.of(mesh, images).ranges(images, addressable=True).values()
    mine = sorted({image for part in ranges for image in part})

    def place(there, local):
        def piece(index):
            part = range(images)[index[0]]
            first = mine.index(part.start)
            return local[(slice(first, first + len(part)), *index[1:])]

        return jax.make_array_from_callback((images, *local.shape[1:]), there, piece)

    return jax.tree.map(place, batch_shardings(mesh, images, batch), batch)


# ------------------------------------------------------------------------------------ activations

_UNSAID = object()
_BATCH = contextvars.ContextVar("batch", default=_UNSAID)


@contextlib.contextmanager
def activations(mesh, images):
    """What is traced inside belongs to a batch of so many images: the models shard it as the batch.

    On one device the functions below do nothing.
    """
    token = _BATCH.set(BatchAxes.of(mesh, images) if mesh.size > 1 else None)
    try:
        yield
    finally:
        _BATCH.reset(token)


@contextlib.contextmanager
def one_device():
    """What is traced inside runs on one device: the functions below do nothing."""
    token = _BATCH.set(None)
    try:
        yield
    finally:
        _BATCH.reset(token)


def _batch():
    """The BatchAxes of what is traced, None on one device. RuntimeError where there are several
    devices and nothing says which of them it is for: a TPU's kernels would not compile."""
    batch = _BATCH.get()
    if batch is not _UNSAID:
        return batch
    if jax.device_count() > 1:
        raise RuntimeError(
            f"a model is traced and nothing says for which of the {jax.device_count()} devices: "
            "trace it under sharding.activations(mesh, images) or sharding.one_device()"
        )
    return None


def shard_rows(x):
    """x [B, h, ...] sharded along the images and, where devices share one, along its rows."""
    return _constrain(x, lambda batch: (batch.images, batch.within))


def shard_parts(x):
    """x [B * parts, ...], windows or prompts: the devices that share an image share its parts."""
    return _constrain(x, lambda batch: (batch.images + batch.within,))


def pad_parts(x):
    """x [B, parts, ...] with parts of zeros behind, as many as the devices can share evenly."""
    batch = _batch()
    missing = -x.shape[1] % batch.shared if batch else 0
    return jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2))) if missing else x


def devices_per_image():
    """How many devices share an image."""
    batch = _batch()
    return batch.shared if batch else 1


def gathered(x):
    """A matrix for use: all of it on every device; its gradient is sharded as the matrix rests.

    Left to itself XLA moves activations instead, which are larger.
    """
    batch = _batch()
    if batch is None or batch.mesh.shape["fsdp"] == 1:
        return x
    rests = _spec("kernel", x.shape, batch.mesh.shape["fsdp"])

    @jax.custom_vjp
    def gather(x):
        return jax.lax.with_sharding_constraint(x, batch.sharding())

    def scatter(_, gradient):
        return (jax.lax.with_sharding_constraint(gradient, batch.sharding(*rests)),)

    gather.defvjp(lambda x: (gather(x), None), scatter)
    return gather(x)


def on_each_device(function, whole):
    """function(axes, x, weights) -> y, by every device on what it has of x; y is sharded as x is.

    whole: x is [B * parts, ...], each whole on a device, and where they do not divide over the
    devices those that share an image do the same; axes is (). Otherwise x is [B, h, ...], and along
    `axes` of the mesh other devices have further rows of the same images. Every device has all
    weights.
    """
    batch = _batch()
    if batch is None:
        return functools.partial(function, ())

    def on_all(x, weights):
        apart = batch.images + (batch.within if len(x) % batch.mesh.size == 0 else ())
        spec = P(apart) if whole else P(batch.images, batch.within)
        each = functools.partial(function, () if whole else batch.within)
        return jax.shard_map(  # a kernel does not tell over which axes its results vary
            each, mesh=batch.mesh, in_specs=(spec, P()), out_specs=spec, check_vma=False
        )(x, weights)

    return on_all


def _constrain(x, spec):
    batch = _batch()
    return x if batch is None else jax.lax.with_sharding_constraint(x, batch.sharding(*spec(batch)))


# --------------------------------------------------------------------------------------- replicas


def replicas(devices=None):
    """A mesh ("rows",) of devices of this process, by default the first."""
    devices = jax.local_devices()[:1] if devices is None else devices
    return Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))


def copies(mesh, tree):
    """The tree, every leaf whole on each device of `replicas`. All processes call it together where
    leaves are sharded over several of them."""
    leaves, everywhere = jax.tree.leaves(tree), NamedSharding(mesh, P())
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        tree = multihost_utils.process_allgather(tree, tiled=True)

    def copy(leaf):
        is_there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == everywhere.device_set
        if is_there and mesh.size > 1 and not leaf.sharding.is_fully_replicated:
            return _gather(everywhere)(leaf)  # device_put would go through the host
        return jax.device_put(leaf, everywhere)

    return jax.tree.map(copy, tree)


@functools.cache
def _gather(everywhere):
    return jax.jit(lambda x: x, out_shardings=everywhere)


def on_shares(function, mesh):
    """function(params, rows, whole), compiled: every device of `replicas` calls it with params, its
    share of the rows, arrays [B, ...], and `whole`. What it returns are arrays [B, ...] again."""

    def alone(*arguments):
        with one_device():
            return function(*arguments)

    specs = P(), P("rows"), P()
    return jax.jit(  # a kernel does not tell over which axes its results vary
        jax.shard_map(alone, mesh=mesh, in_specs=specs, out_specs=P("rows"), check_vma=False)
    )
