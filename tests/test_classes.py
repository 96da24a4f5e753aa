"""evals/classes.py: which texts stand for a class, and what of an image is its background."""

import json

import numpy as np
import pytest
from scipy import special

from samclip_jax.errors import UserError
from samclip_jax.evals.classes import Classes


class Source:
    classes = ["background", "cat", "tvmonitor"]

    def __repr__(self):
        return "VOC"


COSINES = np.float32([[0.9, 0.1, 0.3, 0.5], [0.2, 0.8, 0.4, 0.45], [0.1, 0.2, 0.35, 0.1]])


def test_every_class_is_asked_for_by_its_name():
    classes = Classes(Source())
    assert classes.texts == ["background", "cat", "tv monitor"]
    np.testing.assert_array_equal(classes.labels(COSINES, 100), [0, 1, 1, 0])
    np.testing.assert_array_equal(classes.of_classes(COSINES), COSINES)
    np.testing.assert_array_equal(classes.truth(np.array([0, -1, 2])), [0, -1, 2])


def test_clippys_background_is_sixty_names_less_vocs_twenty():
    classes = Classes(Source(), "clippy")
    assert classes.owners.tolist() == 40 * [0] + [1, 2]
    assert {"background", "sky", "wall", "bed clothes"} <= {*classes.texts}
    assert not {"table", "person", "dining table"} & {*classes.texts}


def test_of_several_texts_the_likeliest_counts(tmp_path):
    """ "kitten" and "tom" stand for cat, and two texts for the background."""
    (tmp_path / "names.json").write_text(json.dumps({"cat": ["kitten", "tom"]}))
    classes = Classes(Source(), ("sky", "wall"), names=str(tmp_path / "names.json"))
    assert classes.texts == ["sky", "wall", "kitten", "tom", "tv monitor"]
    cosines = np.random.default_rng(0).random((5, 6, 7))
    expected = np.array([0, 0, 1, 1, 2])[cosines.argmax(0)]
    np.testing.assert_array_equal(classes.labels(cosines, 100), expected)
    merged = classes.of_classes(cosines)
    np.testing.assert_array_equal(merged.argmax(0), expected)
    np.testing.assert_array_equal(merged[1], np.maximum(cosines[2], cosines[3]))


@pytest.mark.parametrize("scale", [1, 10])
def test_what_is_not_probable_is_background(scale):
    cosines = np.random.default_rng(1).uniform(-1, 1, (2, 5, 4))
    classes = Classes(Source(), "none", threshold=0.6)
    assert classes.texts == ["cat", "tv monitor"]
    probable = special.softmax(scale * cosines, axis=0)
    expected = np.where(probable.max(0) < 0.6, 0, 1 + cosines.argmax(0))
    np.testing.assert_array_equal(classes.labels(cosines, scale), expected)
    assert {*expected.flat} == {0, 1, 2}
    np.testing.assert_array_equal(classes.truth(np.array([0, 1])), [0, 1])


def test_without_a_background_its_pixels_do_not_count():
    """VOC's 20 classes."""
    classes = Classes(Source(), "none")
    np.testing.assert_array_equal(classes.truth(np.array([0, 1, -1, 2])), [-1, 1, -1, 2])
    np.testing.assert_array_equal(classes.labels(COSINES[1:], 1), [1, 1, 1, 1])
    assert classes.asked.tolist() == [1, 2]


@pytest.mark.parametrize("contents, sentence", [
    ("[]", "must hold names of classes"), ("{", "was not read as json"),
    ('{"dog": ["a"]}', "'dog' is no class of VOC"), ('{"cat": "kitten"}', "cat must be a list"),
    ('{"cat": []}', "cat must be a list"), ('{"cat": [7]}', r"cat\[0\] must be a text"),
])  # fmt: skip
def test_other_names_are_one_sentence(tmp_path, contents, sentence):
    (tmp_path / "names.json").write_text(contents)
    with pytest.raises(UserError, match=sentence):
        Classes(Source(), names=str(tmp_path / "names.json"))


@pytest.mark.parametrize("options", [("clippy",), ("none",), ("class", 0.5), (("sky",),)])
def test_a_source_without_a_background_is_said(options):
    source = Source()
    source.classes = ["cat"]
    with pytest.raises(UserError, match="VOC has no class 'background'"):
        Classes(source, *options)
