"""Attention: the relative position, the chunks and the TPU kernels are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from parity import BFLOAT16, MODULE, assert_close

from samclip_jax.ops import attention as ops
from samclip_jax.ops import attention_tpu


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.standard_normal(shape)) for shape in shapes]


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


def fused(q, k, v, rel_pos_h, rel_pos_w, grid, dtype=None):
    """self_attention of the same arrays."""
    qkv = jnp.concatenate([x.reshape(len(x), *grid, -1) for x in (q, k, v)], -1)
    out = ops.self_attention(qkv.astype(dtype or q.dtype), q.shape[2], (rel_pos_h, rel_pos_w))
    return out.reshape(q.shape)


def grids(seed, h, w, batch=2, heads=2, width=8):
    return draw(seed, *[(batch, h * w, heads, width)] * 3, (2 * h - 1, width), (2 * w - 1, width))


def outputs(attention, arrays):
    """[output, the gradients of its squares to all arrays], of one program."""

    def loss(*arrays):
        output = attention(*arrays)
        return jnp.square(output.astype(jnp.float32)).sum(), output

    gradients, output = jax.jit(jax.grad(loss, range(len(arrays)), has_aux=True))(*arrays)
    return [output, *gradients]


def assert_same(attention, reference, arrays, tolerance=MODULE):
    """Output and every gradient."""
    pairs = zip(outputs(attention, arrays), outputs(reference, arrays), strict=True)
    for ours, expected in pairs:
        assert_close(ours, expected, tolerance)


def assert_exact(arrays, grid, dtype=None, tolerance=MODULE):
    """self_attention gives what the explicit bias does."""
    ours, explicit = (functools.partial(f, grid=grid) for f in (fused, with_explicit_bias))
    assert_same(functools.partial(ours, dtype=dtype), explicit, arrays, tolerance)


@pytest.mark.parametrize("grid", [(5, 3), (12, 13)])
def test_relative_position_is_the_explicit_bias(grid):
    """h and w told apart; 15 tokens are not kept for the gradient by themselves, 156 are."""
    assert_exact(grids(0, *grid), grid)


@pytest.fixture
def kernel(monkeypatch):
    """As on a TPU, in interpret mode, where what nobody wrote is NaN."""

    def on_tpu(*args, default, tpu=None):
        return (tpu or default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        yield


@pytest.mark.parametrize(
    "grid, heads, width, batch",
    [
        ((14, 14), 4, 64, 3),  # windows of SAM, two heads in a block of channels
        ((28, 28), 2, 64, 1),
        ((9, 17), 4, 32, 2),  # not square, of odd width; four heads in a block
        ((12, 12), 8, 80, 1),  # ViT-H's heads, some of them across two blocks of 128 channels
        ((12, 12), 3, 64, 1),  # heads that fill no block: without the kernel
        ((4, 64), 2, 64, 2),  # each table by itself
        ((70, 3), 2, 64, 1),  # more relative positions than 128
    ],
)
def test_the_kernel_is_the_explicit_bias(kernel, grid, heads, width, batch):
    assert_exact(grids(0, *grid, batch, heads, width), grid)


def test_blocks_of_queries_change_nothing(kernel, monkeypatch):
    """14 rows of queries, two at a time."""
    monkeypatch.setattr(attention_tpu, "SCORES", 2 * 16 * 14 * 16)
    assert_exact(grids(0, 14, 13, 2, 2, 64), (14, 13))


def test_the_kernel_in_bfloat16(kernel):
    """With relative positions that weigh as much as the scores."""
    grid = (14, 14)
    q, k, v, *tables = grids(0, *grid, 1, 2, 64)
    arrays = [q, k, v, *(table / 8 for table in tables)]
    assert jax.eval_shape(lambda: fused(*arrays, grid, jnp.bfloat16)).dtype == jnp.bfloat16
    assert_exact(arrays, grid, jnp.bfloat16, BFLOAT16)


@pytest.fixture
def cudnn(monkeypatch):
    """As on an NVIDIA GPU, the library's attention by XLA."""

    def on_gpu(*args, cuda, **others):
        return cuda(*args)

    def library(q, k, v, *, scale, implementation):
        assert implementation == "cudnn" and q.shape[-1] % 8 == 0
        assert k.shape == v.shape
        return plain(q, k, v, scale=scale, implementation="xla")

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_gpu)
    monkeypatch.setattr(ops, "_cudnn_takes", lambda *inputs: True)


@pytest.mark.parametrize("grid, heads, width", [((14, 14), 4, 64), ((9, 17), 2, 80)])
def test_the_library_on_gpus_is_the_explicit_bias(cudnn, grid, heads, width):
    """92 channels, and 106, which are no multiples of 8."""
    assert_exact(grids(0, *grid, 2, heads, width), grid)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("grid", [(14, 14), (28, 28)])
def test_gpus_call_the_library(grid):
    arrays = grids(0, *grid, 1, 2, 64)
    arrays = [*arrays[:3], *(table / 8 for table in arrays[3:])]
    halved = functools.partial(fused, dtype=jnp.bfloat16)
    program = jax.jit(lambda *arrays: halved(*arrays, grid)).lower(*arrays)
    assert "fmha" in program.as_text()
    with jax.default_matmul_precision("highest"):
        exact = outputs(lambda *x: with_explicit_bias(*x, grid), arrays)
    for ours, expected in zip(outputs(lambda *x: halved(*x, grid), arrays), exact, strict=True):
        assert_close(ours, expected, BFLOAT16)


@pytest.mark.parametrize("grid", [(1, 257), (12, 12), (8, 16)])
def test_without_relative_position(kernel, grid):
    """257 tokens of CLIP; rows with gaps between them, which are not for the kernel; without."""
    tokens = grid[0] * grid[1]
    arrays = draw(0, *[(2, tokens, 2, 64)] * 3)

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / 8, -1)
        return jnp.einsum("bhnm,bmhd->bnhd", weights, v)

    def ours(q, k, v):
        qkv = jnp.concatenate([x.reshape(2, *grid, -1) for x in (q, k, v)], -1)
        return ops.self_attention(qkv, 2).reshape(q.shape)

    assert_same(ours, plain, arrays)


@pytest.mark.parametrize("platform", ["tpu", "gpu", "any"])
def test_some_rows_of_queries_against_all_keys(request, platform):
    """As where devices share an image: rows 4 to 11 of 12, and the gradients of what they give."""
    if platform != "any":
        request.getfixturevalue({"tpu": "kernel", "gpu": "cudnn"}[platform])
    *arrays, rel_pos_h, rel_pos_w = grids(0, 12, 16, 2, 2, 64)
    q, kv = arrays[0], jnp.concatenate([x.reshape(2, 12, 16, -1) for x in arrays[1:]], -1)

    def rows(q, kv, rel_pos_h, rel_pos_w):
        some = q.reshape(2, 12, 16, -1)[:, 4:]
        return ops._attend(2, (some, kv), (rel_pos_h[4:], rel_pos_w))

    def whole(q, kv, rel_pos_h, rel_pos_w):
        qkv = jnp.concatenate([q.reshape(2, 12, 16, -1), kv], -1)
        return ops.self_attention(qkv, 2, (rel_pos_h, rel_pos_w))[:, 4:]

    assert_same(rows, whole, (q, kv, rel_pos_h, rel_pos_w))


def test_relative_position_in_bfloat16():
    grid = (5, 3)
    arrays = grids(0, *grid)
    expected = jax.jit(lambda: with_explicit_bias(*arrays, grid))()
    output = jax.jit(lambda: fused(*arrays, grid, jnp.bfloat16))()
    assert output.dtype == jnp.bfloat16
    assert_close(output, expected, BFLOAT16)


@pytest.mark.parametrize("tokens", [512, 700])
def test_chunks_change_nothing(monkeypatch, tokens):
    """Outputs and gradients, also where the chunks do not divide the tokens (700 = 2.7 x 256)."""
    q, k, v = draw(0, *[(2, tokens, 2, 8)] * 3)

    def run():
        return outputs(lambda q, k, v: ops.attention(q, k, v, scale=0.5), (q, k, v))

    whole = run()
    monkeypatch.setattr(ops, "WHOLE_UP_TO", 256)
    for chunked, reference in zip(run(), whole, strict=True):
        assert_close(chunked, reference, MODULE)


def test_a_large_grid_is_chunked_and_exact():
    """34 x 33 = 1122 tokens, over WHOLE_UP_TO, through the path that SAM's global blocks take."""
    grid = (34, 33)
    arrays = grids(0, *grid, batch=1, heads=1)
    assert arrays[0].shape[1] > ops.WHOLE_UP_TO
    jaxpr = str(jax.make_jaxpr(lambda *arrays: fused(*arrays, grid))(*arrays))
    assert "1122,1122" not in jaxpr, "scores of all tokens at once"
    expected = jax.jit(lambda: with_explicit_bias(*arrays, grid))()
    assert_close(jax.jit(lambda: fused(*arrays, grid))(), expected, MODULE)


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
