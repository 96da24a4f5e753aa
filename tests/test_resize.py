"""Resizing equals torch.nn.functional.interpolate and, for photographs, Pillow."""

import numpy as np
import pytest
from parity import MODULE, assert_close, golden
from PIL import Image

from samclip_jax.ops.resize import resize_grid, resize_images, resize_line, resize_maps


@pytest.mark.parametrize("size", [(3, 4), (15, 20)])
def test_tables_and_maps_match_torch(size):
    """Down, where torch does not antialias, and up; height and width change differently."""
    case = golden("resize").case(f"{size[0]}x{size[1]}")
    assert_close(resize_grid(case["table"], size), case["resized_table"], MODULE)
    assert_close(resize_line(case["line"], size[0]), case["resized_line"], MODULE)
    assert_close(resize_maps(case["maps"], size), case["resized_maps"], MODULE)


def test_the_same_size_is_the_same_array():
    table = np.ones((3, 5, 2), np.float32)
    assert resize_grid(table, (3, 5)) is table
    assert resize_line(table[0], 5) is not None
    assert resize_line(table[0], 5).shape == (5, 2)


@pytest.mark.parametrize("size", [(20, 31), (90, 120)])
def test_photographs_match_pillow(size):
    """But for rounding, to 255 levels, which Pillow does (as clipping) after either pass."""
    rng = np.random.default_rng(0)
    photo = np.uint8(rng.integers(64, 192, (12, 16, 3)).repeat(5, 0).repeat(4, 1))  # 60 x 64
    expected = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BICUBIC))
    assert np.abs(resize_images(photo[None], size)[0] - expected).max() <= 1.25
