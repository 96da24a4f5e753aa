"""CLIP's image tower equals OpenCLIP's and Hugging Face's: patch 14, 16 and 32, both GELUs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, MODULE, assert_close, call, golden
from PIL import Image

NAMES = ["openclip_16", "openclip_32_quick", "huggingface_14"]


def pooled(dtype=jnp.float32):
    return lambda clip, images: clip.vision(clip.vision.preprocess(images, dtype))


@pytest.mark.parametrize("name", NAMES)
def test_tower_matches_the_original(name):
    original = golden(name)
    case = original.case("vision")
    assert_close(original.call(pooled(), case["images"]), case["pooled"], MODULE)


def test_tower_in_bfloat16_is_close():
    original = golden("openclip_16")
    case = original.case("vision")
    output = original.call(pooled(jnp.bfloat16), case["images"])
    assert output.dtype == jnp.bfloat16
    assert_close(output, case["pooled"], BFLOAT16)


def test_tower_without_projection_matches_the_original():
    original = golden("huggingface_14")
    vision = dataclasses.replace(original.config.vision, embed_dim=None)
    config = dataclasses.replace(original.config, vision=vision)
    params = {k: v for k, v in original.params.items() if k != "vision/projection/kernel"}
    case = original.case("vision")
    assert_close(call(config, params, pooled(), case["images"]), case["unprojected"], MODULE)


def test_tower_at_another_size_matches_the_original():
    """84 x 42 px against a table for 56 x 56: Hugging Face's interpolate_pos_encoding."""
    original = golden("huggingface_14")
    case = original.case("vision/84x42")
    vision = original.config.vision
    pixels = (case["images"] - np.float32(vision.mean)) / np.float32(vision.std)
    assert_close(original.call(lambda clip, x: clip.vision(x), pixels), case["pooled"], MODULE)


def test_patch_tokens_match_the_original():
    original = golden("huggingface_14")
    case = original.case("vision")
    dense = original.call(
        lambda clip, images: clip.vision.dense(clip.vision.preprocess(images)), case["images"]
    )
    assert dense.shape == (3, 4, 4, 20)
    assert_close(dense.reshape(case["dense"].shape), case["dense"], MODULE)


def test_value_path_of_the_last_block():
    """MaskCLIP: projection(post_norm(proj(v))) of the last block, in the original's own names."""
    original = golden("huggingface_14")
    images = original.case("vision")["images"]
    weights = original.weights

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    shallow = dataclasses.replace(original.config.vision, depth=2)
    config = dataclasses.replace(original.config, vision=shallow)
    params = {
        name: value[:2] if name.startswith("vision/blocks") else value
        for name, value in original.params.items()
    }
    before = call(
        config, params, lambda clip, x: clip.vision.tokens(clip.vision.preprocess(x)), images
    )
    last = "vision_model.encoder.layers.2"
    x = norm(np.asarray(before)[:, 1:], f"{last}.layer_norm1")
    x = linear(linear(x, f"{last}.self_attn.v_proj"), f"{last}.self_attn.out_proj")
    x = norm(x, "vision_model.post_layernorm") @ weights["visual_projection.weight"].T
    values = original.call(
        lambda clip, x: clip.vision.dense(clip.vision.preprocess(x), values=True), images
    )
    assert_close(values.reshape(x.shape), x, MODULE)


def test_images_are_resized_to_the_tower_as_pillow_does():
    """uint8 of any size; Pillow's antialiased bicubic but for its rounding in between."""
    original = golden("openclip_16")
    photo = 64 + original.case("vision")["images"][0] // 2  # Pillow clips between its two passes
    photo = photo.repeat(3, 0).repeat(2, 1)  # 192 x 128
    expected = np.asarray(Image.fromarray(photo).resize((64, 64), Image.Resampling.BICUBIC))
    vision = original.config.vision
    seen = original.call(lambda clip, images: clip.vision.preprocess(images), photo[None])
    levels = seen[0] * np.float32(vision.std) + np.float32(vision.mean)
    assert np.abs(levels - expected).max() <= 1.25
