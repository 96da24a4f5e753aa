"""data/detections.py: what a detector found, and a sentence for every other file."""

import json

import pytest
from test_coco import instances, open_source

from samclip_jax.data.detections import read_detections
from samclip_jax.errors import UserError

DETECTION = {"image_id": 7, "category_id": 3, "bbox": [30, 5, 20, 20], "score": 0.5}


def test_detections_are_found_by_their_image(tmp_path):
    """Ids match as text; boxes that lie outside of the image are left to the reader."""
    source = open_source(instances(tmp_path))
    outside = DETECTION | {"image_id": "7", "bbox": [-9.5, 0, 5, 5], "segmentation": {"counts": ""}}
    (tmp_path / "boxes.json").write_text(json.dumps([DETECTION, outside]))
    (listed,) = read_detections(tmp_path / "boxes.json", source).items()
    assert listed == ("7", [("dog", [30, 5, 20, 20], 0.5), ("dog", [-9.5, 0, 5, 5], 0.5)])


@pytest.mark.parametrize(
    "contents, sentence",
    [
        ([], "boxes.json lists no detections"),
        ({"annotations": [], "images": []}, "holds annotations; give detections"),
        ({"7": [DETECTION]}, "is not in COCO's results format: it holds"),
        (7, "is not in COCO's results format: it holds 7"),
        (
            [DETECTION, DETECTION | {"image_id": 8}],
            "entry 1 is of image 8, which .*a.json does not",
        ),
        ([DETECTION | {"category_id": 44}], "of category 44, .* take the detections of this set"),
        ([DETECTION | {"image_id": None}], "entry 0 is of image None"),
        ([None], "entry 0 is None; a detection has an image_id"),
        ([{"image_id": 7}], "entry 0 is .*; a detection has an image_id, a category_id"),
        ([DETECTION | {"bbox": [1, 2, 3]}], "entry 0 is"),
        ([DETECTION | {"bbox": 3}], "entry 0 is"),
        ([DETECTION | {"bbox": [1, 2, 3, "4"]}], "a bbox of four numbers"),
        ([DETECTION | {"score": float("nan")}], "and a score"),
        ([DETECTION | {"score": None}], "and a score"),
    ],
)
def test_another_file_is_one_sentence(tmp_path, contents, sentence):
    source = open_source(instances(tmp_path))
    (tmp_path / "boxes.json").write_text(json.dumps(contents))
    with pytest.raises(UserError, match=sentence):
        read_detections(tmp_path / "boxes.json", source)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    source = open_source(instances(tmp_path))
    with pytest.raises(UserError, match="absent.json does not exist"):
        read_detections(tmp_path / "absent.json", source)
    with pytest.raises(UserError, match="a.jpg is not in COCO's results format"):
        read_detections(tmp_path / "a.jpg", source)
    with pytest.raises(UserError, match="is not in COCO's results format: IsADirectory"):
        read_detections(tmp_path, source)
