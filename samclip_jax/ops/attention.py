"""Attention, plain and with SAM's decomposed relative position.

`q.Rh + q.Rw` is an inner product with one-hot columns. With the channels

    [q * scale | q.Rh | q.Rw]    against    [k | onehot(row) | onehot(column)]

the biased attention is a plain one, exactly, and no [tokens, tokens] bias is ever made.
"""

import jax
import jax.numpy as jnp

from samclip_jax.ops.resize import resize_line

QUERY_CHUNK = 256
WHOLE_UP_TO = 1024  # tokens; above, the scores exist for one head and QUERY_CHUNK queries at a time


def attention(q, k, v, *, scale=1.0, mask=None):
    """softmax(scale * q k^T) v, scores and softmax in float32, output in q's dtype.

    q [B, N, H, D], k [B, M, H, D], v [B, M, H, E] -> [B, N, H, E].
    mask: bool, broadcastable to [B, H, N, M]; False keys are left out.
    """
    if mask is None and q.shape[1] > WHOLE_UP_TO:
        return _chunked_attention(q, k, v, scale)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhe->bnhe", weights, v)


def _chunked_attention(q, k, v, scale):
    batch, tokens, heads, _ = q.shape
    chunks = -(-tokens // QUERY_CHUNK)
    q = jnp.pad(q, ((0, 0), (0, chunks * QUERY_CHUNK - tokens), (0, 0), (0, 0)))
    q, k, v = (x.swapaxes(1, 2).reshape(batch * heads, -1, x.shape[-1]) for x in (q, k, v))
    q = q.reshape(batch * heads, chunks, QUERY_CHUNK, -1)

    def one_head(head):
        q, k, v = head

        @jax.checkpoint
        def one_chunk(q):  # [QUERY_CHUNK, D] -> [QUERY_CHUNK, E], normalised after the product
            scores = jnp.einsum("nd,md->nm", q, k, preferred_element_type=jnp.float32) * scale
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            out = jnp.einsum(
                "nm,me->ne", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)

        return jax.lax.map(one_chunk, q)

    out = jax.lax.map(one_head, (q, k, v))  # [B * H, chunks, QUERY_CHUNK, E]
    out = out.reshape(batch, heads, chunks * QUERY_CHUNK, -1)[:, :, :tokens]
    return out.swapaxes(1, 2)


def rel_pos_attention(q, k, v, rel_pos_h, rel_pos_w, grid):
    """Attention over a grid of tokens with SAM's decomposed relative position.

    q, k, v [B, h * w, H, D]; rel_pos_h, rel_pos_w [L, D], resized to 2h - 1 and 2w - 1 rows;
    grid (h, w). The unscaled q meets the tables (segment_anything add_decomposed_rel_pos).
    """
    h, w = grid
    batch, tokens, heads, width = q.shape
    rows, columns = _relative(rel_pos_h, h), _relative(rel_pos_w, w)  # [h, h, D], [w, w, D]
    q_grid = q.reshape(batch, h, w, heads, width)
    q_rows = jnp.einsum("bijnd,ikd->bijnk", q_grid, rows.astype(q.dtype))
    q_columns = jnp.einsum("bijnd,jkd->bijnk", q_grid, columns.astype(q.dtype))
    folded_q = jnp.concatenate([q_grid * width**-0.5, q_rows, q_columns], -1)
    one_hot = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.eye(h, dtype=k.dtype)[:, None], (h, w, h)),
            jnp.broadcast_to(jnp.eye(w, dtype=k.dtype)[None], (h, w, w)),
        ],
        -1,
    ).reshape(1, tokens, 1, h + w)
    one_hot = jnp.broadcast_to(one_hot, (batch, tokens, heads, h + w))
    folded_k = jnp.concatenate([k, one_hot], -1)
    return attention(folded_q.reshape(batch, tokens, heads, -1), folded_k, v)


def _relative(table, size):  # [L, D] -> [size, size, D], entry [query, key]
    table = resize_line(table, 2 * size - 1)
    return table[jnp.arange(size)[:, None] - jnp.arange(size)[None] + size - 1]
