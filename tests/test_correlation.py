"""ops/correlation.py and the head's other attentions: what numpy makes of the formulas."""

import jax
import numpy as np
import pytest
from parity import golden
from scipy import special

from samclip_jax import families, models
from samclip_jax.models.clip_head import attend
from samclip_jax.ops.correlation import correlated, self_correlated


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(keys, values, mean=0.0):  # [N, D], [N, C] -> [N, C]
    alike = 10 * (keys @ keys.T - mean)
    alike[alike < 0] = -np.inf
    return special.softmax(alike, axis=-1) @ values


@pytest.mark.parametrize("tokens", [5, 256, 301])
def test_values_of_like_keys_are_averaged(tokens):
    """Of two images and three heads, each by itself; more tokens than rows that exist at once."""
    rng = np.random.default_rng(0)
    keys = unit(rng.normal(size=(2, 3, tokens, 6))).astype(np.float32)
    values = rng.normal(size=(2, 3, tokens, 4)).astype(np.float32)
    found = correlated(keys, values)
    expected = [[by_hand(keys[i, j], values[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_map_is_correlated_with_itself_above_its_mean():
    rng = np.random.default_rng(1)
    features = unit(rng.normal(size=(2, 7, 11, 8)) + [1, 0, 0, 0, 0, 0, 0, 0]).astype(np.float32)
    found = self_correlated(features)
    for image, answer in zip(features.reshape(2, 77, 8), found, strict=True):
        expected = by_hand(image, image, (image @ image.T).mean())
        np.testing.assert_allclose(answer.reshape(77, 8), expected, atol=1e-5)
        assert np.abs(expected - image).max() > 0.1


def test_similarities_never_exist_as_a_whole():
    """64 x 64 patches: a part of the 67 MB of their float32 similarities."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 32), np.float32)
    memory = jax.jit(self_correlated).lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64**4 * 4 / 4


@pytest.fixture(scope="module")
def block():
    """One block of a head with random weights."""
    _, params = models.split(families.init(golden("clip_head").config, seed=3))
    rng = np.random.default_rng(0)
    params = {k: rng.normal(0, 0.3, leaf.shape).astype(np.float32) for k, leaf in params.items()}
    graph, _ = models.split(families.abstract(golden("clip_head").config))
    head = models.merge(graph, params).text_head
    return jax.tree.map(lambda leaf: leaf[1], head.blocks)


def plain(block, x, pair, scale):  # of one image, without the projection
    """softmax(scale * a b^T) v in every head; pair: which of q, k, v a and b are."""
    qkv = np.asarray(block.qkv(x)).reshape(-1, 3, block.heads, x.shape[-1] // block.heads)
    parts = qkv.transpose(1, 2, 0, 3)
    a, b = (parts[i] for i in pair)
    return parts[2], special.softmax(scale * a @ b.swapaxes(1, 2), axis=-1) @ parts[2]


def joined(x, shape):  # [heads, N, D] -> [h, w, C]
    return x.transpose(1, 0, 2).reshape(shape)


@pytest.mark.parametrize("grid", [(8, 8), (7, 11)])
def test_values_attend_to_values(block, grid):
    x = np.random.default_rng(2).normal(size=(2, *grid, block.proj.kernel.shape[0]))
    x = x.astype(np.float32)
    found = attend("values", block, x)
    for image, answer in zip(x, found, strict=True):
        scale = (image.shape[-1] // block.heads) ** -0.5
        _, expected = plain(block, image[None], (2, 2), scale)
        np.testing.assert_allclose(answer, block.proj(joined(expected, image.shape)), atol=1e-5)


@pytest.mark.parametrize("grid", [(8, 8), (7, 11)])
def test_the_answer_says_which_values_go_together(block, grid):
    """As RADSeg has it; the first answer is the block's own, with relative position."""
    x = np.random.default_rng(3).normal(size=(2, *grid, block.proj.kernel.shape[0]))
    x = x.astype(np.float32)
    found, own = attend("recursive", block, x), block.attend(x)
    for image, first, answer in zip(x, own, found, strict=True):
        values, _ = plain(block, image[None], (0, 1), 1.0)
        s = unit(np.asarray(first).reshape(values.shape[1], block.heads, -1).transpose(1, 0, 2))
        expected = np.stack([by_hand(a, b) for a, b in zip(s, values, strict=True)])
        np.testing.assert_allclose(answer, block.proj(joined(expected, image.shape)), atol=1e-5)
