"""inference/model.py: what may be embedded."""

import numpy as np
import pytest

from samclip_jax.errors import UserError

NAMES = ["red star", "blue ring", "grass"]


def photograph(height, width):
    """uint8 [height, width, 3]: other colours at its sides than in its middle."""
    y, x = np.mgrid[:height, :width]
    waves = [x / width, np.sin(3 * y / height), np.cos(9 * x / width + y / height)]
    return np.uint8(127 + 120 * np.stack(waves, -1))


def test_texts_come_from_any_list_and_templates_may_be_functions(tiny_clip):
    expected = tiny_clip.class_embeddings(NAMES, ["a {}.", "a small {}."])
    functions = [lambda name: f"a {name}.", "a small {}."]
    names = (name for name in NAMES)
    np.testing.assert_array_equal(tiny_clip.class_embeddings(names, functions), expected)
    texts = np.array(["a red star " * 500, ""])
    np.testing.assert_array_equal(
        tiny_clip.encode_text(texts), tiny_clip.encode_text(["a red star " * 30, " "])
    )


@pytest.mark.parametrize(
    "question, sentence",
    [
        (lambda model: model.encode_text(["a", None]), r"texts\[1\] must be a text"),
        (lambda model: model.tokenizer("a star"), "texts must be a list"),
        (lambda model: model.class_embeddings(["a", "\udcff"]), r"names\[1\] has half of"),
        (lambda model: model.class_embeddings(NAMES, ["a photo"]), r"has no {} for the name"),
        (lambda model: model.encode_image(photograph(4, 5)), "add the first axis"),
        (lambda model: model.patch_embeddings(photograph(4, 5)[None] / 255), "images: need uint8"),
        (lambda model: model.predict_masks(*[[0]] * 4), "a mask needs a SAM"),
    ],
)
def test_mistakes_are_one_sentence(tiny_clip, question, sentence):
    with pytest.raises(UserError, match=sentence):
        question(tiny_clip)
