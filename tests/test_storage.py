"""Storage that fails for a moment is read again; what stays is an error, never a bad record."""

import collections
import contextlib
import errno
import json
import os
import pathlib

import pytest
from PIL import Image
from test_sources import coco_json, picture, readable, sa1b_json

from samclip_jax.data import evaluation_sets, raw, storage
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.pipeline import ClipStream, stream
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError


@pytest.fixture
def fail(monkeypatch):
    """fail(ending, code, times): to read a file whose name ends so fails so often."""
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    read = pathlib.Path.read_bytes

    def fail(ending, code, times):
        codes = [code] * times

        def read_bytes(path):
            if path.name.endswith(ending) and codes:
                raise OSError(codes.pop(), os.strerror(code), str(path))
            return read(path)

        monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)

    return fail


@pytest.fixture
def folder(tmp_path):
    """A photograph with all that sources read beside it."""
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 24), (5, 0, 0)).save(tmp_path / "maps.png")
    (tmp_path / "a.json").write_text(json.dumps(sa1b_json()))
    images = [{"id": 7, "file_name": "a.jpg", "height": 24, "width": 40}]
    (tmp_path / "instances.set").write_text(json.dumps(coco_json(images=images)))
    segments = [{"image_id": 7, "file_name": "maps.png"}]
    segments[0]["segments_info"] = [{"id": 5, "category_id": 3}]
    contents = coco_json(images=images, annotations=segments)
    (tmp_path / "panoptic.set").write_text(json.dumps(contents))
    return tmp_path


READERS = {  # how a record is read, and the file that fails
    "folder": (lambda f: make_source("folder", path=f)[0], "a.jpg"),
    "sa1b": (lambda f: make_source("sa1b", path=f)[0], "a.jpg"),
    "sa1b_json": (lambda f: make_source("sa1b", path=f)[0], "a.json"),
    "instances": (
        lambda f: make_source("coco_instances", annotations=f / "instances.set", images=f)[0],
        "a.jpg",
    ),
    "panoptic_map": (
        lambda f: make_source(
            "coco_panoptic", annotations=f / "panoptic.set", images=f, maps=f
        )[0],
        "maps.png",
    ),
    "prepare_coco": (lambda f: prepared(raw.coco(f / "instances.set", f)), "a.jpg"),
    "prepare_maps": (
        lambda f: prepared(evaluation_sets.coco_panoptic(f / "panoptic.set", f, f)),
        "maps.png",
    ),
}  # fmt: skip


def prepared(kind):
    (_, what, _), *_ = kind.units()
    (found,) = kind.read(what, [], lambda key: True)
    if found.error:
        raise found.error
    return found


@pytest.mark.parametrize("name", READERS)
def test_every_reader_tries_again_and_then_names_the_file(folder, fail, name):
    read, file = READERS[name]
    fail(file, errno.EIO, times=4)
    read(folder)
    fail(file, errno.ETIMEDOUT, times=5)
    with pytest.raises(UserError, match=f"{file} was not read, after 5 tries: Connection timed"):
        read(folder)
    fail(file, errno.EACCES, times=1)
    with pytest.raises(UserError, match=f"{file} was not read: Permission denied; give this user"):
        read(folder)


def test_a_stream_ends_where_storage_fails_and_goes_on_exactly(folder, fail):
    """It does not replace the record by another, as it does for damage."""
    for name in ("b.png", "c.png"):
        Image.fromarray(picture()[::-1]).save(folder / name)
    source, config = make_source("folder", path=folder), ClipStream(4, (16,), 16)
    expected = [keys_of(source, config, batch) for batch in range(3)]
    fail("b.png", errno.ESTALE, times=1000)
    with pytest.raises(UserError, match=r"b\.png was not read"):
        batches = stream(source, config, 0)
        _ = [next(batches) for _ in range(3)]
    fail("b.png", errno.ESTALE, times=0)
    assert [keys_of(source, config, batch) for batch in range(3)] == expected


def keys_of(source, config, batch):
    with contextlib.closing(stream(source, config, 0, start=batch, keys=True)) as batches:
        return next(batches)["key"]


def test_a_file_that_is_not_there_is_counted(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "a.json").unlink()
    rejected = collections.Counter()
    assert len(list(readable(make_source("folder", path=folder), rejected))) == 2
    assert rejected == {"unreadable": 1}
    with pytest.raises(BadRecord, match="bad_annotation"):
        make_source("sa1b", path=folder)[0]
