"""COCO's json as people make it: ids of two kinds, broken entries, files of other formats."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from test_annotations import GOOD, SIZE
from test_evaluation_sets import write
from test_prepare import HEIGHT, WIDTH, run_here

from samclip_jax.data import evaluation_sets, raw
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError

IMAGE = {"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}
ANNOTATION = GOOD | {"id": 1, "image_id": 7}
CATEGORY = {"id": 3, "name": "dog"}


def instances(folder, images=(IMAGE,), annotations=(ANNOTATION,), categories=(CATEGORY,), **more):
    contents = {"images": images, "annotations": annotations, "categories": categories} | more
    return write(folder, {"a.json": json.dumps(contents), "a.jpg": 0, "b.jpg": 1}) / "a.json"


def open_source(path, name="coco_instances", **more):
    return make_source(name, annotations=path, images=path.parent, **more)


@pytest.mark.parametrize("image, image_id, category, category_id", [
    (7, "7", 3, "3"), ("7", 7, "3", 3), ("a7", "a7", "dog", "dog"), (7.0, 7, 3, 3.0),
])  # fmt: skip
def test_ids_match_as_text(tmp_path, image, image_id, category, category_id):
    annotation = ANNOTATION | {"image_id": image_id, "category_id": category_id}
    images, categories = [IMAGE | {"id": image}], [CATEGORY | {"id": category}]
    path = instances(tmp_path, images, [annotation], categories)
    (read,) = open_source(path)[0]["annotations"]
    assert read["category"] == "dog"
    run_here("coco", path, tmp_path / "out", images=str(tmp_path))
    assert make_source("prepared", path=tmp_path / "out")[0]["annotations"]


@pytest.mark.parametrize(
    "contents, sentence",
    [
        ({"annotations": [ANNOTATION | {"image_id": "a.jpg"}]}, "no 'image_id'.*such as 'a.jpg'"),
        ({"annotations": [ANNOTATION | {"category_id": 4}]}, "no 'category_id'.*such as 4"),
        ({"images": [], "annotations": []}, "lists no images"),
        ({"images": {"7": IMAGE}}, "has no list 'images'"),
        ({"annotations": None}, "has no list 'annotations'"),
        ({"categories": {}}, "has no list 'categories'"),
        ({"categories": [{"id": 3}]}, r"categories\[0\]"),
        ({"categories": [CATEGORY, {"id": "3", "name": "cat"}]}, "3 is 'dog' and 'cat'"),
        ({"annotations": [{"image_id": 7, "segments_info": []}]}, "panoptic.*coco_panoptic"),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, "captions.*as captions"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, contents, sentence):
    path = instances(tmp_path, **contents)
    with pytest.raises(UserError, match=sentence):
        open_source(path)
    with pytest.raises(UserError, match=sentence):
        run_here("coco", path, tmp_path / "out", images=str(tmp_path))


@pytest.mark.parametrize("text, sentence", [
    ('[{"image_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}]', "COCO results file"),
    ("[]", "COCO results file"), ("7", "not in COCO's format"), ("{", "not in COCO's format"),
    ("[" * 99999, "not in COCO's format"), ("", "not in COCO's format"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["coco_instances", "coco_panoptic", "captions"])
def test_a_results_file_is_called_by_its_name(tmp_path, name, text, sentence):
    path = write(tmp_path, {"a.json": text}) / "a.json"
    more = {"maps": tmp_path} if name == "coco_panoptic" else {}
    with pytest.raises(UserError, match=sentence):
        open_source(path, name, **more)


def test_instances_are_no_panoptic_maps_or_captions(tmp_path):
    path = instances(tmp_path)
    with pytest.raises(UserError, match="holds instances, not panoptic maps; read it as coco_inst"):
        open_source(path, "coco_panoptic", maps=tmp_path)
    with pytest.raises(UserError, match="holds instances, not captions"):
        open_source(path, "captions")


@pytest.mark.parametrize(
    "entry, detail",
    [
        ({"id": 8, "height": 1, "width": 1}, "coco_url"),
        (IMAGE | {"id": 8, "file_name": 5}, "no name of a file"),
        (IMAGE | {"id": 8, "file_name": "a\0.jpg"}, "no name of a file"),
        (IMAGE | {"id": 8, "file_name": "\ud800.jpg"}, "no name of a file"),
        (IMAGE | {"id": 8, "width": None}, "width"),
        (IMAGE | {"id": None}, "no id"),
        (IMAGE, "that of a.jpg, too"),
        (IMAGE | {"id": 8}, r"an earlier entry has its file"),
        (None, r"images\[1\]"),
        ("a.jpg", r"images\[1\]"),
    ],
)
def test_a_bad_entry_of_an_image_costs_itself(tmp_path, entry, detail):
    path = instances(tmp_path, [IMAGE, entry])
    source = open_source(path)
    assert len(source) == 2 and source[0]["annotations"]
    with pytest.raises(BadRecord, match=detail) as bad:
        source[1]
    assert bad.value.reason == "bad_annotation"
    found = run_here("coco", path, tmp_path / "out", images=str(tmp_path))
    assert (found["records"], found["reasons"]) == (1, {"bad_annotation": 1})


def test_lvis_says_what_it_knows_of_an_image(tmp_path):
    """By names; a class that is not listed is none of them, and what is no list costs the image."""
    names = [
        {"id": 3, "name": "dog", "frequency": "f"},
        {"id": 4, "name": "cat", "frequency": "r"},
    ]
    known = {"neg_category_ids": ["4", 9], "not_exhaustive_category_ids": [3]}
    other = IMAGE | {"id": 8, "file_name": "b.jpg", "neg_category_ids": 4}
    source = open_source(instances(tmp_path, [IMAGE | known, other], categories=names))
    assert source.frequencies == {"dog": "f", "cat": "r"}
    assert (source[0]["absent"], source[0]["incomplete"]) == (["cat"], ["dog"])
    with pytest.raises(BadRecord, match="int"):
        source[1]
    assert open_source(instances(tmp_path, categories=[CATEGORY, names[1]])).frequencies is None


def test_annotations_of_no_image_are_counted(tmp_path):
    others = [ANNOTATION | {"id": 5, "image_id": 9}, None, ANNOTATION | {"image_id": None}]
    path = instances(tmp_path, annotations=[ANNOTATION, *others])
    assert [each[1:3] for each in open_source(path).dropped] == [
        ("5", "unknown_image"), ("#2", "bad_entry"), ("1", "unknown_image")
    ]  # fmt: skip
    found = run_here("coco", path, tmp_path / "out", images=str(tmp_path))
    assert found["annotations_dropped"] == {"unknown_image": 2, "bad_entry": 1}
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("place", ["000000000007.jpg", "val2017/000000000007.jpg"])
def test_lvis_of_2019_has_names_of_2014_and_synonyms(tmp_path, place):
    url = "http://images.cocodataset.org/val2017/000000000007.jpg"
    image = IMAGE | {"file_name": "COCO_val2014_000000000007.jpg", "coco_url": url}
    path = instances(tmp_path, [image], categories=[{"id": 3, "synonyms": ["bath_towel"]}])
    write(tmp_path, {place: 0})
    record = open_source(path)[0]
    assert record["key"] == place and record["annotations"][0]["category"] == "bath_towel"


def test_a_worker_is_sent_its_unit_only(tmp_path):
    """A set of 10,000 annotations as bytes, once for each worker, is no larger than one of one."""
    path = instances(tmp_path, annotations=[ANNOTATION] * 10_000)
    kinds = [raw.KINDS["coco"], evaluation_sets.KINDS["coco_object"]]
    assert all(len(pickle.dumps(kind(path, tmp_path))) < 10_000 for kind in kinds)


def test_a_worker_of_training_is_sent_little(tmp_path):
    """Bytes, not objects: what arrives takes no more memory than what is sent."""
    path = instances(tmp_path, annotations=[ANNOTATION] * 10_000)
    source = open_source(path)
    sent = pickle.dumps(source)
    tracemalloc.start()
    arrived = pickle.loads(sent)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(len(sent), taken) < path.stat().st_size / 10
    assert arrived.images[0] == source.images[0] and len(arrived[0]["annotations"]) == 10_000


def panoptic(folder, segments, ids=(0, 5, 9)):
    """A map of three stripes."""
    values = np.repeat(ids, [20, 30, 30])[None].repeat(HEIGHT, 0)
    colours = np.stack([values % 256, values // 256 % 256, values // 256**2], -1)
    Image.fromarray(colours.astype(np.uint8)).save(folder / "map.png")
    painted = {"image_id": "7", "file_name": "map.png", "segments_info": segments}
    return instances(folder, annotations=[painted])


def test_a_bad_segment_costs_itself(tmp_path):
    """Its pixels have no class; ids match as text."""
    segments = [{"id": "5", "category_id": "3"}, {"id": 9, "category_id": 4}, None]
    path = panoptic(tmp_path, segments)
    record = open_source(path, "coco_panoptic", maps=tmp_path)[0]
    assert np.bincount(record["semantic"][0] + 1).tolist() == [50, 30]
    assert [each[:2] for each in record["dropped"]] == [
        ("9", "unknown_category"),
        ("#2", "bad_entry"),
    ]
    given = {"images": str(tmp_path), "maps": str(tmp_path)}
    found = run_here("coco_panoptic", path, tmp_path / "out", **given)
    assert found["annotations_dropped"] == {"unknown_category": 1, "bad_entry": 1}
    np.testing.assert_array_equal(
        make_source("prepared", path=tmp_path / "out")[0]["semantic"], record["semantic"]
    )


@pytest.mark.parametrize("id", [None, "x", 0])
def test_a_segment_without_an_id_costs_itself(tmp_path, id):
    """Its pixels, of whichever value, have no class; black ones are no segment's."""
    segments = [{"id": 5, "category_id": 3}, {"id": id, "category_id": 3}]
    path = panoptic(tmp_path, segments)
    record = open_source(path, "coco_panoptic", maps=tmp_path)[0]
    assert np.bincount(record["semantic"][0] + 1).tolist() == [50, 30]
    assert [reason for _, reason, _ in record["dropped"]] == ["bad_entry"]


@pytest.mark.parametrize("segments, detail", [
    ([{"id": 5, "category_id": 3}], "has the value 9"), (None, "not a list"), ("x", "not a list"),
])  # fmt: skip
def test_a_panoptic_map_with_other_values_is_a_bad_annotation(tmp_path, segments, detail):
    path = panoptic(tmp_path, segments)
    with pytest.raises(BadRecord, match=detail):
        open_source(path, "coco_panoptic", maps=tmp_path)[0]


def test_coco_object_is_painted_from_instances(tmp_path):
    """81 classes of COCO: the background, what is painted later, and none of a crowd, nor of what
    was left out, its mask known or only its box."""
    names = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    over = ANNOTATION | {
        "id": 2,
        "segmentation": [[40, 5, 60, 5, 60, 25, 40, 25]],
        "category_id": 80,
    }
    runs = {"size": SIZE, "counts": [0, HEIGHT * 5, HEIGHT * (WIDTH - 5)]}
    crowd = ANNOTATION | {"id": 3, "segmentation": runs, "iscrowd": 1}
    bad = ANNOTATION | {"id": 4, "segmentation": [[None] * 6], "bbox": [70, 50, 10, 10]}
    square = [[70, 0, 80, 0, 80, 10, 70, 10]]
    unknown = ANNOTATION | {"id": 5, "segmentation": square, "category_id": 99}
    path = instances(tmp_path, [IMAGE], [ANNOTATION, over, crowd, bad, unknown], names)
    found = run_here("coco_object", path, tmp_path / "out", images=str(tmp_path))
    assert found["classes"] == ["background", *(each["name"] for each in names)]
    assert found["annotations_dropped"] == {"bad_mask": 1, "unknown_category": 1}
    values, counts = np.unique(
        make_source("prepared", path=tmp_path / "out")[0]["semantic"], return_counts=True
    )
    assert values.tolist() == [-1, 0, 3, 80]
    assert counts[[0, 2, 3]].tolist() == [HEIGHT * 5 + 200, 200, 400]
