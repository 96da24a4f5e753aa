"""CLIP's text tower equals OpenCLIP's and Hugging Face's."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, MODULE, assert_close, call, golden


def pooled(dtype=jnp.float32):
    return lambda clip, tokens: clip.text(tokens, dtype)


@pytest.mark.parametrize("name", ["openclip_16", "openclip_32_quick", "huggingface_14"])
def test_tower_matches_the_original(name):
    """Texts of several lengths, one filling the context; pooled at each one's end token."""
    original = golden(name)
    case = original.case("text")
    assert_close(original.call(pooled(), case["tokens"]), case["pooled"], MODULE)


def test_tower_in_bfloat16_is_close():
    original = golden("openclip_16")
    case = original.case("text")
    assert_close(original.call(pooled(jnp.bfloat16), case["tokens"]), case["pooled"], BFLOAT16)


def test_tower_without_projection_matches_the_original():
    original = golden("huggingface_14")
    text = dataclasses.replace(original.config.text, embed_dim=None)
    config = dataclasses.replace(original.config, text=text)
    params = {k: v for k, v in original.params.items() if k != "text/projection/kernel"}
    case = original.case("text")
    assert_close(call(config, params, pooled(), case["tokens"]), case["unprojected"], MODULE)


def test_what_follows_the_end_token_changes_nothing():
    """Causal: padding, another pad value, or a context cut after the end give the same."""
    original = golden("openclip_16")
    tokens = original.case("text")["tokens"][:2]  # 3 and 5 tokens of 12
    expected = original.call(pooled(), tokens)
    padded = np.where(tokens == 0, 7, tokens)
    np.testing.assert_array_equal(original.call(pooled(), padded), expected)
    assert_close(original.call(pooled(), tokens[:, :6]), expected, 1e-6)
