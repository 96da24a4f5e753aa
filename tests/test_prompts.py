"""Simulated prompts point at their object, in SAM's coding."""

import numpy as np
import pytest

from samclip_jax.data import prompts
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.prompts import (
    ABSENT,
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    NOT_A_POINT,
    PromptConfig,
    simulate,
)
from samclip_jax.errors import UserError

OLD, NEW = (60, 80), (120, 160)  # photograph and resized image: everything doubles


def annotation(x0, y0, x1, y1, mask=True, point=None, area=None):
    """An object that fills the lower left triangle of its box."""
    filled = np.zeros(OLD, bool)
    rows, columns = np.mgrid[y0:y1, x0:x1]
    filled[y0:y1, x0:x1] = (rows - y0) / (y1 - y0) >= (columns - x0) / (x1 - x0)
    return {
        "box": np.float32([x0, y0, x1, y1]),
        "point": None if point is None else np.float32(point),
        "mask": filled if mask else None,
        "area": float(filled.sum()) if area is None else area,
        "category": None,
    }


def kinds(labels):
    """What each prompt is: "box", or the number of its points."""
    return ["box" if row[0] == BOX_TOP_LEFT else int((row >= 0).sum()) for row in labels]


def draw(annotations, seed=0, **config):
    return simulate(
        annotations,
        OLD,
        NEW,
        PromptConfig(**{"interior": True, **config}),
        np.random.default_rng(seed),
    )


def test_labels_are_the_prompt_encoders():
    from samclip_jax.models import prompt_encoder

    names = "BACKGROUND FOREGROUND BOX_TOP_LEFT BOX_BOTTOM_RIGHT NOT_A_POINT ABSENT"
    for name in names.split():
        assert getattr(prompts, name) == getattr(prompt_encoder, name)


def test_shapes_are_static_and_the_coding_is_sams():
    for seed in range(5):
        points, labels = draw([annotation(10, 10, 40, 50)], seed, per_image=16, max_points=3)
        assert points.shape == (16, 4, 2) and points.dtype == np.float32
        assert labels.shape == (16, 4) and labels.dtype == np.int32
        for kind, row, coords in zip(kinds(labels), labels.tolist(), points, strict=True):
            if kind == "box":
                assert row == [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, ABSENT, ABSENT]
            else:
                assert row == [FOREGROUND] * kind + [NOT_A_POINT] + [ABSENT] * (3 - kind)
                assert not coords[kind:].any()


def test_the_kinds_come_as_often_as_asked():
    _, labels = draw([annotation(10, 10, 40, 50)], per_image=4000, box=2, point=1, points=1)
    found = kinds(labels)
    assert abs(found.count("box") / 4000 - 1 / 2) < 0.04
    assert abs(found.count(1) / 4000 - (1 / 4 + 1 / 12)) < 0.04
    assert abs(found.count(3) / 4000 - 1 / 12) < 0.04
    assert PromptConfig(points=0).slots == 2 and PromptConfig(points=1, max_points=5).slots == 6


def test_points_are_uniform_in_the_mask():
    object = annotation(10, 10, 40, 50)
    points, labels = draw([object], per_image=600, box=0, point=0, points=1)
    x, y = (points[labels == FOREGROUND] / 2).astype(int).T
    assert object["mask"][y, x].all()
    rows, columns = np.nonzero(object["mask"])
    assert abs(x.mean() - columns.mean()) < 1.5 and abs(y.mean() - rows.mean()) < 1.5
    assert np.ptp(x) > 25 and np.ptp(y) > 35


def test_negatives_lie_beside_the_object_and_never_come_first():
    object = annotation(10, 10, 40, 50)
    points, labels = draw([object], per_image=300, box=0, point=0, points=1, negatives=0.5)
    x, y = (points[labels == BACKGROUND] / 2).astype(int).T
    assert len(x) > 50 and not object["mask"][y, x].any()
    assert x.min() >= 10 and x.max() <= 40 and y.min() >= 10 and y.max() <= 50
    assert (labels[:, 0] == FOREGROUND).all()


def test_boxes_are_jittered_as_sams():
    """Standard deviation 10 % of the side, at most 20 px, inside the image."""
    points, _ = draw([annotation(20, 20, 60, 40)], per_image=4000, point=0, points=0)
    moved = points[:, :2] - np.float32([[40, 40], [120, 80]])
    np.testing.assert_allclose(moved.std((0, 1)), (8, 4), rtol=0.05)
    assert np.abs(moved).max() <= 20 and abs(moved.mean()) < 0.5
    points, _ = draw([annotation(0, 0, 80, 59)], per_image=500, point=0, points=0, max_area=1)
    assert points.min() >= 0 and (points.max((0, 1)) <= (160, 120)).all()
    points, _ = draw([annotation(5, 5, 6, 6)], per_image=500, point=0, points=0, jitter=2.0)
    assert (points[:, 1] > points[:, 0]).all()
    points, _ = draw([annotation(20, 10, 60, 50)], point=0, points=0, jitter=0)
    assert (points[:, :2] == [[40, 20], [120, 100]]).all()


def test_without_a_mask_the_own_point_then_the_box():
    own = annotation(10, 10, 40, 50, mask=False, point=(12.5, 30))
    points, labels = draw([own], box=0)
    assert kinds(labels) == [1] * 32 and (points[:, 0] == (25, 60)).all()
    assert kinds(draw([annotation(10, 10, 40, 50, mask=False)], box=0)[1]) == ["box"] * 32
    empty = annotation(10, 10, 40, 50)
    empty["mask"][:] = False
    assert kinds(draw([empty], box=0)[1]) == ["box"] * 32


def test_no_mask_is_decoded_unless_asked():
    class Undecodable:
        def __array__(self, dtype=None, copy=None):
            raise AssertionError("decoded")

    object = annotation(10, 10, 40, 50, point=(20, 40)) | {"mask": Undecodable()}
    points, _ = draw([object], interior=False, box=0)
    assert (points[:, 0] == (40, 80)).all()
    draw([object], point=0, points=0)


def test_objects_are_asked_for_evenly_and_large_ones_never():
    boxes = [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)]
    whole = annotation(0, 0, 80, 60, area=0.91 * 60 * 80)
    annotations = [annotation(*box) for box in boxes] + [whole]
    points, _ = draw(annotations, per_image=32, point=0, points=0, jitter=0)
    seen = np.unique(points[:, 0, 0], return_counts=True)
    assert seen[0].tolist() == [0, 40, 80] and sorted(seen[1]) == [10, 11, 11]
    few = draw([annotation(i, i, i + 9, i + 9) for i in range(50)], point=0, points=0, jitter=0)[0]
    assert len(np.unique(few[:, 0], axis=0)) == 32  # enough objects: none twice


def test_nothing_to_prompt_is_a_bad_record():
    for annotations in ([], [annotation(0, 0, 80, 60, area=4800.0)]):
        with pytest.raises(BadRecord, match="no_annotation"):
            draw(annotations)


def test_odds_must_be_possible():
    with pytest.raises(UserError, match="must have odds above 0"):
        PromptConfig(box=0, point=0, points=0)
    with pytest.raises(UserError, match="box must be a number of at least 0, got -1"):
        PromptConfig(box=-1)
