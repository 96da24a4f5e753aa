"""inference/prompts.py: what cannot be a prompt is one sentence that names the argument."""

import numpy as np
import pytest

from samclip_jax.errors import UserError
from samclip_jax.inference.prompts import decoder_arguments, decoder_prompts
from samclip_jax.models.prompt_encoder import (
    ABSENT,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    NOT_A_POINT,
)

POINT, NAN = [[3, 3]], float("nan")
MASKS = np.zeros((3, 32, 32), np.float32)


def of_one(point_coords=None, point_labels=None, box=None, mask_input=None):
    """Of a photograph of 60 x 45 px and masks of 32 x 32."""
    return decoder_prompts(
        point_coords, point_labels, box, mask_input, (45, 60), (32, 32), single=True
    )


def of_several(point_coords=None, point_labels=None, boxes=None, mask_input=None):
    return decoder_prompts(point_coords, point_labels, boxes, mask_input, (45, 60), (32, 32))


# Points, boxes and masks


def test_a_box_is_two_points_whichever_corners_are_given():
    for box in ([4, 7, 50, 31], [50, 31, 4, 7], [4, 31, 50, 7], np.uint8([50, 7, 4, 31])):
        coords, labels, masks = of_one(box=box)
        np.testing.assert_array_equal(coords, [[[4, 7], [50, 31]]])
        np.testing.assert_array_equal(labels, [[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]])
        assert masks is None
    np.testing.assert_array_equal(of_one(box=[[50, 31, 4, 7]])[0], [[[4, 7], [50, 31]]])


def test_points_end_in_one_that_is_none_and_fill_up_to_a_power_of_two():
    coords, labels, _ = of_one([[1, 2], [3, 4]], np.float32([1, -1]))
    np.testing.assert_array_equal(labels, [[FOREGROUND, NOT_A_POINT, NOT_A_POINT, ABSENT]])
    np.testing.assert_array_equal(coords[0, :2], [[1, 2], [3, 4]])
    _, labels, masks = of_one([], [], mask_input=MASKS[:1])
    assert labels.tolist() == [[NOT_A_POINT, ABSENT]] and masks.shape == (1, 32, 32)


def test_what_lies_about_the_photograph_is_taken():
    """Half a detector's box outside, no area, and padding anywhere."""
    for box in ([-20, -20, 70, 60], [5, 5, 5, 5]):
        assert of_one(box=box)[0].shape == (1, 2, 2)
    assert of_one([[3, 3], [-999, -999]], [1, -1])[0].shape == (1, 4, 2)


@pytest.mark.parametrize(
    "prompts",
    [
        dict(boxes=[]),
        dict(boxes=np.zeros((0, 4))),
        dict(point_coords=[], point_labels=[]),
        dict(point_coords=np.zeros((0, 3, 2)), point_labels=np.zeros((0, 3)), boxes=[]),
        dict(mask_input=np.zeros((0, 1, 32, 32))),
    ],
)
def test_no_prompts_are_none(prompts):
    coords, labels, masks = of_several(**prompts)
    assert coords.shape == (*labels.shape, 2) and len(labels) == 0
    assert masks is None or masks.shape == (0, 32, 32)


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        (dict(), "nothing to predict from: give points, a box or a mask"),
        (dict(point_coords=[], point_labels=[]), "point_coords is empty"),
        (dict(point_coords=POINT), "give both"),
        (dict(point_labels=[1]), "give both"),
        (dict(point_coords=[3, 3], point_labels=[1]), r"one point is point_coords=\[\[x, y\]\]"),
        (dict(point_coords=POINT, point_labels=1), r"point_labels must be \[N\].* one point is"),
        (dict(point_coords=[POINT] * 2, point_labels=[[1]] * 2), "use predict_batch"),
        (dict(point_coords=POINT * 2, point_labels=[1]), "a label each; got 2 .* and 1"),
        (dict(point_coords=[[1, 2], [3]], point_labels=[1, 1]), "rows differ in length"),
        (dict(point_coords=[["3", "3"]], point_labels=[1]), "point_coords must be real numbers"),
        (dict(point_coords=[[3, None]], point_labels=[1]), "point_coords must be real numbers"),
        (dict(point_coords=[[3, 1j]], point_labels=[1]), "point_coords must be real numbers"),
        (dict(point_coords=[[3, NAN]], point_labels=[1]), "point_coords must be finite"),
        (dict(point_coords=[[3, 1e39]], point_labels=[1]), "point_coords must be finite"),
        (dict(point_coords=[[3, 106]], point_labels=[1]), "point_coords .* 60 x 45 .* far outside"),
        (dict(point_coords=POINT, point_labels=[7]), "point_labels must be 1 .*; got 7"),
        (dict(point_coords=POINT, point_labels=[2]), "point_labels must be 1 .*; got 2"),
        (dict(point_coords=POINT, point_labels=[0.5]), "point_labels must be 1 .*; got 0.5"),
        (dict(point_coords=POINT, point_labels=[True]), "point_labels must be real numbers"),
        (dict(box=[[1, 2, 3, 4]] * 2), "^box .*; for several prompts use predict_batch"),
        (dict(box=[1, 2, 3]), r"box must be \[4\]"),
        (dict(box=[1, 2, 3, -np.inf]), "box must be finite"),
        (dict(box=[-61, 2, 3, 4]), "box .* far outside"),
        (dict(box="1 2 3 4"), "box must be real numbers"),
        (dict(mask_input=MASKS), r"mask_input .* take one, low_res_masks\[i : i \+ 1\]"),
        (dict(mask_input=MASKS[:1] + np.nan), "mask_input must be finite"),
        (dict(mask_input=MASKS[:1] > 0), "mask_input must be real numbers"),
    ],
)
def test_mistakes_in_one_prompt(prompt, sentence):
    with pytest.raises(UserError, match=sentence):
        of_one(**prompt)


@pytest.mark.parametrize(
    "prompts, sentence",
    [
        (dict(boxes=[1, 2, 3, 4]), r"boxes must be \[K, 4\].*; for one prompt use predict"),
        (dict(boxes=[[1, 2, 3, 4, 0.9]]), r"boxes must be \[K, 4\]"),
        (dict(point_coords=POINT, point_labels=[1]), "for one prompt use predict"),
        (
            dict(point_coords=[POINT] * 2, point_labels=[[1]] * 2, boxes=[[1, 2, 3, 4]] * 3),
            "same K prompts; got 2 in point_coords, 2 in point_labels, 3 in boxes",
        ),
        (dict(boxes=[[1, 2, 3, 4]], mask_input=MASKS[:, None]), "1 in boxes, 3 in mask_input"),
        (dict(boxes=[], mask_input=MASKS[:, None]), "0 in boxes, 3 in mask_input"),
        (dict(point_coords=[[]] * 2, point_labels=[[]] * 2), r"point_coords must be \[K, N, 2\]"),
    ],
)
def test_mistakes_in_several_prompts(prompts, sentence):
    with pytest.raises(UserError, match=sentence):
        of_several(**prompts)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(index=[0, 2]), "index must be 0 to 1"),
        (dict(points=[[[1, NAN]]] * 2), "points must be finite"),
        (dict(labels=[[1], [4]]), "labels must be -2 to 3"),
        (dict(labels=[[1]] * 3), "same K prompts"),
        (dict(masks=MASKS[:2, :8]), r"masks must be \[K, 32, 32\]"),
        (dict(masks=MASKS), "same K prompts"),
    ],
)
def test_mistakes_in_what_the_decoder_is_given(wrong, sentence):
    """Two images of 8 x 8 patches; the labels of boxes and of absent points are the decoder's."""
    arguments = dict(index=[0, 1], points=[[[1, 2]]] * 2, labels=[[3], [-2]], masks=MASKS[:2])
    embedding = np.zeros((2, 8, 8, 4))
    arrays = decoder_arguments(**arguments, embedding=embedding)
    assert [array.dtype.kind for array in arrays] == list("ifif")
    with pytest.raises(UserError, match=sentence):
        decoder_arguments(**arguments | wrong, embedding=embedding)
