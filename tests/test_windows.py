"""inference/windows.py: a large image's features are those of its windows, averaged."""

import numpy as np
import pytest

from samclip_jax.errors import UserError
from samclip_jax.inference.reading import Reading
from samclip_jax.inference.windows import Windows


def features(windows):  # uint8 [n, s, s, 3] -> unit float [n, s / 8, s / 8, 3]
    """What a patch shows, and a little of where in its window it lies."""
    found = windows[:, ::8, ::8].astype(np.float64)
    found = found + np.random.default_rng(0).uniform(1, 50, found.shape)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


@pytest.mark.parametrize("shape, sides", [((60, 90), (64, 96)), ((500, 333), (96, 64))])
def test_a_feature_is_the_mean_of_those_of_its_windows(shape, sides):
    image = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    windows = Windows(Reading(short=64, window=48, stride=24), 8)
    resized = windows.resized(image)
    assert resized.shape == (*sides, 3)
    cut = windows.cut(resized)
    joined = windows.joined(resized, features(cut))
    every, total, place = features(cut), np.zeros((sides[0] // 8, sides[1] // 8, 3)), 0
    for y in [*range(0, sides[0] - 48, 24), sides[0] - 48]:
        for x in [*range(0, sides[1] - 48, 24), sides[1] - 48]:
            np.testing.assert_array_equal(cut[place], resized[y : y + 48, x : x + 48])
            for i in range(6):
                for j in range(6):
                    total[y // 8 + i, x // 8 + j] += every[place, i, j]
            place += 1
    assert place == len(cut) and place > 4
    expected = total / np.linalg.norm(total, axis=-1, keepdims=True)
    np.testing.assert_allclose(joined, expected, atol=1e-6)


def test_one_window_is_the_image():
    image = np.random.default_rng(1).integers(0, 255, (48, 48, 3), np.uint8)
    windows = Windows(Reading(short=48, window=48), 8)
    (cut,) = windows.cut(image)
    np.testing.assert_array_equal(cut, image)
    np.testing.assert_allclose(
        windows.joined(image, features(cut[None])), features(cut[None])[0], atol=1e-6
    )


@pytest.mark.parametrize("options, sentence", [
    ((64, 50, 24), "multiples of the patch, 8 px"), ((64, 48, 20), "multiples of the patch"),
    ((32, 48, 24), "at most short"), ((64, 48, 56), "at least stride"),
])  # fmt: skip
def test_windows_that_do_not_fit_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Windows(Reading(**dict(zip(("short", "window", "stride"), options, strict=True))), 8)
