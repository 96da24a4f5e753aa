"""Tars of every layout: each picture is a record, or counted under a reason."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile

import pytest
from test_packing import run as run_here
from test_prepare import keys, objects, photograph, run, sa1b, tar

from samclip_jax.data import tars
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError


def test_what_a_fraction_leaves_out_is_not_read(tmp_path, monkeypatch):
    path, read, original = sa1b(tmp_path) / "sa_000000.tar", [], tars.read_member

    def noted(tar, member):
        read.append(member.name)
        return original(tar, member)

    monkeypatch.setattr(tars, "read_member", noted)
    (found,) = tars.Sa1bTars(tmp_path).read(path, [], lambda key: key == "sa_3.jpg")
    assert found.key == "sa_3.jpg" and read == ["sa_3.jpg", "sa_3.json"]


@pytest.mark.parametrize(
    "kind, files, expected",
    [
        ("tar", {"00.tar": {"1.jpg": 0, "1.txt": None, "1.json": None, "2.webp": 1}},
         [("00/1.jpg", None), ("00/2.webp", None)]),
        ("imagenet21k", {"n01.tar": {"n01_7.JPEG": 0}, "n02.tar": {"n02_1.JPEG": 1}},
         [("n01/n01_7.JPEG", "n01"), ("n02/n02_1.JPEG", "n02")]),
    ],
)  # fmt: skip
def test_tars_of_other_layouts(tmp_path, kind, files, expected):
    for name, members in files.items():
        forms = {"webp": "WEBP"}
        tar(tmp_path / "source" / name, {
            member: b"text" if seed is None else photograph(seed, forms.get(member[-4:], "JPEG"))
            for member, seed in members.items()
        })  # fmt: skip
    run(kind, tmp_path / "source", tmp_path / "out")
    source = make_source("prepared", path=tmp_path / "out")
    labels = source.classes or [None]
    made = [source[i] for i in range(len(source))]
    assert [(each["key"], labels[each.get("label", 0)]) for each in made] == expected


def read(path, **options):
    """{key: reason, or the bytes} of a tar."""
    kind = tars.Tars(path, **options)
    ((_, what, _),) = kind.units()
    found = list(kind.read(what, [], lambda key: True))
    return {each.key: each.error.reason if each.error else each.image for each in found}


def test_a_sample_of_several_images_has_one_picture(tmp_path):
    """The key ends at the first dot. What is no picture of its own is counted."""
    names = ["1.jpg", "1.seg.png", "1.json", "2.PNG", "2.jpeg", "3.image.webp", "3.cls"]
    names += ["photo.1.jpg", "photo.2.jpg", "deep/1.depth.png", "deep/1.seg.png", "4.txt"]
    path = tar(tmp_path / "a.tar", {name: name.encode() for name in names})
    taken = {"1.jpg", "2.jpeg", "3.image.webp"}
    loose = {"photo.1.jpg", "photo.2.jpg", "deep/1.depth.png", "deep/1.seg.png"}
    expected = {f"a/{name}": name.encode() for name in taken | loose}
    expected |= {f"a/{name}": "other_image" for name in ("1.seg.png", "2.PNG")}
    assert read(path) == expected
    found = read(path, extension="seg.png;jpg")
    assert {key for key, value in found.items() if value != "other_image"} == {
        "a/1.seg.png",
        "a/deep/1.seg.png",
    }
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    "names, label",
    [(["x.jpg", "x.cls"], "x.cls"), (["x.image.jpg", "x.cls"], "x.cls"),
     (["x.v2.jpg", "x.v2.cls"], "x.v2.cls"), (["x.1.jpg", "x.2.jpg", "x.1.cls"], "x.1.cls")],
)  # fmt: skip
def test_what_lies_beside_a_picture_is_found(tmp_path, monkeypatch, names, label):
    described = []

    def describe(self, found, path, tar, beside):
        described.append(beside["cls"].name if "cls" in beside else None)

    monkeypatch.setattr(tars.Tars, "describe", describe)
    read(tar(tmp_path / "a.tar", dict.fromkeys(names, b"0")))
    assert described[0] == label


def test_what_follows_the_end_of_a_tar_is_said(tmp_path):
    """Two tars in one file, of which tarfile reads the first; a gzip file may be called .tar."""
    parts = [tar(tmp_path / f"{i}.tar", {f"{i}.jpg": photograph(i)}) for i in range(2)]
    both, damaged = tmp_path / "in" / "both.tar", []
    both.parent.mkdir()
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    (found,) = tars.Tars(both.parent).read(both, damaged, lambda key: True)
    assert found.key == "both/0.jpg" and "another tar" in damaged[0]
    both.write_bytes(gzip.compress(parts[0].read_bytes()))
    damaged.clear()
    assert len(list(tars.Tars(both.parent).read(both, damaged, lambda key: True))) == 1
    assert not damaged


def test_other_images_are_no_dirt(tmp_path):
    """However many there are: the run does not stop for them."""
    files = {f"1.{name}": photograph(0) for name in ("jpg", "seg.png", "depth.png", "normal.png")}
    found = run_here(tar(tmp_path / "a.tar", files), tmp_path / "out")
    assert found["records"] == 1 and found["reasons"] == {"other_image": 3}
    assert found["inputs"] == 4 and keys(tmp_path / "out") == ["a/1.jpg"]


def test_links_have_the_bytes_of_their_targets(tmp_path):
    links = {
        "in/hard.jpg": (tarfile.LNKTYPE, "real/a.jpg"),
        "in/symbolic.jpg": (tarfile.SYMTYPE, "../real/a.jpg"),
        "in/two.jpg": (tarfile.SYMTYPE, "symbolic.jpg"),
        "in/gone.jpg": (tarfile.SYMTYPE, "nowhere.jpg"),
        "in/outside.jpg": (tarfile.SYMTYPE, "/etc/passwd"),
        "in/round.jpg": (tarfile.SYMTYPE, "round.jpg"),
    }
    path = tar(tmp_path / "a.tar", {"real/a.jpg": b"pixels"})
    with tarfile.open(path, "a") as archive:
        for name, (kind, target) in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    found = read(path)
    assert found.pop("a/real/a.jpg") == b"pixels"
    assert found == {
        f"a/{name}": b"pixels" if i < 3 else "unreadable" for i, name in enumerate(links)
    }


def test_what_systems_add_is_no_input_and_every_picture_is(tmp_path):
    hidden = ["._1.jpg", "__MACOSX/._1.jpg", "__MACOSX/1.jpg", ".thumbs/1.jpg", ".2.jpg", "3.txt"]
    pictures = ["./1.jpg", "4.JFIF", "5.jpe", "6.heic"]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in [(name, photograph(0)) for name in hidden + pictures]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = read(path)
    assert found.keys() == {"a/1.jpg", "a/4.JFIF", "a/5.jpe", "a/6.heic"}


def test_of_two_files_of_one_name_the_last_remains(tmp_path):
    """As it does when the tar is unpacked."""
    path = tmp_path / "a.tar"
    for data in (b"first", b"second"):
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("1.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    first, second = tars.Tars(path).read(path, [], lambda key: True)
    assert first.error.reason == "other_image" and second.image == b"second"


def test_equal_names_in_several_folders_have_keys_of_their_own(tmp_path):
    for folder in ("train", "more/train"):
        tar(tmp_path / "source" / folder / "0.tar", {"1.jpg": photograph(0)})
    run_here(tmp_path / "source", tmp_path / "out")
    assert sorted(keys(tmp_path / "out")) == ["more/train/0/1.jpg", "train/0/1.jpg"]
    tar(tmp_path / "source/train/0.tar.gz", {})
    with pytest.raises(UserError, match="would have records of one key"):
        list(tars.Tars(tmp_path / "source").units())


def test_a_tar_beside_a_folder_of_its_name_has_keys_of_its_own(tmp_path):
    """x.tar holds y/z.jpg, x/y.tar holds z.jpg; other tars, as w.tar, have keys without endings."""
    tar(tmp_path / "source/w.tar", {"z.jpg": photograph(0)})
    tar(tmp_path / "source/x.tar", {"y/z.jpg": photograph(1)})
    tar(tmp_path / "source/x/y.tar", {"z.jpg": photograph(2)})
    run_here(tmp_path / "source", tmp_path / "out")
    assert sorted(keys(tmp_path / "out")) == ["w/z.jpg", "x.tar/y/z.jpg", "x/y/z.jpg"]


def test_archives_of_archives_are_refused(tmp_path):
    path = tar(tmp_path / "whole.tar", {"n01.tar": b"", "readme.txt": b""})
    with pytest.raises(UserError, match="whole.tar holds tars, n01.tar: unpack it"):
        run_here(path, tmp_path / "out")
    (tmp_path / "a.tar.zst").write_bytes(b"")
    with pytest.raises(UserError, match="a.tar.zst is not read here: make it a .tar"):
        list(tars.Tars(tmp_path).units())


FORMS = {"gz": (gzip, gzip.GzipFile), "bz2": (bz2, bz2.BZ2File), "xz": (lzma, lzma.LZMAFile)}


def compressed(folder, form, files):
    plain = tar(folder / "plain.tar", files)
    path = folder / f"a.tar.{form}"
    path.write_bytes(FORMS[form][0].compress(plain.read_bytes()))
    plain.unlink()
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_compressed_tar_is_read_once(tmp_path, monkeypatch, form):
    """Each way back would decompress it from its start."""
    files = {}
    for i in range(5):
        files |= {f"{i}.json": objects(), f"{i}.jpg": photograph(i)}
    path, back = compressed(tmp_path, form, files), []
    (_, file), seek = FORMS[form], FORMS[form][1].seek

    def noted(self, offset, whence=0):
        before = seek(self, 0, os.SEEK_CUR)
        back.append(seek(self, offset, whence) < before)
        return seek(self, 0, os.SEEK_CUR)

    monkeypatch.setattr(file, "seek", noted)
    found = list(tars.Sa1bTars(path).read(path, [], lambda key: True))
    assert [each.image for each in found] == [photograph(i) for i in range(5)]
    assert all(each.annotations for each in found) and not any(back)


def test_no_space_to_unpack_a_tar_is_one_sentence(tmp_path, monkeypatch):
    path = compressed(tmp_path, "gz", {"1.jpg": photograph(0)})
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "wb"))
    with pytest.raises(UserError, match="a.tar.gz was not unpacked to .* No space left on dev"):
        read(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_compressed_tar_that_is_cut_is_damaged(tmp_path, form):
    path = compressed(tmp_path, form, {f"{i}.jpg": photograph(i) for i in range(20)})
    path.write_bytes(path.read_bytes()[:-9000])
    damaged = []
    found = list(tars.Tars(path).read(path, damaged, lambda key: True))
    assert len(damaged) == 1 and (found or form == "bz2")  # that has one block
    assert all(each.error is None or each.error.reason == "truncated" for each in found)
