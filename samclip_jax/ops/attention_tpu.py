"""Attention as a Pallas kernel for TPUs: all keys of a head lie in the on-chip memory at once.

Heads stand side by side in blocks of 128 channels, as the linear layer before made them: nothing
is transposed. A head is told from its neighbours by zeros: q with the neighbours' channels zeroed
meets all 128 channels of k, which takes the matrix unit no longer than the head's own. The relative
position comes as further channels, `bias` against `one_hot`.

The backward kernel needs nothing but the inputs: it makes the weights again, transposed, so that
three of its five products need no other transposition.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SCORES = 2**20  # a block of scores has no more elements: 256 queries against 4096 keys
QUERIES = 2048  # of small images or windows together, in one step of the grid
VMEM_BYTES = 100 * 2**20


def forward(q, k, v, bias, one_hot, scale):
    """softmax(scale q k^T + bias one_hot^T) v -> [B, N, H, D].

    q [B, N, H, D]; k, v [B, M, H, D]; bias [B, N, H, E] with one_hot [M, E], or both None. Sums in
    float32, matrix products in the dtype of q. 2 D + E multiplications a score.
    """
    inputs = {"q": q, "k": k, "v": v, "bias": bias, "one_hot": one_hot}
    return _call(_forward, inputs, ["q"], scale, lambda d, e: 2 * d + e)[0]


def backward(q, k, v, bias, one_hot, d_out, scale):
    """The gradients of `forward` to (q, k, v, bias); the last is None without a bias.

    5 D + 2 E multiplications a score.
    """
    inputs = {"q": q, "k": k, "v": v, "bias": bias, "one_hot": one_hot, "d_out": d_out}
    outputs = ["q", "k", "v"] + ["bias"] * (bias is not None)
    grads = _call(_backward, inputs, outputs, scale, lambda d, e: 5 * d + 2 * e)
    return *grads, *[None] * (4 - len(grads))


def _call(kernel, inputs, outputs, scale, products):
    """`kernel` on every block of `inputs`; `outputs` names those that they have the shapes of."""
    inputs = {name: x for name, x in inputs.items() if x is not None}
    batch, queries, heads, width = inputs["q"].shape
    keys, extra = inputs["k"].shape[1], inputs["bias"].shape[-1] if "bias" in inputs else 0
    together = LANES // width if LANES % width == 0 and heads % (LANES // width) == 0 else 1
    step = LANES if together == 1 else 64
    room = {name: _up(extra, step) for name in ("bias", "one_hot")}  # channels of a head

    def packed(name, x):  # [B, N, H, C] -> [B, N, H * room], one_hot [M, E] -> [M, room]
        room.setdefault(name, _up(width, LANES // together))
        x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, room[name] - x.shape[-1]),))
        x = x.astype(inputs["q"].dtype)
        return x if name == "one_hot" else x.reshape(*x.shape[:2], -1)

    arrays = {name: packed(name, x) for name, x in inputs.items()}
    chunks = -(-queries * keys // SCORES)
    chunk = queries if chunks == 1 else _up(-(-queries // chunks), 16)
    items = _largest_divisor(batch, max(1, QUERIES // queries))  # images or windows of a block

    def block(name):
        if name == "one_hot":
            return pl.BlockSpec((keys, room[name]), lambda b, h, c: (0, 0))
        if name in ("k", "v"):
            return pl.BlockSpec((items, keys, together * room[name]), lambda b, h, c: (b, 0, h))
        return pl.BlockSpec((items, chunk, together * room[name]), lambda b, h, c: (b, c, h))

    shapes = [jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype) for name in outputs]
    sums = [name for name in outputs if name in ("k", "v")]
    names = [*arrays, *(f"out_{name}" for name in outputs), *(f"sum_{name}" for name in sums)]

    def body(*refs):
        refs = dict(zip(names, refs, strict=True))
        kernel(refs, items, together, width, room, scale, queries)

    scores = batch * heads * queries * keys
    moved = [*arrays.values(), *shapes]
    outs = pl.pallas_call(
        body,
        grid=(batch // items, heads // together, -(-queries // chunk)),
        in_specs=[block(name) for name in arrays],
        out_specs=[block(name) for name in outputs],
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM(block(name).block_shape, jnp.float32) for name in sums],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * scores * products(width, extra),
            transcendentals=scores,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in moved),
        ),
    )(*arrays.values())
    likes = [inputs[name] for name in outputs]
    return [
        out.reshape(*x.shape[:3], -1)[..., : x.shape[-1]]
        for out, x in zip(outs, likes, strict=True)
    ]


def _forward(refs, items, together, width, room, scale, queries):
    def one(i, _):
        q, k = refs["q"][i], _keys(refs, i)
        v = refs["v"][i]
        out = jnp.zeros(q.shape, jnp.float32)
        for head in range(together):
            own = _channels(head, width, q.shape)
            query = _query(refs, i, jnp.where(own, q, 0), head, room, scale)
            scores = _product(query, k, (1, 1))  # [chunk, M]
            weights = jnp.exp(scores - scores.max(1, keepdims=True))
            values = _product(weights.astype(v.dtype), v, (1, 0))
            out = jnp.where(own, values / weights.sum(1, keepdims=True), out)
        refs["out_q"][i] = out.astype(q.dtype)
        return _

    jax.lax.fori_loop(0, items, one, None)


def _backward(refs, items, together, width, room, scale, queries):
    here = pl.program_id(2)

    @pl.when(here == 0)
    def _():
        refs["sum_k"][...] = jnp.zeros(refs["sum_k"].shape, jnp.float32)
        refs["sum_v"][...] = jnp.zeros(refs["sum_v"].shape, jnp.float32)

    def one(i, _):
        k, v = _keys(refs, i), refs["v"][i]
        chunk, lanes = refs["q"].shape[1:]
        # the last block reaches beyond the queries: what lies there must not be summed
        there = jax.lax.broadcasted_iota(jnp.int32, (chunk, lanes), 0) + here * chunk < queries
        d_q = jnp.zeros((chunk, lanes), jnp.float32)
        for head in range(together):
            own = there & _channels(head, width, (chunk, lanes))
            query = _query(refs, i, jnp.where(own, refs["q"][i], 0), head, room, scale, there)
            d_out = jnp.where(own, refs["d_out"][i], 0)
            scores = _product(k, query, (1, 1))  # [M, chunk]
            weights = jnp.exp(scores - scores.max(0, keepdims=True))
            weights = weights / weights.sum(0, keepdims=True)
            d_weights = _product(v, d_out, (1, 1))
            d_scores = weights * (d_weights - (weights * d_weights).sum(0, keepdims=True))
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(v.dtype)
            refs["sum_v"][i] += _product(weights, d_out, (1, 0))
            refs["sum_k"][i] += _product(d_scores, query[:, :lanes], (1, 0))
            d_query = _product(d_scores, k, (0, 0))  # [chunk, lanes + E]
            d_q = jnp.where(own, scale * d_query[:, :lanes], d_q)
            if "bias" in refs:
                at = slice(head * room["bias"], (head + 1) * room["bias"])
                refs["out_bias"][i, :, at] = d_query[:, lanes:].astype(v.dtype)
        refs["out_q"][i] = d_q.astype(v.dtype)
        return _

    jax.lax.fori_loop(0, items, one, None)

    @pl.when(here == pl.num_programs(2) - 1)
    def _():
        refs["out_k"][...] = refs["sum_k"][...].astype(refs["out_k"].dtype)
        refs["out_v"][...] = refs["sum_v"][...].astype(refs["out_v"].dtype)


def _keys(refs, i):  # [M, lanes + E]
    k = refs["k"][i]
    return jnp.concatenate([k, refs["one_hot"][...]], 1) if "bias" in refs else k


def _query(refs, i, q, head, room, scale, there=None):  # [chunk, lanes + E]
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    if "bias" not in refs:
        return q
    bias = refs["bias"][i, :, head * room["bias"] : (head + 1) * room["bias"]]
    if there is not None:
        bias = jnp.where(there[:, :1], bias, 0)
    return jnp.concatenate([q, bias], 1)


def _channels(head, width, shape):  # whether a channel is of this head
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) // width == head


def _product(a, b, contracted):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=exact, preferred_element_type=jnp.float32
    )


def _up(number, multiple):
    return -(-number // multiple) * multiple


def _largest_divisor(number, limit):
    return max(n for n in range(1, min(limit, number) + 1) if number % n == 0)
