"""Attention, plain and with SAM's decomposed relative position.

`q.Rh + q.Rw` is an inner product with one-hot columns. With the channels

    [q * scale | q.Rh | q.Rw]    against    [k | onehot(row) | onehot(column)]

the biased attention is a plain one, exactly, and no [tokens, tokens] bias ever lies in memory. So
it is on TPUs (attention_tpu.py) and, by cuDNN, on NVIDIA GPUs; elsewhere the two parts are added to
each block of scores.
"""

import functools

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name

from samclip_jax import sharding
from samclip_jax.ops import attention_tpu
from samclip_jax.ops.resize import resize_line

QUERY_CHUNK = 256
WHOLE_UP_TO = 1024  # tokens; above, the scores exist for one head and QUERY_CHUNK queries at a time
ATTENDED = "attended"  # the name of the outputs that rematerialisation may keep
KERNEL_FROM = 128  # tokens; below, a block of scores is too small to be worth a kernel
CUDNN_CHANNELS = 8  # of a head, or a multiple


def attention(q, k, v, *, scale=1.0, mask=None):
    """softmax(scale * q k^T) v, scores and softmax in float32, output in q's dtype.

    q [B, N, H, D], k [B, M, H, D], v [B, M, H, D] -> [B, N, H, D].
    mask: bool, broadcastable to [B, H, N, M]; False keys are left out.
    """
    if mask is None:
        return _blocks(None, scale, q, k, v, None)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v)


def self_attention(qkv, heads, rel_pos=(), whole=True):
    """softmax(q k^T / sqrt(D)) v within every grid of tokens, as `attention`.

    qkv [B, h, w, 3 C]: q, k and v side by side, in each the heads side by side -> [B, h, w, C].
    rel_pos: SAM's tables (rel_pos_h, rel_pos_w) [L, D], resized to 2 h - 1 and 2 w - 1 rows, which
    the unscaled q meets (segment_anything add_decomposed_rel_pos).
    whole: every grid lies whole on a device, as windows do; else devices may share its rows.
    On TPUs by a kernel, where attention_tpu.takes the arrays. On NVIDIA GPUs by cuDNN's, where it
    takes [q | q.Rh | q.Rw]: not in float32, and over 128 channels from compute capability 9.0.
    """
    h, w = qkv.shape[1:3]
    tables = tuple(resize_line(x, 2 * n - 1) for x, n in zip(rel_pos, (h, w), strict=False))
    if h * w < KERNEL_FROM:
        return _any_platform(heads, (qkv,), tables)
    attend = sharding.on_each_device(functools.partial(_on_a_device, heads), whole)
    return checkpoint_name(attend(qkv, tables), ATTENDED)


def _on_a_device(heads, axes, qkv, tables):
    """axes: of the mesh, along which lie further rows of the same images."""
    if not axes:
        return _attend(heads, (qkv,), tables)
    q, kv = jnp.split(qkv, [qkv.shape[-1] // 3], -1)
    kv = jax.lax.all_gather(kv, axes, axis=1, tiled=True)
    rows, h = q.shape[1], kv.shape[1]
    first = jax.lax.axis_index(axes) * rows
    if tables:
        rel_pos_h = jax.lax.dynamic_slice_in_dim(tables[0], first, rows + h - 1)
        tables = rel_pos_h, tables[1]
    return _attend(heads, (q, kv), tables)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(heads, arrays, tables):
    """The attention of attention_tpu.forward. Only the inputs are kept for the gradient."""
    forms = attention_tpu.forward, _by_cudnn, _any_platform
    return _choose(heads, (arrays, tables), *(functools.partial(form, heads) for form in forms))


def _attend_forward(heads, arrays, tables):
    return _attend(heads, arrays, tables), (arrays, tables)


def _attend_backward(heads, inputs, d_out):
    def pull(form, arrays, tables, d_out):
        return jax.vjp(functools.partial(form, heads), arrays, tables)[1](d_out)

    forms = (functools.partial(pull, form) for form in (_by_cudnn, _any_platform))
    kernel = functools.partial(attention_tpu.backward, heads)
    return _choose(heads, (*inputs, d_out), kernel, *forms)


_attend.defvjp(_attend_forward, _attend_backward)


def _choose(heads, inputs, kernel, cudnn, default):
    """The form for the platform that it is compiled for, if that takes the inputs."""
    forms = {"default": default}
    if attention_tpu.takes(heads, *inputs[:2]):
        forms["tpu"] = kernel
    if _cudnn_takes(cudnn, inputs):
        forms["cuda"] = cudnn
    return jax.lax.platform_dependent(*inputs, **forms)


def _cudnn_takes(function, inputs):
    """The library is asked: it depends on its version, the GPU, dtype, tokens and channels."""
    if jax.default_backend() != "gpu":
        return False
    try:
        jax.eval_shape(function, *inputs)
    except RuntimeError as error:  # how it declines
        logging.log_first_n(logging.WARNING, "attention without cuDNN: %s", 1, error)
        return False
    return True


def _by_cudnn(heads, arrays, tables):
    """See attention_tpu.forward."""
    (h, w), q, k, v, bias = _heads(heads, arrays, tables)
    depth = q.shape[-1]
    q = q * jnp.asarray(depth**-0.5, q.dtype)
    if bias is not None:
        rows, columns = jnp.repeat(jnp.eye(h), w, 0), jnp.tile(jnp.eye(w), (h, 1))
        onehot = jnp.concatenate([rows, columns], -1).astype(k.dtype)[:, None]
        onehot = jnp.broadcast_to(onehot, (*k.shape[:3], h + w))
        q, k = jnp.concatenate([q, bias], -1), jnp.concatenate([k, onehot], -1)
    channels = -(-q.shape[-1] // CUDNN_CHANNELS) * CUDNN_CHANNELS
    q, k, v = (jnp.pad(x, (*[(0, 0)] * 3, (0, channels - x.shape[-1]))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")
    return out[..., :depth].reshape(arrays[0].shape[:3] + (-1,))


def _any_platform(heads, arrays, tables):
    """See attention_tpu.forward."""
    grid, q, k, v, bias = _heads(heads, arrays, tables)
    out = _blocks(grid, q.shape[-1] ** -0.5, q, k, v, bias)
    return out.reshape(arrays[0].shape[:3] + (-1,))


def _heads(heads, arrays, tables):
    """The keys' grid, q, k and v [B, tokens, heads, D], and q's products with the tables."""
    (batch, rows, w, _), h = arrays[0].shape, arrays[-1].shape[1]
    counts = (3,) if len(arrays) == 1 else (1, 2)  # qkv; q and kv
    parts = (part for x, n in zip(arrays, counts, strict=True) for part in jnp.split(x, n, -1))
    q, k, v = (x.reshape(batch, x.shape[1] * w, heads, -1) for x in parts)
    bias = None
    if tables:
        by_row, by_column = (
            table.astype(q.dtype)[jnp.arange(n)[:, None] - jnp.arange(m) + m - 1]
            for table, n, m in zip(tables, (rows, w), (h, w), strict=True)
        )  # [queries, keys, D]
        grid = q.reshape(batch, rows, w, heads, -1)
        q_rows = jnp.einsum("bijnd,ikd->bijnk", grid, by_row)
        q_columns = jnp.einsum("bijnd,jkd->bijnk", grid, by_column)
        bias = jnp.concatenate([q_rows, q_columns], -1).reshape(*q.shape[:3], h + w)
    return (h, w), q, k, v, bias


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
