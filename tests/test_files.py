"""Folders: every picture is found once, or counted; what systems add is none of them."""

import collections
import os

import numpy as np
import pytest
from PIL import Image, features
from test_packing import run
from test_prepare import rejects
from test_sources import encoded, picture, readable

from samclip_jax.data import decode, files
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError


def write(folder, names, data=b""):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_each_real_file_is_found_once_whatever_links_there_are(tmp_path):
    write(tmp_path / "root", ["a/1.jpg", "a/b/2.jpg", "c/3.jpg", "4.jpg"])
    write(tmp_path / "outside", ["5.jpg", "deep/6.jpg"])
    root = tmp_path / "root"
    (root / "a/b/loop").symlink_to(root)
    (root / "a/parent").symlink_to(tmp_path)  # the root and the other folder lie in it
    (root / "aa").symlink_to(root / "c")  # sorted before the folder itself
    (root / "self").symlink_to("self")
    (root / "z").symlink_to(tmp_path / "outside")
    assert files.walk(root) == [
        "4.jpg", "a/1.jpg", "a/b/2.jpg", "c/3.jpg", "self", "z/5.jpg", "z/deep/6.jpg"
    ]  # fmt: skip


def test_a_class_is_any_folder_or_link_to_one(tmp_path):
    """Also a link to another class, or to the root, which is read for none of them."""
    write(tmp_path / "root", ["b/1.jpg", "b-c/2.jpg"])
    write(tmp_path / "outside", ["deep/3.jpg"])
    root = tmp_path / "root"
    (root / "a").symlink_to(root / "b")
    (root / "d").symlink_to(tmp_path / "outside")
    (root / "b/loop").symlink_to(root)
    source = make_source("folder", path=root, labels=True)
    assert source.classes == ["a", "b", "b-c", "d"]
    assert source.files == ["a/1.jpg", "b-c/2.jpg", "b/1.jpg", "d/deep/3.jpg"]


@pytest.mark.parametrize("link", [False, True])
def test_a_class_without_images_is_one_sentence(tmp_path, link):
    """As in torchvision; the classes would be fewer than those of the set."""
    write(tmp_path, ["a/1.jpg", "b/readme.txt", ".cache/x"])
    if link:
        (tmp_path / "b/readme.txt").unlink()
        (tmp_path / "b").rmdir()
        (tmp_path / "b").symlink_to(tmp_path)
    with pytest.raises(UserError, match="b is a class without images; add them, or remove"):
        make_source("folder", path=tmp_path, labels=True)


def test_a_class_that_is_a_link_to_nothing_is_one_sentence(tmp_path):
    write(tmp_path, ["a/1.jpg"])
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="b is a link to nothing: mend it, or remove it"):
        make_source("folder", path=tmp_path, labels=True)


def test_what_systems_add_is_skipped(tmp_path):
    hidden = [".a.jpg", "._b.jpg", ".cache/1.jpg", "__MACOSX/2.jpg", "x/@eaDir/3.jpg"]
    hidden += ["lost+found/4.jpg", "$RECYCLE.BIN/5.jpg", ".git/6/7.jpg"]
    write(tmp_path / ".data", [*hidden, "x/b.jpg"])
    assert files.walk(tmp_path / ".data") == ["x/b.jpg"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write(tmp_path, ["a/1.jpg", "b/2.jpg"])
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match="b was not read: Permission denied"):
        make_source("folder", path=tmp_path)
    with pytest.raises(UserError, match="1.jpg was not read: Not a directory; give a folder"):
        make_source("folder", path=tmp_path / "a/1.jpg")


def heic(brand=b"heic"):
    return b"\0\0\0\x18ftyp" + brand + bytes(100)


def test_every_picture_is_read_or_counted(tmp_path):
    """By its content, whatever it is called; a format that is not read has a reason of its own."""
    jpeg = encoded(Image.fromarray(picture()), "JPEG")
    for name in ("1.jfif", "2.JPE", "3.heic"):
        write(tmp_path, [name], jpeg)
    write(tmp_path, ["4.pgm"], encoded(Image.fromarray(picture()[..., 0]), "PPM"))
    unsupported = {
        "5.heic": heic(), "6.jpg": heic(b"mif1"), "7.HEIF": b"?", "8.jxl": b"\xff\x0a" + bytes(50),
        "9.psd": b"8BPS" + bytes(50), "a.dng": encoded(Image.fromarray(picture()), "TIFF"),
    }  # fmt: skip
    for name, data in unsupported.items():
        write(tmp_path, [name], data)
    write(tmp_path, ["b.txt", "c.json", "Thumbs.db"])
    rejected = collections.Counter()
    found = list(readable(make_source("folder", path=tmp_path), rejected))
    assert [each["key"] for each in found] == ["1.jfif", "2.JPE", "3.heic", "4.pgm"]
    assert rejected == {"unsupported": len(unsupported)}


@pytest.mark.parametrize("decoder", [True, False])
def test_avif_is_read_where_its_decoder_is(tmp_path, monkeypatch, decoder):
    if not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    data = encoded(Image.fromarray(picture(64, 64)), "AVIF", quality=95)
    if not decoder:
        formats = tuple(each for each in decode.FORMATS if each != "AVIF")
        monkeypatch.setattr(decode, "FORMATS", formats)
        with pytest.raises(decode.BadRecord, match="unsupported: AVIF is not read here"):
            decode.open_image(data)
        return
    write(tmp_path, ["1.avif"], data)
    image = make_source("folder", path=tmp_path)[0]["image"]
    assert np.abs(np.asarray(image, int) - picture(64, 64)).mean() < 4


def test_rejects_name_what_is_not_read(tmp_path):
    write(tmp_path / "in", ["1.heic", "x/._2.jpg"], heic())
    write(tmp_path / "in", ["2.png"], encoded(Image.fromarray(picture(64, 64))))
    run(tmp_path / "in", tmp_path / "out", kind="folder")
    assert rejects(tmp_path / "out") == {"1.heic": "unsupported"}
