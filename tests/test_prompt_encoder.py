"""SAM's prompt encoder equals segment_anything's PromptEncoder."""

import numpy as np
import pytest
from parity import MODULE, assert_close, golden

from samclip_jax.models.prompt_encoder import ABSENT


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (56, 88)])
def test_points_and_boxes_match_the_original(size, box):
    """Points alone end in one not-a-point; a box is its two corners. A lost half pixel shows."""
    original = golden("sam")
    case = original.case(f"prompts/{size[0]}x{size[1]}/box={box}")
    tokens = original.call(
        lambda sam, points, labels: sam.prompt_encoder.points(points, labels, size),
        case["points"],
        case["labels"],
    )
    assert_close(tokens, case["sparse"], MODULE)


@pytest.mark.parametrize("size", ["64x64", "56x88"])
def test_masks_and_grid_match_the_original(size):
    original = golden("sam")
    case = original.case(f"prompts/{size}")
    h, w = case["grid"].shape[:2]
    dense, grid = original.call(
        lambda sam, masks: (sam.prompt_encoder.masks(masks), sam.prompt_encoder.grid(h, w)),
        case["masks"],
    )
    assert_close(dense, case["dense"], MODULE)
    assert_close(grid, case["grid"], MODULE)


def test_prompts_stay_float32_beside_a_bfloat16_model():
    """Positions in bfloat16 would be off by several px at 1024."""
    original = golden("sam")
    points, labels = np.float32([[[[1000.25, 3.5]]]]), np.int32([[[ABSENT]]])
    tokens = original.call(
        lambda sam, *prompt: sam.prompt_encoder.points(*prompt, (1024, 1024)), points, labels
    )
    assert tokens.dtype == np.float32
