"""Attention, plain and with SAM's decomposed relative position.

`q.Rh + q.Rw` is an inner product with one-hot columns. With the channels

    [q * scale | q.Rh | q.Rw]    against    [k | onehot(row) | onehot(column)]

the biased attention is a plain one, exactly, and no [tokens, tokens] bias ever lies in memory. So
it is on TPUs (attention_tpu.py); elsewhere the two parts are added to each block of scores.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from samclip_jax import sharding
from samclip_jax.ops import attention_tpu
from samclip_jax.ops.resize import resize_line

QUERY_CHUNK = 256
WHOLE_UP_TO = 1024  # tokens; above, the scores exist for one head and QUERY_CHUNK queries at a time
ATTENDED = "attended"  # the name of the outputs that rematerialisation may keep
KERNEL_FROM = 128  # tokens; below, a block of scores is too small to be worth a kernel


def attention(q, k, v, *, scale=1.0, mask=None):
    """softmax(scale * q k^T) v, scores and softmax in float32, output in q's dtype.

    q [B, N, H, D], k [B, M, H, D], v [B, M, H, D] -> [B, N, H, D].
    mask: bool, broadcastable to [B, H, N, M]; False keys are left out.
    """
    if mask is None:
        return _fused(None, scale, q, k, v, None, parts=True)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v)


def rel_pos_attention(q, k, v, rel_pos_h, rel_pos_w, grid, windows=False):
    """Attention over a grid of tokens with SAM's decomposed relative position.

    q, k, v [B, h * w, H, D]; rel_pos_h, rel_pos_w [L, D], resized to 2h - 1 and 2w - 1 rows;
    grid (h, w). The unscaled q meets the tables (segment_anything add_decomposed_rel_pos).
    windows: the grids are windows of images, not images.
    """
    h, w = grid
    batch, tokens, heads, width = q.shape
    rows, columns = _relative(rel_pos_h, h), _relative(rel_pos_w, w)  # [h, h, D], [w, w, D]
    q_grid = q.reshape(batch, h, w, heads, width)
    q_rows = jnp.einsum("bijnd,ikd->bijnk", q_grid, rows.astype(q.dtype))
    q_columns = jnp.einsum("bijnd,jkd->bijnk", q_grid, columns.astype(q.dtype))
    bias = jnp.concatenate([q_rows, q_columns], -1).reshape(batch, tokens, heads, h + w)
    return _fused(grid, width**-0.5, q, k, v, bias, parts=windows)


def _relative(table, size):  # [L, D] -> [size, size, D], entry [query, key]
    table = resize_line(table, 2 * size - 1)
    return table[jnp.arange(size)[:, None] - jnp.arange(size)[None] + size - 1]


def _fused(grid, scale, q, k, v, bias, parts):
    if min(q.shape[1], k.shape[1]) < KERNEL_FROM:
        return _blocks(grid, scale, q, k, v, bias)
    attend = sharding.on_each_device(functools.partial(_attend, grid, scale), parts)
    return checkpoint_name(attend(q, k, v, bias), ATTENDED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(grid, scale, q, k, v, bias):
    """softmax(scale q k^T + bias) v; bias [B, N, H, h + w] for the rows and columns of the keys.

    Only the inputs are kept for the gradient.
    """

    def kernel(*arrays):
        return attention_tpu.forward(*arrays, _one_hot(grid), scale)

    blocks = functools.partial(_blocks, grid, scale)
    return jax.lax.platform_dependent(q, k, v, bias, tpu=kernel, default=blocks)


def _attend_forward(grid, scale, *arrays):
    return _attend(grid, scale, *arrays), arrays


def _attend_backward(grid, scale, arrays, d_out):
    def kernel(d_out, *arrays):
        return attention_tpu.backward(*arrays, _one_hot(grid), d_out, scale)

    def blocks(d_out, *arrays):
        return jax.vjp(functools.partial(_blocks, grid, scale), *arrays)[1](d_out)

    return jax.lax.platform_dependent(d_out, *arrays, tpu=kernel, default=blocks)


_attend.defvjp(_attend_forward, _attend_backward)


def _one_hot(grid):  # -> [h * w, h + w], float32
    if grid is None:
        return None
    rows, columns = np.indices(grid)
    return np.concatenate([np.eye(grid[0])[rows.ravel()], np.eye(grid[1])[columns.ravel()]], 1)


def _blocks(grid, scale, q, k, v, bias):
    """The same for any platform, block by block of scores where there are many tokens."""
    if q.shape[1] <= WHOLE_UP_TO:
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * scale
        if bias is not None:
            scores += _spread(bias.swapaxes(1, 2), grid)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    batch, tokens, heads, width = q.shape
    chunks = -(-tokens // QUERY_CHUNK)

    def cut(x):  # [B, N, H, C] -> [B * H, chunks, QUERY_CHUNK, C]
        x = jnp.pad(x, ((0, 0), (0, chunks * QUERY_CHUNK - tokens), (0, 0), (0, 0)))
        return x.swapaxes(1, 2).reshape(batch * heads, chunks, QUERY_CHUNK, -1)

    def one_head(head):
        queries, k, v = head

        @jax.checkpoint
        def one_chunk(queries):  # normalised after the product with the values
            q, bias = queries
            scores = jnp.einsum("nd,md->nm", q, k, preferred_element_type=jnp.float32) * scale
            if bias is not None:
                scores += _spread(bias, grid)
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            out = jnp.einsum(
                "nm,md->nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

        return jax.lax.map(one_chunk, queries)

    queries = cut(q), None if bias is None else cut(bias)
    k, v = (x.swapaxes(1, 2).reshape(batch * heads, -1, width) for x in (k, v))
    out = jax.lax.map(one_head, (queries, k, v))  # [B * H, chunks, QUERY_CHUNK, D]
    out = out.reshape(batch, heads, chunks * QUERY_CHUNK, width)[:, :, :tokens]
    return out.swapaxes(1, 2)


def _spread(bias, grid):  # [..., h + w] -> float32 [..., h * w]
    rows, columns = bias[..., : grid[0], None], bias[..., None, grid[0] :]
    spread = rows.astype(jnp.float32) + columns.astype(jnp.float32)
    return spread.reshape(*bias.shape[:-1], -1)
