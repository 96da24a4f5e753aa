"""Captions of COCO, Karpathy and Flickr30k: a bad one is dropped and counted, not the file."""

import json

import pytest
from test_evaluation_sets import write
from test_prepare import run_here

from samclip_jax.data.decode import BadRecord
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.errors import UserError

BAD = [None, "", "  \n", 7, ["a dog"], "\ud800"]


def coco(captions):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    annotations = [{"id": i, "image_id": 1, "caption": text} for i, text in enumerate(captions)]
    return {"images": images, "annotations": annotations}


def karpathy(captions):
    sentences = [{"sentid": i, "raw": text} for i, text in enumerate(captions)]
    images = [{"filename": "1.jpg", "split": "test", "sentences": sentences},
              {"filename": "2.jpg", "split": "test", "sentences": []}]  # fmt: skip
    return {"images": images}


@pytest.mark.parametrize("form", [coco, karpathy])
def test_a_bad_caption_costs_itself(tmp_path, form):
    files = {"a.json": json.dumps(form(["a dog", *BAD, "a cat"])), "1.jpg": 0, "2.jpg": 1}
    path = write(tmp_path, files) / "a.json"
    source = make_source("captions", annotations=path, images=tmp_path)
    assert source[0]["captions"] == ["a dog", "a cat"]
    expected = [("1.jpg", str(i), "bad_caption") for i in range(1, 1 + len(BAD))]
    assert [each[:3] for each in source.dropped] == expected
    found = run_here("captions", path, tmp_path / "out", images=str(tmp_path))
    assert found["records"] == 1 and found["annotations_dropped"] == {"bad_caption": len(BAD)}
    lines = map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    told = [(line["key"], line.get("annotation"), line["reason"]) for line in lines]
    assert told == [*expected, ("2.jpg", None, "no_annotation")]


@pytest.mark.parametrize("form", [coco, karpathy])
def test_an_image_without_captions_is_counted(tmp_path, form):
    files = {"a.json": json.dumps(form(["a dog"])), "1.jpg": 0, "2.jpg": 1}
    path = write(tmp_path, files) / "a.json"
    source = make_source("captions", annotations=path, images=tmp_path)
    assert len(source) == 2 and source[0]["captions"] == ["a dog"]
    with pytest.raises(BadRecord, match="no_annotation: it has no caption"):
        source[1]
    found = run_here("captions", path, tmp_path / "out", images=str(tmp_path))
    assert (found["inputs"], found["records"]) == (2, 1)
    assert found["reasons"] == {"no_annotation": 1}


def test_captions_of_other_images_are_counted_and_ids_match_as_text(tmp_path):
    contents = coco(["a dog"])
    contents["annotations"] += [{"id": 8, "image_id": "2", "caption": "two"},
                                {"id": 9, "image_id": 3, "caption": "none"}, None]  # fmt: skip
    path = write(tmp_path, {"a.json": json.dumps(contents), "1.jpg": 0, "2.jpg": 1}) / "a.json"
    source = make_source("captions", annotations=path, images=tmp_path)
    assert [source[i]["captions"] for i in (0, 1)] == [["a dog"], ["two"]]
    assert [each[:3] for each in source.dropped] == [
        ("image 3", "9", "unknown_image"), ("image None", "#3", "bad_entry")
    ]  # fmt: skip


def test_an_image_without_a_name_or_a_good_caption_costs_itself(tmp_path):
    contents = coco(["a dog"])
    contents["images"] += [{"id": 3}, None]
    contents["annotations"].append({"id": 4, "image_id": 2, "caption": None})
    path = write(tmp_path, {"a.json": json.dumps(contents), "1.jpg": 0, "2.jpg": 1}) / "a.json"
    source = make_source("captions", annotations=path, images=tmp_path)
    assert source[0]["captions"] == ["a dog"] and len(source) == 4
    for index, reason in ((1, "no_annotation"), (2, "bad_annotation"), (3, "bad_annotation")):
        with pytest.raises(BadRecord, match=reason):
            source[index]
    more = {"images": str(tmp_path), "options": Options(max_rejects=0.9)}
    found = run_here("captions", path, tmp_path / "out", **more)
    assert found["records"] == 1 and found["reasons"] == {"bad_annotation": 2, "no_annotation": 1}


def test_of_karpathys_images_a_file_is_that_of_one(tmp_path):
    contents = karpathy(["a dog"])
    contents["images"] += [contents["images"][0], contents["images"][0] | {"split": "train"}]
    path = write(tmp_path, {"a.json": json.dumps(contents), "1.jpg": 0}) / "a.json"
    source = make_source("captions", annotations=path, images=tmp_path, split="test")
    assert len(source) == 3 and source[0]["key"] == "1.jpg"
    with pytest.raises(BadRecord, match=r"1.jpg: an earlier entry has its file"):
        source[2]


def test_the_list_of_flickr30k(tmp_path):
    listed = '1.jpg#0\tTwo dogs .\n1.jpg#1\tA "pair" , of dogs .\n2.jpg#0\tA cat .\n2.jpg#1\t \n'
    path = write(tmp_path, {"results_20130124.token": listed, "1.jpg": 0, "2.jpg": 1})
    path = path / "results_20130124.token"
    found = run_here("captions", path, tmp_path / "out", images=str(tmp_path))
    assert found["records"] == 2 and found["annotations_dropped"] == {"bad_caption": 1}
    source = make_source("prepared", path=tmp_path / "out")
    assert [source[i]["captions"] for i in (0, 1)] == [
        ["Two dogs .", 'A "pair" , of dogs .'], ["A cat ."]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, text, split, sentence",
    [
        ("a.json", json.dumps(coco(BAD)), None, "no captions that can be used"),
        ("a.json", json.dumps(karpathy(["x"])), "val", "no captions that can be used in val"),
        ("a.json", json.dumps(coco(["x"])), "val", "has no splits"),
        ("a.token", "1.jpg#0\tx\n", "val", "has no splits"),
        ("a.token", "a,b\n", None, "no captions that can be used"),
        ("a.json", '{"images": 5}', None, "no list 'images'"),
    ],
)
def test_a_file_without_captions_is_one_sentence(tmp_path, name, text, split, sentence):
    path = write(tmp_path, {name: text}) / name
    with pytest.raises(UserError, match=sentence):
        make_source("captions", annotations=path, images=tmp_path, split=split)
