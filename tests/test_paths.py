"""paths.py: every path that a user gives is read in one way, whichever command takes it."""

import os
import pathlib

import pytest
from etils import epath

from samclip_jax import checkpoint
from samclip_jax.convert.apply import import_weights
from samclip_jax.convert.export import export_weights
from samclip_jax.data import prepare
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.errors import UserError
from samclip_jax.inference.model import load
from samclip_jax.paths import any_path, existing, is_remote, local_path, output_file


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, and another one to work in that must stay empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


@pytest.fixture
def gcsfs(monkeypatch):
    """A bucket's paths can be spelt without the package that reads them."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)


def test_a_local_path_is_absolute_and_knows_the_home(home):
    for read in (any_path, local_path):
        assert os.fspath(read("~/x")) == str(home / "x")
        assert os.fspath(read(pathlib.Path("x"))) == str(home.parent / "here" / "x")
    assert existing("~") == home


def test_a_bucket_keeps_its_two_slashes(gcsfs):
    path = any_path("gs://bucket/a")
    assert str(path / "b") == "gs://bucket/a/b" and is_remote(path)
    assert str(any_path(epath.Path("gs://bucket/a"))) == "gs://bucket/a"
    assert not is_remote(any_path("gs"))


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "no path is set; give that of a file or a folder"),
        (None, "must be a text or a pathlib.Path, got None"),
        (b"x", "must be a text or a pathlib.Path, got b'x'"),
        (True, "must be a text or a pathlib.Path, got True"),
        ("a\0b", "null character"),
        ("~nobody-of-this-name/x", "no user's home"),
        ("s3://bucket/x", "s3: is not read here"),
        ("gs:/bucket/x", "gs: is not read here"),  # pathlib.Path("gs://bucket/x")
        ("https://host/x", "https: is not read here"),
    ],
)
def test_what_is_no_path_is_one_sentence(text, sentence):
    for read in (any_path, local_path, existing, output_file):
        with pytest.raises(UserError, match=sentence):
            read(text)


def test_without_the_package_that_reads_buckets_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        any_path("gs://bucket/x")


def read_prepared(path):
    make_source("prepared", path=path)


def read_images(path):
    make_source("folder", path=path)


def read_annotations(path):
    make_source("coco_instances", annotations=path, images=".")


def prepare_to(path):
    prepare.prepare("folder", "~", path, Options(), None)


def prepare_from(path):
    prepare.prepare("voc", path, "~/out", Options(), None)


def prepare_tars(path):
    prepare.prepare("sa1b", path, "~/out", Options(), None)


def import_weights_of(path):
    import_weights(path)


def export_to(path):
    export_weights("~", path, "segment_anything")


@pytest.mark.parametrize(
    "use",
    [
        read_prepared,
        read_images,
        read_annotations,
        prepare_to,
        prepare_from,
        prepare_tars,
        import_weights_of,
        export_to,
    ],
)
def test_data_in_a_bucket_are_refused_and_gcsfuse_is_named(home, gcsfs, use):
    with pytest.raises(UserError, match="gcsfuse"):
        use("gs://bucket/x")
    assert not list(home.iterdir())


def test_a_checkpoint_below_the_home_loads(home, tiny_clip, words):
    checkpoint.save_model("~/clip", tiny_clip.config, tiny_clip.params, words)
    assert load("~/clip").config == tiny_clip.config
    assert checkpoint.newest_step("~/clip") is None


def test_a_report_that_cannot_be_written_is_refused_before_the_work(home):
    assert os.fspath(output_file("~/new/report.json")) == str(home / "new/report.json")
    with pytest.raises(UserError, match="is a folder"):
        output_file("~/new")
    (home / "file").write_text("")
    with pytest.raises(UserError, match="was not written"):
        output_file("~/file/report.json")
