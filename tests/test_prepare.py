"""data.prepare: released data sets, dirt included, to records; nothing lost, nothing doubled."""

import functools
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import msgpack
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from samclip_jax.data import pipeline, prepare
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options, chosen
from samclip_jax.errors import UserError

HEIGHT, WIDTH = 60, 80
SQUARE = (10, 5, 20, 30)  # x, y, width, height of the only object


def photograph(seed, form="JPEG", mode="RGB", size=(HEIGHT, WIDTH), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def objects(size=(HEIGHT, WIDTH), **changes):
    """SA-1B's json of one object."""
    mask = np.zeros(size, np.uint8, order="F")
    x, y, w, h = SQUARE
    mask[y : y + h, x : x + w] = 1
    runs = rle.encode(mask)
    found = {
        "bbox": SQUARE,
        "area": w * h,
        "segmentation": {"size": size, "counts": runs["counts"].decode()},
        "point_coords": [[15, 12]],
    }
    image = {"height": size[0], "width": size[1]}
    return json.dumps({"image": image, "annotations": [found | changes]}).encode()


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sa1b(folder, tars=2, images=6):
    for number in range(tars):
        files = {}
        for i in range(number * images, (number + 1) * images):
            files |= {f"sa_{i}.jpg": photograph(i), f"sa_{i}.json": objects()}
        tar(folder / f"sa_{number:06d}.tar", files)
    return folder


def run(kind, source, output, workers=1, options=None, **more):
    runner = functools.partial(prepare.run, workers=workers)
    return prepare.prepare(kind, source, output, options or Options(), runner, **more)


def run_here(kind, source, output, options=None, **more):
    """The same in this process, which is faster; the kind is pickled as for another one."""

    def runner(work, items, check):
        work = pickle.loads(pickle.dumps(work))
        for item in items:
            work(*item)

    return prepare.prepare(kind, source, output, options or Options(), runner, **more)


def keys(output, split="train"):
    source = make_source("prepared", path=output, split=split)
    return [source[i]["key"] for i in range(len(source))]


def rejects(output):
    lines = (output / "rejects.jsonl").read_text().splitlines()
    return {line["key"]: line["reason"] for line in map(json.loads, lines)}


def upside_down(seed):
    exif = Image.Exif()
    exif[0x0112] = 3
    return photograph(seed, exif=exif)


GREY16 = Image.fromarray(np.full((HEIGHT, WIDTH), 40000, np.uint16))
DIRT = {  # name: (image, json or None, reason or None where it is a record)
    "empty": (b"", objects(), "empty"),
    "html": (b"<html>not found</html>", objects(), "not_an_image"),
    "truncated": (photograph(1)[:3000], objects(), "truncated"),
    "dot": (photograph(2, size=(1, 1)), objects((1, 1)), "too_small"),
    "icon": (photograph(2, size=(16, 16)), objects((16, 16)), "too_small"),
    "no_json": (photograph(3), None, "bad_annotation"),
    "broken_json": (photograph(4), b"{", "bad_annotation"),
    "other_size": (photograph(5), objects((50, 50)), "bad_annotation"),
    "nan_box": (photograph(6), objects(bbox=[float("nan")] * 4), "no_annotation"),
    "bad_mask": (
        photograph(7),
        objects(segmentation={"size": (HEIGHT, WIDTH), "counts": "12"}),
        "no_annotation",
    ),
    "png": (photograph(8, "PNG"), objects(), None),
    "cmyk": (photograph(9, mode="CMYK"), objects(), None),
    "upside_down": (upside_down(10), objects(), None),
    "good": (photograph(11), objects(), None),
    "again": (photograph(11), objects(), "duplicate"),
}


def test_every_kind_of_dirt_is_dropped_under_its_reason_and_the_run_goes_on(tmp_path):
    files = {}
    for name, (image, annotations, _) in DIRT.items():
        files[f"{name}.jpg"] = image
        if annotations is not None:
            files[f"{name}.json"] = annotations
    tar(tmp_path / "source/a.tar", files)
    whole = tar(tmp_path / "source/b.tar", {"last.jpg": photograph(12), "last.json": objects()})
    whole.write_bytes(whole.read_bytes()[:3000])  # within the image
    (tmp_path / "source/c.tar").write_bytes(b"<html>")
    options = Options(deduplicate=True, max_rejects=0.9)
    found = run("sa1b", tmp_path / "source", tmp_path / "out", options=options)
    expected = {f"{name}.jpg": reason for name, (_, _, reason) in DIRT.items() if reason}
    assert rejects(tmp_path / "out") == expected | {"last.jpg": "truncated"}
    good = [f"{name}.jpg" for name, (_, _, reason) in DIRT.items() if not reason]
    assert keys(tmp_path / "out") == good
    assert found["inputs"] == found["records"] + found["rejects"] == len(DIRT) + 1
    assert found["annotations_dropped"] == {"bad_box": 1, "bad_mask": 1}
    assert [text.partition(": ")[0][-5:] for text in found["damaged"]] == ["b.tar", "c.tar"]


def test_a_decompression_bomb_is_a_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    files = {"bomb.jpg": photograph(0), "fine.jpg": photograph(1, size=(33, 33))}
    tar(tmp_path / "a.tar", files)
    from samclip_jax.data.tars import Tars
    from samclip_jax.data.unit import make_record

    bomb, _ = Tars(tmp_path / "a.tar").read(tmp_path / "a.tar", [], bool)
    with pytest.raises(BadRecord, match="too_large"):
        make_record(bomb, Options(), {})


def test_records_are_what_the_source_has(tmp_path):
    """Half as large, with masks: boxes, points and masks go along."""
    tar(tmp_path / "a.tar", {"sa_1.jpg": photograph(0), "sa_1.json": objects()})
    options = Options(longest=WIDTH // 2, min_side=8, masks=True)
    run("sa1b", tmp_path / "a.tar", tmp_path / "out", options=options)
    record = make_source("prepared", path=tmp_path / "out")[0]
    assert record["image"].shape == (HEIGHT // 2, WIDTH // 2, 3)
    (found,) = record["annotations"]
    x, y, w, h = np.array(SQUARE) / 2
    np.testing.assert_allclose(found["box"], [x, y, x + w, y + h])
    np.testing.assert_allclose(found["point"], [7.5, 6])
    assert found["area"] == w * h
    rows, columns = np.nonzero(np.asarray(found["mask"]))
    assert (rows.min(), rows.max() + 1) == (2, 17) or (rows.min(), rows.max() + 1) == (3, 18)
    assert (columns.min(), columns.max() + 1) == (5, 15)


def test_what_fits_keeps_its_bytes(tmp_path):
    """Not encoded again, whatever its colours; a PNG and a turned photograph are."""
    files = {"a.jpg": photograph(0), "b.png": photograph(1, "PNG"), "c.jpg": upside_down(2)}
    files |= {f"{mode}.jpg": photograph(3, mode=mode) for mode in ("L", "CMYK")}
    tar(tmp_path / "a.tar", files)
    run("tar", tmp_path / "a.tar", tmp_path / "out")
    source = make_source("prepared", path=tmp_path / "out")
    stored = [msgpack.unpackb(data)["image"] for data in source.shards]
    same = [data == file for data, file in zip(stored, files.values(), strict=True)]
    assert same == [True, False, False, True, True]
    assert all(Image.open(io.BytesIO(data)).format == "JPEG" for data in stored)
    turned = np.asarray(Image.open(io.BytesIO(files["c.jpg"])))[::-1, ::-1]
    assert np.abs(np.asarray(source[2]["image"], int) - turned).mean() < 20


def test_the_output_does_not_depend_on_the_workers(tmp_path):
    source = sa1b(tmp_path / "source", tars=4)
    options = Options(deduplicate=True, validation=0.3)
    one = run("sa1b", source, tmp_path / "one", options=options)
    two = run("sa1b", source, tmp_path / "two", workers=2, options=options)
    assert one == two and one["records"] == 24

    def files(folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder): path.read_bytes() for path in paths}

    assert files(tmp_path / "one") == files(tmp_path / "two")
    train, validation = keys(tmp_path / "one"), keys(tmp_path / "one", "validation")
    assert len(train) + len(validation) == 24 and validation
    assert run("sa1b", source, tmp_path / "one", options=options) == one  # nothing left to do


def test_a_fraction_is_the_same_keys_in_any_packing(tmp_path):
    """A smaller share of 2000 keys is in a larger one; how images are packed changes nothing."""
    names = [f"sa_{i}.jpg" for i in range(2000)]
    small, large = ({n for n in names if chosen(n, share, b"x")} for share in (0.057, 0.2))
    assert small < large and 90 < len(small) < 140 and 350 < len(large) < 450
    options = Options(fraction=0.5)
    run("sa1b", sa1b(tmp_path / "a", tars=1, images=12), tmp_path / "one", options=options)
    run("sa1b", sa1b(tmp_path / "b", tars=3, images=4), tmp_path / "three", options=options)
    assert keys(tmp_path / "one") == keys(tmp_path / "three")
    assert 2 < len(keys(tmp_path / "one")) < 10


def test_real_photographs_with_dirt_among_them_are_trained_on(tmp_path, coco):
    """COCO's photographs as SA-1B has them, every kind of dirt between: in = out + rejects, and
    every record that is left comes into the batches."""
    raw = make_source("coco_instances", annotations=coco / "instances.json", images=coco / "images")
    files, dirt = {}, iter(DIRT.items())
    for index in range(0, len(raw), 3):
        record = raw[index]
        stem = record["key"].rpartition(".")[0]
        files[f"{stem}.jpg"] = (coco / "images" / record["key"]).read_bytes()
        files[f"{stem}.json"] = as_in_sa1b(record)
        if name := next(dirt, None):
            image, annotations, _ = name[1]
            files |= {f"{name[0]}.jpg": image, f"{name[0]}.json": annotations or b""}
    tar(tmp_path / "source/a.tar", files)
    options = Options(longest=256, deduplicate=True, masks=True, fraction=0.9)
    found = run("sa1b", tmp_path / "source", tmp_path / "out", options=options)
    assert found["inputs"] == found["records"] + found["rejects"]
    names = {f"{name}.jpg": reason for name, (_, _, reason) in DIRT.items()}
    told = {key: reason for key, reason in rejects(tmp_path / "out").items() if key in names}
    wanted = {k: r for k, r in names.items() if r and chosen(k, 0.9, b"fraction")}
    assert told == wanted and len(told) > 8
    source = make_source("prepared", path=tmp_path / "out")
    stream = pipeline.stream(source, pipeline.SamStream(len(source), 64), seed=0, keys=True)
    batch = next(stream)
    stream.close()
    assert sorted(batch["key"]) == sorted(keys(tmp_path / "out"))
    assert not batch["rejected"].any()


def as_in_sa1b(record):
    height, width = record["image"].shape[:2]
    annotations = []
    for each in record["annotations"]:
        x0, y0, x1, y1 = each["box"].tolist()
        runs = rle.encode(np.asfortranarray(np.asarray(each["mask"], np.uint8)))
        segmentation = {"size": [height, width], "counts": runs["counts"].decode()}
        box, point = [x0, y0, x1 - x0, y1 - y0], [[(x0 + x1) / 2, (y0 + y1) / 2]]
        annotations.append({"bbox": box, "point_coords": point, "segmentation": segmentation})
    image = {"height": height, "width": width}
    return json.dumps({"image": image, "annotations": annotations}).encode()


def test_prepared_records_feed_the_streams(tmp_path):
    run("sa1b", sa1b(tmp_path / "source"), tmp_path / "out")
    source = make_source("prepared", path=tmp_path / "out")
    config = pipeline.SamStream(batch_size=4, image_size=64)
    stream = pipeline.stream(source, config, seed=0, workers=1, keys=True)
    batches = [next(stream) for _ in range(3)]
    stream.close()
    assert {key for batch in batches for key in batch["key"]} == set(keys(tmp_path / "out"))
    assert not sum(batch["rejected"] for batch in batches).any()


def test_beam_makes_what_one_machine_makes(tmp_path, environment):
    pytest.importorskip("apache_beam")
    source = sa1b(tmp_path / "source", tars=3)
    whole = run("sa1b", source, tmp_path / "whole")
    command = [sys.executable, "-m", "samclip_jax.data.prepare", "sa1b", source, tmp_path / "out"]
    command += ["--runner=DirectRunner", "--direct_num_workers=2"]
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == whole


def test_killed_at_any_moment_it_goes_on_and_loses_and_doubles_nothing(tmp_path, environment):
    files = {}
    for i in range(12):
        files |= {f"{i}.jpg": photograph(i % 11, size=(700, 900)), f"{i}.json": b"{}"}
    source = tmp_path / "source"
    for number in range(12):
        tar(source / f"{number}.tar", files)
    options = Options(deduplicate=True, validation=0.1, longest=600)
    whole = run("tar", source, tmp_path / "whole", workers=2, options=options)
    command = [sys.executable, "-m", "samclip_jax.data.prepare", "tar", source, tmp_path / "out"]
    command += ["--deduplicate", "--validation=0.1", "--longest=600", "--workers=2"]
    rng, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.2))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if (tmp_path / "out/manifest.json").exists():  # too late: once more from the start
            shutil.rmtree(tmp_path / "out")
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    found = json.loads((tmp_path / "out/manifest.json").read_text())
    assert found == whole
    assert {path.name for path in (tmp_path / "out/shards").iterdir()} == {
        shard["name"] for shard in found["shards"]
    }
    assert not (tmp_path / "out/progress").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["sa1b", "nowhere", "out2"], "nowhere does not exist"),
        (
            ["sa1b", "source", "out", "--longest=32"],
            "begun with a different --longest; give the same",
        ),
        (["sa1b", "source", "out3", "--fraction=2"], "--fraction must be from 0 to 1, got 2.0"),
        (["sa1b", "source", "out3", "--longest=0"], "--longest must be from 1"),
        (["sa1b", "source", "out3", "--workers=0"], "--workers must be 1 or more"),
        (["folder", "nowhere", "out2"], "nowhere does not exist"),
        (["coco", "source", "out2"], "coco needs --images"),
        (["tar", "source", "out2", "--images=."], "--images goes with coco"),
        (["tfds", "no_such_set", "out2"], "TFDS gives no 'train' of 'no_such_set'"),
        (["tar", "source", "out2", "--labels"], "--labels goes with folder"),
        (["sa1b", "html", "out2"], "nothing in html can be used"),
        (["tar", "dirt", "out3"], "4 of 4 inputs cannot be used, 4 of them are not_an_image"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, last_words, arguments, sentence):
    sa1b(tmp_path / "source", tars=1, images=2)
    (tmp_path / "html").mkdir()
    (tmp_path / "html/a.tar").write_bytes(b"<html>")
    tar(tmp_path / "dirt/a.tar", {f"{i}.jpg": b"<html>" for i in range(4)})
    run("sa1b", tmp_path / "source", tmp_path / "out")
    manifest = tmp_path / "out/manifest.json"
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(found | {"source": "source"}))
    monkeypatch.chdir(tmp_path)
    assert sentence in last_words("samclip_jax.data.prepare", *arguments)


def test_an_option_that_is_left_out_is_another_set(tmp_path):
    """The default counts as given; how many rejects stop a run does not, for it can be raised."""
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(photograph(0) if "cat" in name else b"<html>")
    given = ("folder", tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="1 of 2 inputs cannot be used.* delete .*out"):
        run(*given, options=Options(max_rejects=0.1), labels=True)
    assert run(*given, labels=True)["records"] == 1
    with pytest.raises(UserError, match="begun with a different --labels; give"):
        run(*given)


def test_other_files_are_another_set(tmp_path):
    """Where it is begun, before there is a manifest."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").write_bytes(b"<html>")
    for sentence in (
        "1 of 1 inputs cannot be used",
        "begun with a different list of files in SOURCE",
    ):
        with pytest.raises(UserError, match=sentence):
            run_here("folder", tmp_path / "in", tmp_path / "out")
        (tmp_path / "in/2.jpg").write_bytes(photograph(0))


def test_a_folder_among_the_shards_is_one_sentence(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").write_bytes(photograph(0))
    run_here("folder", tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/shards/mine").mkdir()
    with pytest.raises(UserError, match="out/shards/mine is a folder, .*; move it elsewhere"):
        run_here("folder", tmp_path / "in", tmp_path / "out")


def test_names_of_files_may_be_any_bytes(tmp_path):
    name = os.fsdecode(b"a\xff.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(photograph(0))
    run("folder", tmp_path / "in", tmp_path / "out")
    assert keys(tmp_path / "out") == [name]


def test_an_unfinished_set_cannot_be_read(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(UserError, match="let data.prepare come to its end"):
        make_source("prepared", path=tmp_path)
