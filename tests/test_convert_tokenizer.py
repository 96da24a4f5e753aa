"""tokenizer.py: CLIP's tokenizer from the files that it is published in."""

import json

import numpy as np
import pytest
from releases import WORDS, save_clip, vocabulary

from samclip_jax.convert.apply import import_weights
from samclip_jax.convert.tokenizer import tokenizer_json
from samclip_jax.errors import UserError
from samclip_jax.tokenizer import Tokenizer


def test_a_clip_without_its_tokenizer_is_told_where_to_put_one(tmp_path):
    clip_folder = save_clip(tmp_path / "clip")
    (clip_folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="put the model's tokenizer.json, or its vocab.json and"):
        import_weights(clip_folder)
    (clip_folder / "tokenizer.json").write_text(vocabulary(WORDS[1:]))
    with pytest.raises(UserError, match="has 5 tokens and the model 6"):
        import_weights(clip_folder)
    (clip_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer"):
        import_weights(clip_folder)


def test_vocab_and_merges_become_clips_tokenizer(tmp_path):
    words = ["a", "b", "!", "a</w>", "b</w>", "!</w>", "ab", "ab</w>", "abab</w>"]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na b</w>\nab ab</w>\n")
    tokenize = Tokenizer(tokenizer_json(tmp_path, None, 11), 8)
    np.testing.assert_array_equal(tokenize(["AB  a!\nabab"]), [[9, 7, 3, 5, 8, 10, 0, 0]])
