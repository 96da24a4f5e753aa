"""SAM's image encoder equals segment_anything's ImageEncoderViT at any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, MODULE, assert_close, golden

from samclip_jax import families, models
from samclip_jax.models.config import ImageEncoderConfig, SamConfig
from samclip_jax.models.image_encoder import from_windows, to_windows

# The table's size, smaller, larger (no window is padded), and two whose height and width are
# padded differently; then one group of four layers with the real patch.
CASES = [("sam", size) for size in ("64x64", "40x40", "96x96", "56x88", "88x40")]
CASES += [("sam_one_group", size) for size in ("96x96", "128x48")]


@pytest.mark.parametrize("name, size", CASES)
def test_encoder_matches_the_original(name, size):
    """Tokens and embedding, every bias and rel-pos non-zero; see CASES for what would break it."""
    original = golden(name)
    case = original.case(f"encoder/{size}")
    output = original.call(lambda sam, images: sam.encode(images), case["images"])
    assert_close(output.tokens, case["tokens"], MODULE)
    assert_close(output.embedding, case["embedding"], MODULE)


def test_encoder_in_bfloat16_is_close():
    original = golden("sam")
    case = original.case("encoder/56x88")
    output = original.call(
        lambda sam, images: sam.encode(images, dtype=jnp.bfloat16), case["images"]
    )
    assert output.tokens.dtype == output.embedding.dtype == jnp.bfloat16
    assert_close(output.tokens, case["tokens"], BFLOAT16)
    assert_close(output.embedding, case["embedding"], BFLOAT16)


def test_remat_changes_no_gradient():
    original = golden("sam_one_group")
    images = original.case("encoder/128x48")["images"][:1]
    trained = {k: v for k, v in original.params.items() if k.startswith("encoder/")}

    def gradients(sam, images):
        graph, params = models.split(sam)

        def loss(trained, remat):
            output = models.merge(graph, params | trained).encode(images, remat=remat)
            return jnp.square(output.tokens).mean() + jnp.square(output.embedding).mean()

        return jax.grad(loss)(trained, remat=False), jax.grad(loss)(trained, remat=True)

    kept, recomputed = original.call(gradients, images)
    for name in trained:
        assert np.abs(kept[name]).max() > 0, f"{name} gets no gradient"
        assert_close(recomputed[name], kept[name], MODULE)


def test_pixels_outside_the_photograph_are_zero_after_normalising():
    """Whatever the frame holds beyond `sizes`, the encoder sees the mean colour there."""
    original = golden("sam")
    images = original.case("encoder/56x88")["images"]
    sizes = np.int32([[56, 88], [33, 70]])
    filled, grey = images.copy(), np.float32(images)
    filled[1, 33:], filled[1, :, 70:] = 255, 17
    grey[1, 33:] = grey[1, :, 70:] = original.config.encoder.mean

    def embed(sam, images, filled, grey, sizes):
        padded = [sam.encode(x, sizes).embedding for x in (images, filled)]
        return *padded, sam.encode(grey).embedding

    plain, other, expected = original.call(embed, images, filled, grey, sizes)
    np.testing.assert_array_equal(plain, other)
    assert_close(plain, expected, MODULE)


VIT_B, VIT_L, VIT_H = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1280, 32, 16, 5120)


@pytest.mark.parametrize(
    "sizes, size",
    [(VIT_B, (side, side)) for side in (224, 336, 448, 512, 1024)]
    + [(VIT_L, (512, 1024)), (VIT_H, (1024, 688))],
)
def test_vit_b_l_and_h_take_any_size(sizes, size):
    width, depth, heads, mlp_width = sizes
    config = SamConfig(ImageEncoderConfig(width, depth, heads, mlp_width=mlp_width))
    graph, params = models.split(families.abstract(config))
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    output = jax.eval_shape(
        lambda params, images: models.merge(graph, params).encode(images), params, images
    )
    grid = (size[0] // 16, size[1] // 16)
    assert output.tokens.shape == (2, *grid, width)
    assert output.embedding.shape == (2, *grid, 256)


def test_windows_hold_neighbours_and_zeros():
    """[1, 4, 7, 1] in windows of 3: 2 x 3 windows, the last row and columns zeros."""
    x = 1 + jnp.arange(28.0).reshape(1, 4, 7, 1)
    windows = to_windows(x, 3)
    assert windows.shape == (6, 3, 3, 1)
    np.testing.assert_array_equal(windows[1, :, :, 0], [[4, 5, 6], [11, 12, 13], [18, 19, 20]])
    np.testing.assert_array_equal(windows[5, :, :, 0], [[28, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(from_windows(windows, x.shape), x)
