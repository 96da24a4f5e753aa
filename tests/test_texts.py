"""inference/texts.py: what cannot be a text, a class name or a template is one sentence."""

import numpy as np
import pytest

from samclip_jax.errors import UserError
from samclip_jax.inference.texts import TEMPLATES, class_names, class_texts, text_list

NAMES = ["zebra", "grass"]


@pytest.mark.parametrize(
    "texts", [NAMES, tuple(NAMES), np.array(NAMES), iter(NAMES), dict.fromkeys(NAMES).keys()]
)
def test_any_ordered_texts_will_do(texts):
    assert class_names("names", texts) == NAMES


def test_a_text_may_be_blank_and_a_class_not():
    assert text_list("texts", ["", " "]) == ["", " "]
    with pytest.raises(UserError, match=r"names\[1\] is blank"):
        class_names("names", ["zebra", "\n"])


@pytest.mark.parametrize(
    "texts, sentence",
    [
        ("a star", "texts must be a list of texts, got 'a star'"),
        (b"a star", "texts must be a list of texts"),
        (None, "texts must be a list of texts, got None"),
        (3, "texts must be a list of texts, got 3"),
        ([], r"texts must be a list of texts, got \[\]"),
        ({"a": 1}, "texts must be a list of texts"),
        ({"a"}, "texts must be a list of texts"),
        (np.array("a"), "texts must be a list of texts"),
        (["a", None], r"texts\[1\] must be a text, got None"),
        ([float("nan")], r"texts\[0\] must be a text, got nan"),
        ([b"a"], r"texts\[0\] must be a text"),
        (np.zeros((2, 3)), r"texts\[0\] must be a text"),
        (["a", "\ud83d"], r"texts\[1\] has half of a surrogate pair"),
    ],
)
def test_what_is_no_list_of_texts(texts, sentence):
    with pytest.raises(UserError, match=sentence):
        text_list("texts", texts)


def test_every_name_goes_into_every_template():
    """As texts, as functions (open_clip's), mixed, and by the name of a set."""
    expected = ["a zebra.", "zebras", "a grass.", "grasss"]
    templates = ["a {}.", lambda name: f"{name}s"]
    assert class_texts(NAMES, templates) == class_texts(NAMES, iter(templates)) == (expected, 2)
    for name, published in TEMPLATES.items():
        functions = [lambda name, each=each: each.format(name) for each in published["templates"]]
        assert class_texts(NAMES, name) == class_texts(NAMES, functions)


@pytest.mark.parametrize(
    "templates, sentence",
    [
        ("opena1", "no templates 'opena1'; there are openai, simple"),
        ("a photo of a {}.", "or give a list of texts with {} for the name"),
        ([], "templates must be a list"),
        (None, "templates must be a list"),
        (lambda name: name, "templates must be a list"),
        (TEMPLATES["simple"], "templates must be a list"),
        (["a {}.", "a photo"], r"templates\[1\] has no {} for the name: 'a photo'"),
        (["a {name}."], r"templates\[0\] has no {} for the name"),
        ([3], r"templates\[0\] must be a text"),
        (["\udc80 {}"], r"templates\[0\] has half of a surrogate pair"),
        ([lambda name: "a photo"], r"templates\[0\] gives the same text, 'a photo'"),
        ([lambda name: None], r"templates\[0\]\(name\) must be a text, got None"),
    ],
)
def test_what_is_no_template(templates, sentence):
    with pytest.raises(UserError, match=sentence):
        class_texts(NAMES, templates)
