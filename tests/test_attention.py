"""Attention: the folded relative position and the chunks are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, MODULE, assert_close

from samclip_jax.ops import attention as ops


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.standard_normal(shape)) for shape in shapes]


@functools.partial(jax.jit, static_argnums=5)
def with_explicit_bias(q, k, v, rel_pos_h, rel_pos_w, grid):
    """segment_anything's way: the bias of every pair of tokens, q unscaled."""
    h, w = grid
    width = q.shape[-1]
    rows, columns = jnp.divmod(jnp.arange(h * w), w)
    bias_h = rel_pos_h[rows[:, None] - rows[None] + h - 1]  # [tokens, tokens, D]
    bias_w = rel_pos_w[columns[:, None] - columns[None] + w - 1]
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * width**-0.5
    scores += jnp.einsum("bnhd,nmd->bhnm", q, bias_h) + jnp.einsum("bnhd,nmd->bhnm", q, bias_w)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, -1), v)


def grids(seed, h, w, batch=2, heads=2, width=8):
    return draw(seed, *[(batch, h * w, heads, width)] * 3, (2 * h - 1, width), (2 * w - 1, width))


def test_folded_relative_position_is_the_explicit_bias():
    """Outputs and every gradient, h and w told apart."""
    grid = (5, 3)
    arrays = grids(0, *grid)
    expected = with_explicit_bias(*arrays, grid)
    assert_close(ops.rel_pos_attention(*arrays, grid), expected, MODULE)

    def gradients(attention):
        def loss(*arrays):
            return jnp.square(attention(*arrays, grid)).sum()

        return jax.jit(jax.grad(loss, range(5)))(*arrays)

    folded, explicit = gradients(ops.rel_pos_attention), gradients(with_explicit_bias)
    for ours, reference in zip(folded, explicit, strict=True):
        assert_close(ours, reference, MODULE)


def test_folded_relative_position_in_bfloat16():
    grid = (5, 3)
    arrays = grids(0, *grid)
    expected = with_explicit_bias(*arrays, grid)
    halved = [x.astype(jnp.bfloat16) for x in arrays[:3]]
    output = ops.rel_pos_attention(*halved, *arrays[3:], grid)
    assert output.dtype == jnp.bfloat16
    assert_close(output, expected, BFLOAT16)


@pytest.mark.parametrize("tokens", [512, 700])
def test_chunks_change_nothing(monkeypatch, tokens):
    """Outputs and gradients, also where the chunks do not divide the tokens (700 = 2.7 x 256)."""
    q, k, v = draw(0, (2, tokens, 2, 8), (2, tokens, 2, 8), (2, tokens, 2, 4))

    def run():
        def loss(*arrays):
            output = ops.attention(*arrays, scale=0.5)
            return jnp.square(output).sum(), output

        gradients, output = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return output, *gradients

    whole = run()
    monkeypatch.setattr(ops, "WHOLE_UP_TO", 256)
    for chunked, reference in zip(run(), whole, strict=True):
        assert_close(chunked, reference, MODULE)


def test_a_large_grid_is_chunked_and_exact():
    """34 x 33 = 1122 tokens, over WHOLE_UP_TO, through the path that SAM's global blocks take."""
    grid = (34, 33)
    arrays = grids(0, *grid, batch=1, heads=1)
    assert arrays[0].shape[1] > ops.WHOLE_UP_TO
    jaxpr = str(jax.make_jaxpr(lambda *arrays: ops.rel_pos_attention(*arrays, grid))(*arrays))
    assert "1122,1122" not in jaxpr, "scores of all tokens at once"
    expected = with_explicit_bias(*arrays, grid)
    assert_close(jax.jit(lambda: ops.rel_pos_attention(*arrays, grid))(), expected, MODULE)


def test_chunks_in_bfloat16_and_with_large_scores(monkeypatch):
    monkeypatch.setattr(ops, "WHOLE_UP_TO", 128)
    q, k, v = draw(0, *[(1, 300, 1, 8)] * 3)
    assert np.isfinite(ops.attention(100 * q, 100 * k, v)).all()
    expected = ops.attention(q, k, v)
    halved = ops.attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert halved.dtype == jnp.bfloat16
    assert_close(halved, expected, BFLOAT16)


def test_masked_keys_are_left_out():
    q, k, v = draw(0, *[(2, 6, 2, 8)] * 3)
    mask = jnp.arange(6) < 4
    expected = ops.attention(q, k[:, :4], v[:, :4])
    assert_close(ops.attention(q, k, v, mask=mask), expected, 1e-6)
