"""SAM's mask decoder equals segment_anything's MaskDecoder, all masks and their IoU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, MODULE, assert_close, assert_same_ranking, golden


def decode(dtype=jnp.float32):
    def method(sam, embedding, image_pe, sparse, dense, present):
        return sam.mask_decoder(embedding.astype(dtype), image_pe, sparse, dense, present)

    return method


def inputs(case):
    """One image, two prompts with a dense embedding each, all their five tokens present."""
    sparse = case["sparse"][None]
    present = np.ones(sparse.shape[:3], bool)
    return case["embedding"], case["image_pe"][0], sparse, case["dense"][None], present


@pytest.mark.parametrize("size", ["64x64", "56x88"])
def test_decoder_matches_the_original(size):
    """A transposed convolution that is mirrored, or h and w swapped, shows in every mask."""
    original = golden("sam")
    case = original.case(f"decoder/{size}")
    output = original.call(decode(), *inputs(case))
    assert_close(output.low_res_masks[0], case["low_res_masks"], MODULE)
    assert_close(output.iou[0], case["iou"], MODULE)


def test_decoder_in_bfloat16_is_close_and_ranks_masks_alike():
    original = golden("sam")
    case = original.case("decoder/64x64")
    output = original.call(decode(jnp.bfloat16), *inputs(case))
    assert output.low_res_masks.dtype == output.iou.dtype == jnp.float32
    assert_close(output.low_res_masks[0], case["low_res_masks"], BFLOAT16)
    assert_close(output.iou[0], case["iou"], BFLOAT16)
    assert_same_ranking(output.iou[0], case["iou"])


def test_an_absent_slot_is_no_token():
    """As if it were not there: same outputs, whatever the slot holds, and no gradient to it."""
    original = golden("sam")
    embedding, image_pe, sparse, dense, present = inputs(original.case("decoder/56x88"))
    filled = sparse.copy()
    filled[:, :, 3:] = 100
    present[:, :, 3:] = False

    def outputs(sam, sparse, filled):
        def masks(sparse, present):
            return decode()(sam, embedding, image_pe, sparse, dense, present).low_res_masks

        shorter = masks(sparse[:, :, :3], present[:, :, :3])
        gradient = jax.grad(lambda sparse: jnp.square(masks(sparse, present)).sum())(filled)
        return shorter, masks(sparse, present), masks(filled, present), gradient

    shorter, masked, other, gradient = original.call(outputs, sparse, filled)
    assert_close(masked, shorter, 1e-6)
    np.testing.assert_array_equal(masked, other)
    assert np.abs(gradient[:, :, :3]).max(-1).min() > 0
    assert not gradient[:, :, 3:].any()
