"""cache.py: what is kept is what was made, and a cache that cannot be is none."""

import numpy as np
import pytest

from samclip_jax import cache
from samclip_jax.inference import model as inference

NAMES = ["zebra", "tiger", "grass"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "samclip_jax"


def test_an_array_is_made_once(folder):
    made = []

    def make():
        made.append(1)
        return np.arange(3.0)

    for key in ("a", "a", "b"):
        np.testing.assert_array_equal(cache.kept_array("texts", key, make), np.arange(3.0))
    assert len(made) == 2
    assert sorted(path.name for path in (folder / "texts").iterdir()) == ["a.npy", "b.npy"]
    for cut in (b"", b"\x93NUMPY"):  # as a full disk leaves it
        (folder / "texts/a.npy").write_bytes(cut)
        np.testing.assert_array_equal(cache.kept_array("texts", "a", make), np.arange(3.0))
        assert np.load(folder / "texts/a.npy").size == 3
    assert len(made) == 4


def test_where_nothing_can_be_kept_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.folder("texts") is None
    assert cache.kept_array("texts", "a", lambda: 7) == 7


def test_a_digest_tells_names_types_and_values_apart():
    one = np.float32([1, 2])
    others = [{"a": one}, {"b": one}, {"a": one[::-1]}, {"a": one[None]}, {"a": one.view("int32")}]
    assert len({cache.digest(each) for each in others}) == len(others)
    assert cache.digest({"a": one, "b": one}) == cache.digest({"b": one, "a": one})
    assert cache.digest("a", "b") != cache.digest("ab")


def test_embeddings_of_many_texts_are_kept(folder, tiny_clip, monkeypatch):
    """Of these weights and these texts alone."""
    expected = tiny_clip.class_embeddings(NAMES)
    assert not folder.exists(), "three texts are soon embedded"
    monkeypatch.setattr(inference, "KEPT_TEXTS", 3)
    first = tiny_clip.class_embeddings(NAMES)
    with monkeypatch.context() as blind:
        blind.setattr(tiny_clip, "encode_text", None)
        again = tiny_clip.class_embeddings(NAMES)
    for found in (first, again):
        np.testing.assert_array_equal(found, expected)
    name = next(name for name in tiny_clip.params if name.startswith("text/"))
    other = tiny_clip.with_params({**tiny_clip.params, name: 2 * tiny_clip.params[name]})
    assert np.abs(other.class_embeddings(NAMES) - expected).max() > 1e-4
    tiny_clip.class_embeddings(NAMES[::-1])
    assert len(list((folder / "texts").iterdir())) == 3
