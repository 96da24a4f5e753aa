"""Attention over grids of tokens on TPUs: how arrays go through the Pallas kernels.

Nothing is split, transposed or reshaped outside of them: blocks of whole heads and of multiples of
128 channels are read where the linear layer left them, and the gradient is written there. All keys
of a block lie in the on-chip memory at once.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from samclip_jax.ops import attention_kernels
from samclip_jax.ops.attention_kernels import LANES

SCORES = 2**20  # elements of a block of scores: 4 x 64 queries against 64 x 64 keys
KEYS = 4096 * 640  # channels of all keys of a block: ViT-H's 64 x 64, what a v5p has room for
QUERIES = 2048  # of small images or windows together, in one step of the grid
VMEM_BYTES = 100 * 2**20
NO_KEY = -1e30  # the score of what lies between two rows of keys


class Plan(NamedTuple):
    """How [rows, width] tokens lie in blocks, where a row takes `stride` of them."""

    depth: int  # channels of a head
    queries: tuple  # rows, width
    keys: tuple
    blocks: int  # of channels
    together: int  # heads of a block
    lanes: int  # channels of a block
    stride: int
    chunk: int  # rows of queries of a block
    items: int  # windows or images of a block
    extra: int  # channels of a head for the relative position: first for rows, then for columns
    tables: int  # 1: both tables find room in them; 2: each takes them all; 0: there are none

    @classmethod
    def of(cls, batch, heads, depth, queries, keys, relative):
        together = _together(depth)
        stride = _stride(*keys)
        fitting = max(1, _room(depth) // (stride * stride * keys[0]))
        distances = 2 * max(keys) - 1
        extra = 64 if distances <= 32 else _up(distances, LANES)
        return cls(
            depth=depth,
            queries=queries,
            keys=keys,
            blocks=heads // together,
            together=together,
            lanes=together * depth,
            stride=stride,
            chunk=_largest_divisor(queries[0], fitting),
            items=_largest_divisor(batch, max(1, QUERIES // (keys[0] * stride))),
            extra=extra,
            tables=(1 if 2 * distances <= extra else 2) if relative else 0,
        )

    @property
    def chunks(self):
        return self.queries[0] // self.chunk

    @property
    def group(self):
        """Further channels that are moved together: of one head, or of several small ones."""
        return max(self.extra, LANES)

    @property
    def groups(self):
        return -(-self.together * self.extra // self.group)

    def span(self, heads):
        """Where the channels of a range of heads lie in a block, in whole multiples of 128."""
        first, end = heads.start * self.depth, heads.stop * self.depth
        return slice(first // LANES * LANES, _up(end, LANES))

    def heads(self, group):
        """The heads whose further channels are in the group."""
        each = self.group // self.extra
        return range(self.together)[group * each : (group + 1) * each]


def takes(heads, arrays, tables):
    """Whether there is a kernel for these arrays: heads must fill blocks, all keys and the scores
    of a row of queries find room, and tables tell keys from gaps between their rows."""
    depth = arrays[0].shape[-1] // (3 if len(arrays) == 1 else 1) // heads
    h, w = arrays[-1].shape[1:3]
    together, stride = _together(depth), _stride(h, w)
    keys_fit = h * stride * together * depth <= KEYS
    scores_fit = h * stride * stride <= 3 / 2 * _room(depth)
    return heads % together == 0 and keys_fit and scores_fit and bool(tables or stride == w)


def forward(heads, arrays, tables):
    """softmax(q k^T / sqrt(D) + q.Rh + q.Rw) v -> [B, rows, w, C], for what `takes` accepts.

    arrays: (qkv [B, h, w, 3 C],), or (q [B, rows, w, C], kv [B, h, w, 2 C]) for some of the rows.
    tables: () or ([rows + h - 1, D], [2 w - 1, D]), the last entry for the first key and the last
    query. Sums in float32, matrix products in the dtype of the arrays.
    """
    plan, _, inputs, specs = _inputs(heads, arrays, tables)
    shape = (*arrays[0].shape[:3], plan.blocks * plan.lanes)
    outputs = {"out": jax.ShapeDtypeStruct(shape, arrays[0].dtype)}
    out_specs = {"out": _block(plan, "q")}
    return _call(attention_kernels.forward, plan, inputs, specs, outputs, out_specs)["out"]


def backward(heads, arrays, tables, d_out):
    """The gradients of `forward` to (arrays, tables)."""
    plan, parts, inputs, specs = _inputs(heads, arrays, tables)
    inputs["d_out"], specs["d_out"] = d_out, _block(plan, "q")
    outputs, out_specs = {}, {}
    for names, array in zip(parts, arrays, strict=True):
        outputs[f"d_{names}"] = jax.ShapeDtypeStruct(array.shape, array.dtype)
        block = (plan.items, *array.shape[1:3], plan.lanes)
        at = functools.partial(_gradient_at, plan, names)
        out_specs[f"d_{names}"] = pl.BlockSpec(block, at)
    if tables:
        size = inputs["tables"].shape
        outputs["d_tables"] = jax.ShapeDtypeStruct((plan.blocks, *size), jnp.float32)
        out_specs["d_tables"] = pl.BlockSpec((None, *size), lambda h, b, t: (h, 0, 0, 0, 0))
    gradients = _call(attention_kernels.backward, plan, inputs, specs, outputs, out_specs)
    d_arrays = tuple(gradients[f"d_{names}"] for names in parts)
    if not tables:
        return d_arrays, ()
    placed = functools.partial(_placed, plan)
    return d_arrays, jax.vjp(placed, *tables)[1](gradients["d_tables"].sum(0))


def _inputs(heads, arrays, tables):
    """(plan, the parts of the arrays, {name: what the kernel reads}, {name: in which blocks})."""
    parts = ["qkv"] if len(arrays) == 1 else ["q", "kv"]
    batch, *queries, channels = arrays[0].shape
    depth, keys = channels // len(parts[0]) // heads, arrays[-1].shape[1:3]
    plan = Plan.of(batch, heads, depth, tuple(queries), keys, bool(tables))
    inputs, specs = {}, {}
    for names, array in zip(parts, arrays, strict=True):
        for i, name in enumerate(names):
            inputs[name], specs[name] = array, _block(plan, name, i * plan.blocks)
    if tables:
        inputs["tables"] = _placed(plan, *tables).astype(arrays[0].dtype)
        inputs["one_hot"] = jnp.asarray(_one_hot(plan), arrays[0].dtype)
        for name in ("tables", "one_hot"):
            origin = (0,) * inputs[name].ndim
            specs[name] = pl.BlockSpec(
                inputs[name].shape, lambda h, b, t, at=origin: at, pipeline_mode=pl.Buffered(1)
            )
    return plan, parts, inputs, specs


def _call(kernel, plan, inputs, specs, outputs, out_specs):
    """{name: array} of `outputs`. The grid: block of channels, items of the batch, time, which is
    a chunk of queries or, after all of them, a gradient to be written."""
    gradient = "d_out" in inputs
    batch, dtype = len(inputs["q"]), inputs["q"].dtype
    flat_keys = plan.keys[0] * plan.stride
    scratch = {}
    if plan.stride != plan.keys[1]:
        for name in inputs:
            if name in ("q", "k", "v", "d_out"):
                rows = plan.keys[0] if name in ("k", "v") else plan.chunk
                scratch[f"flat_{name}"] = pltpu.VMEM((rows * plan.stride, plan.lanes), dtype)
    if gradient:
        for name in ("sum_k", "sum_v"):
            scratch[name] = pltpu.VMEM((plan.items, flat_keys, plan.lanes), jnp.float32)
    names = [*inputs, *outputs, *scratch]

    def body(*refs):
        kernel(dict(zip(names, refs, strict=True)), plan)

    queries, keys = (math.prod(grid) for grid in (plan.queries, plan.keys))
    products = keys * plan.depth * (5 if gradient else 2)
    if plan.tables:
        distances = plan.queries[0] + plan.keys[0] - 1 + 2 * plan.keys[1] - 1
        products += distances * plan.depth * (3 if gradient else 1)
        products += keys * sum(plan.keys) * (2 if gradient else 1)  # with the one-hot channels
    moved = {id(x): x for x in [*inputs.values(), *outputs.values()]}.values()
    results = pl.pallas_call(
        body,
        grid=(plan.blocks, batch // plan.items, plan.chunks + 2 * gradient),
        in_specs=list(specs.values()),
        out_specs=list(out_specs.values()),
        out_shape=list(outputs.values()),
        scratch_shapes=list(scratch.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * plan.blocks * plan.together * queries * products,
            transcendentals=batch * plan.blocks * plan.together * queries * keys,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in moved),
        ),
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _block(plan, name, offset=0):
    """Of an array [B, rows, w, channels], from its channel block `offset` on: a chunk of queries,
    or all keys or values."""
    if name != "q":
        shape = (plan.items, *plan.keys, plan.lanes)
        once = pl.Buffered(1) if plan.chunks > 1 else None  # seldom others: their wait is short
        return pl.BlockSpec(shape, lambda h, b, t: (b, 0, 0, offset + h), pipeline_mode=once)
    shape, last = (plan.items, plan.chunk, plan.queries[1], plan.lanes), plan.chunks - 1
    return pl.BlockSpec(shape, lambda h, b, t: (b, jnp.minimum(t, last), 0, offset + h))


def _gradient_at(plan, names, h, b, t):
    """The block of an array with the parts `names` that its gradient is written to: q's while there
    are chunks, then k's and then v's."""
    part = jnp.clip(t - plan.chunks + 1 - "qkv".index(names[0]), 0, len(names) - 1)
    return b, 0, 0, part * plan.blocks + h


def _placed(plan, rel_pos_h, rel_pos_w):
    """The tables as matrices [tables, groups, channels, group] that q of a block is multiplied by,
    its channels where the heads of a group lie.

    Backwards, so that a query's keys follow each other. Where both lie in one matrix, the second
    begins in the middle; where each has its own, the second is turned by half of it.
    """

    def place(table, start):
        backwards = jnp.pad(table[::-1].T, ((0, 0), (0, plan.extra - len(table))))
        return jnp.roll(backwards, start, 1)

    both = jnp.stack([place(rel_pos_h, 0), place(rel_pos_w, plan.extra // 2)])
    both = both.sum(0, keepdims=True) if plan.tables == 1 else both
    placed = jnp.stack([jnp.kron(jnp.eye(plan.together), table) for table in both])
    placed = jnp.pad(placed, ((0, 0), (0, 0), (0, plan.groups * plan.group - placed.shape[2])))
    columns = jnp.split(placed, plan.groups, 2)
    rows = [column[:, plan.span(plan.heads(group))] for group, column in enumerate(columns)]
    most = max(row.shape[1] for row in rows)
    rows = [jnp.pad(row, ((0, 0), (0, most - row.shape[1]), (0, 0))) for row in rows]
    return jnp.stack(rows, 1)


def _one_hot(plan):
    """[keys, group]: the channels of the keys that meet q.Rh and q.Rw of any head."""
    key = np.arange(plan.keys[0] * plan.stride)[:, None]
    channel = np.arange(plan.group) % plan.extra
    row, column = key // plan.stride, key % plan.stride
    ones = (channel == row) | (channel == plan.extra // 2 + column)
    none = NO_KEY * (channel == plan.extra // 2 + plan.keys[1])
    return np.where(column < plan.keys[1], ones, none)


def _stride(rows, width):  # of a grid of keys
    return width if rows == 1 else _up(width, 16)


def _room(depth):  # scores of a block; those of many heads leave less
    return SCORES if _together(depth) * depth == LANES else SCORES // 2


def _together(depth):  # heads of so many channels that fill a block
    return math.lcm(depth, LANES) // depth


def _up(number, multiple):
    return -(-number // multiple) * multiple


def _largest_divisor(number, limit):
    return max(n for n in range(1, min(limit, number) + 1) if number % n == 0)
