"""draw.py: regions in their colours with their names on them, masks, boxes, heat."""

import numpy as np
import pytest

from samclip_jax import draw

PHOTO = np.full((48, 64, 3), 100, np.uint8)
LABELS = np.zeros((48, 64), int)
LABELS[:, 32:] = 1


def test_a_label_map_has_its_colours_and_names():
    palette = np.uint8([[255, 0, 0], [0, 0, 255]])
    picture = draw.label_map(PHOTO, LABELS, ["a very long name", "grass"], palette)
    assert picture.shape == (384, 512, 3) and picture.dtype == np.uint8
    corner = draw.TINT * palette + (1 - draw.TINT) * 100
    np.testing.assert_array_equal(picture[0, 0], corner[0].astype(int))
    np.testing.assert_array_equal(picture[0, -1], corner[1].astype(int))
    white = (picture == 255).all(-1)
    assert white[:, :256].any() and white[:, 256:].any() and not white[:100].any()


def test_what_has_no_label_and_what_is_small_is_left_alone():
    labels = np.full((48, 64), -1)
    labels[0, 0] = 0
    picture = draw.label_map(PHOTO, labels, ["dust"])
    assert (picture[8:, 8:] == 100).all() and not (picture == 255).all(-1).any()


@pytest.mark.parametrize("place", [(0, 0), (383, 511)])
def test_a_name_at_the_edge_is_all_inside(place):
    labels = np.full((48, 64), -1)
    rows, columns = (slice(4) if at == 0 else slice(-4, None) for at in place)
    labels[rows], labels[:, columns] = 0, 0
    inside = draw.label_map(PHOTO, labels, ["name"])
    middle = np.full((48, 64), -1)
    middle[12:36] = 0
    whole = draw.label_map(PHOTO, middle, ["name"])
    assert (inside == 255).all(-1).sum() == pytest.approx((whole == 255).all(-1).sum(), rel=0.1)


def test_masks_are_filled_and_boxes_drawn():
    mask = LABELS == 1
    picture = draw.outlines(PHOTO, mask[None], [[4, 4, 28, 40]], np.uint8([[255, 0, 0]]))
    assert (picture[192, 400] > PHOTO[0, 0])[0] and (picture[10, 5] == 100).all()
    assert (picture[100, 32] == [255, 0, 0]).all() and (picture[100, 100] == 100).all()
    assert (draw.outlines(PHOTO, ()) == 100).all()


def test_heat_is_bright_where_values_are_high():
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = 5
    picture = draw.heat(PHOTO, values).astype(int).sum(-1)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert 128 <= row < 256 and 256 <= column < 384
    assert draw.heat(PHOTO, np.zeros((3, 4))).shape == (384, 512, 3)


def test_colours_differ_from_their_neighbours():
    colours = draw.colours(20).astype(int)
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100
    assert draw.colours(0).shape == (0, 3)
