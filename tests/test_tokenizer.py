"""tokenizer.py: the ids of open_clip.tokenize, whatever the text."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from samclip_jax.errors import UserError
from samclip_jax.tokenizer import Tokenizer

TEMPLATES = [
    "a photo of a {}.",
    "a bad photo of the {}.",
    "itap of my {}.",
    "a {} in a video game.",
]
NAMES = ["tench", "great white shark", "t-shirt", "jack-o'-lantern", "Cocker Spaniel", "2 dogs"]
TEXTS = [template.format(name) for template in TEMPLATES for name in NAMES] + [
    "",
    " ",
    "a  photo\tof\n\na   dog ",
    "A PHOTO OF A DOG",
    "the dog's ball; they're we've I'll he'd I'm don't",
    "the dog’s ball, “quoted” ‘twice’",
    "fish &amp; chips, &amp;lt;b&amp;gt; &eacute;",
    "100% of 3.14 €5 #1 (a+b)=c! ... --- ??? e-mail@example.com https://a.b/c?d=e&f=g",
    "café naïve Zürich Ålesund ğüşiöç ß ΑΒΓ αβγς Привет",
    "cafe\u0301 decomposed",
    "犬の写真 一只狗的照片 개 사진 كلب कुत्ता สุนัข",
    "🐶 a dog 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☃",
    "½ ² Ⅻ ٣ ५",
    "snake_case camelCase kebab-case under__score",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a photo of a dog " * 40,
    "word " * 75,
    "word " * 76,
]


def vocabulary(words, start="<|startoftext|>", end="<|endoftext|>"):
    """tokenizer.json with a token a word; the end token has the highest id."""
    ids = {word: i for i, word in enumerate(["<unk>", *words, start, end])}
    made = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str()


def test_ids_are_start_tokens_end_and_zeros():
    ids = Tokenizer(vocabulary(["a", "red", "dog"]), 6)(["A  red\ndog", "", "a dog"])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[4, 1, 2, 3, 5, 0], [4, 5, 0, 0, 0, 0], [4, 1, 3, 5, 0, 0]])


def test_a_long_text_keeps_its_end_token_last():
    ids = Tokenizer(vocabulary(["a", "b"]), 5)(["a b a", "a b a b", "a " * 100])
    np.testing.assert_array_equal(ids, [[3, 1, 2, 1, 4], [3, 1, 2, 1, 4], [3, 1, 1, 1, 4]])
    assert ids.argmax(-1).tolist() == [4, 4, 4]


def test_entities_quotes_and_composed_letters_are_undone():
    tokenize = Tokenizer(vocabulary(["&", "<", "'", "é"]), 6)
    np.testing.assert_array_equal(tokenize(["&amp;amp; &amp;lt; ’ e\u0301"]), tokenize(["& < ' é"]))
    assert (tokenize(["& < ' é"]) != 0).sum() == 6


@pytest.mark.parametrize("context_length", [8, 77])
def test_padding_and_truncation_in_the_file_are_ignored(context_length):
    """Published files carry their own; a second padding would move the end token."""
    made = tokenizers.Tokenizer.from_str(vocabulary(["a", "dog"]))
    made.enable_truncation(3)
    made.enable_padding(length=20, pad_id=1)
    tokenize = Tokenizer(made.to_str(), context_length)
    expected = Tokenizer(vocabulary(["a", "dog"]), context_length)(["a dog a dog"])
    np.testing.assert_array_equal(tokenize(["a dog a dog"]), expected)


def test_both_spellings_of_the_start_and_end_tokens_serve():
    tokenize = Tokenizer(vocabulary(["a"], "<start_of_text>", "<end_of_text>"), 4)
    np.testing.assert_array_equal(tokenize(["a"]), [[2, 1, 3, 0]])


@pytest.mark.parametrize(
    "text, reason", [("{", "not a tokenizer"), (vocabulary(["a"], "<s>", "</s>"), "not that of a")]
)
def test_what_is_no_clip_tokenizer_is_refused_by_a_sentence(text, reason):
    with pytest.raises(UserError, match=reason):
        Tokenizer(text)


@pytest.mark.oracle
def test_every_id_is_that_of_open_clip():
    """Templates, entities, quotes, scripts, emoji, numbers, lengths around the cut."""
    from originals import torchvision_absent

    with torchvision_absent():
        import open_clip.tokenizer

    from samclip_jax.convert.tokenizer import tokenizer_json

    json_text = tokenizer_json(None, open_clip.tokenizer.default_bpe(), 49408)
    for length in 77, 32:
        expected = open_clip.tokenizer.tokenize(TEXTS, length).numpy()
        ids = Tokenizer(json_text, length)(TEXTS)
        wrong = [text for text, a, b in zip(TEXTS, ids, expected, strict=True) if (a != b).any()]
        assert not wrong
