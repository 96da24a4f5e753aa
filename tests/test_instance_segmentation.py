"""evals/instance_segmentation.py: the demo's SAM on scenes in COCO's and LVIS's format, beside what
SamPredictor's calls, one box at a time, and COCO's own code make of the same files."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from samclip_jax.data import transforms
from samclip_jax.data.shapes import CLASSES, OBJECT_CLASSES, ShapeScenes
from samclip_jax.data.sources import make_source
from samclip_jax.demo import ASSETS
from samclip_jax.errors import UserError
from samclip_jax.evals import evaluate
from samclip_jax.evals.instance_segmentation import run_lengths
from samclip_jax.inference.model import load
from samclip_jax.inference.predictor import Predictor

SHAPES = (192, 192), (144, 192), (192, 120), (96, 96)
IMAGES = 9


@pytest.fixture(scope="module")
def sam():
    return load(ASSETS / "sam.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """instances.json, with a crowd in every third image and nothing in the last one; lvis.json of
    the same; boxes.json of a detector that also finds what is not there."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    images, annotations, boxes = [], [], []
    categories = [{"id": 10 + i, "name": name} for i, name in enumerate(CLASSES)]
    for i in range(IMAGES):
        record = ShapeScenes("tuning", IMAGES)[i]
        height, width = SHAPES[i % len(SHAPES)]
        pixels = transforms.resize(record["image"], height, width)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        image = {"id": 500 - i, "file_name": f"{i}.png", "height": height, "width": width}
        rows, columns = (np.arange(side) * 192 // side for side in (height, width))
        kinds = []
        for part in record["annotations"]:
            mask = part["mask"][np.ix_(rows, columns)]
            if i == IMAGES - 1 or part["category"] not in OBJECT_CLASSES or mask.sum() < 30:
                continue
            y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = np.float64([x[0], y[0], x[-1] + 1 - x[0], y[-1] + 1 - y[0]])
            kinds.append(10 + CLASSES.index(part["category"]))
            known = {"image_id": image["id"], "category_id": kinds[-1]}
            is_crowd = int(i % 3 == 0 and len(kinds) == 1)
            annotations.append(
                known
                | {"id": len(annotations) + 1, "bbox": box.tolist(), "iscrowd": is_crowd}
                | {"segmentation": run_lengths(mask), "area": float(mask.sum())}
            )
            for score in rng.choice(9, 2) / 10:
                jittered = (box + rng.normal(0, 0.06, 4) * np.tile(box[2:], 2)).tolist()
                boxes.append(known | {"bbox": jittered, "score": float(score)})
        for kind in (12, 13):
            wrong = {"bbox": [20.0, 30.0, 50.0, 40.0], "score": 0.35}
            boxes.append({"image_id": image["id"], "category_id": kind} | wrong)
        lists = {"neg_category_ids": [12], "not_exhaustive_category_ids": kinds[:1]}
        images.append(image | lists)
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(contents))
    for i, category in enumerate(categories):
        category["frequency"] = "rcf"[i % 3]
    (folder / "lvis.json").write_text(json.dumps(contents))
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return folder


def average_precisions(model, folder, name="instances", **options):
    data = {"name": "coco_instances", "annotations": folder / f"{name}.json", "images": folder}
    return evaluate(model, "instance_segmentation", data, **options)


def by_hand(model, folder, mask_iterations, multimask):
    """COCO's AP to AP of large objects, of masks that SamPredictor makes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(folder / "instances.json"), []
        predictor = Predictor(model)
        for entry in json.loads((folder / "boxes.json").read_text()):
            name = truth.imgs[entry["image_id"]]["file_name"]
            predictor.set_image(np.asarray(Image.open(folder / name)))
            x, y, width, height = entry.pop("bbox")
            box = np.array([x, y, x + width, y + height])
            box = box.clip(0, np.tile(predictor.original_size[::-1], 2))
            masks, scores, low_res = predictor.predict(box=box, multimask_output=multimask)
            best = scores.argmax()
            for _ in range(mask_iterations):
                prompt = low_res[best : best + 1]
                masks, _, low_res = predictor.predict(
                    box=box, mask_input=prompt, multimask_output=False
                )
                best = 0
            results.append(entry | {"segmentation": run_lengths(masks[best])})
        theirs = COCOeval(truth, truth.loadRes(results), "segm")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    return theirs.stats[:6]


@pytest.mark.parametrize("mask_iterations, multimask", [
    (1, True),
    pytest.param(0, False, marks=pytest.mark.slow),
    pytest.param(2, False, marks=pytest.mark.slow),
])  # fmt: skip
def test_detections_score_as_by_sam_predictor_and_cocos_code(
    sam, folder, mask_iterations, multimask
):
    options = {"mask_iterations": mask_iterations, "multimask": multimask}
    found = average_precisions(sam, folder, detections=str(folder / "boxes.json"), **options)
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    wanted = dict(zip(names, by_hand(sam, folder, **options), strict=True))
    assert wanted.pop("AP_large") == -1 and "AP_large" not in found
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert 0.1 < found["AP"] < 0.9 and found["AP50"] > found["AP"]
    assert found["images"] == IMAGES and found["boxes"] == found["instances"] * 2 + 24


def test_without_detections_the_boxes_are_true_and_are_named_so(sam, folder):
    found = average_precisions(sam, folder)
    assert found["true_box_AP"] > 0.6 and found["boxes"] == found["instances"]
    assert not any(name.startswith("AP") for name in found)
    subset = average_precisions(sam, folder, limit=IMAGES - 1, batch_size=3)
    assert subset == found | {"images": IMAGES - 1}, "nothing is in the last image"


def test_lvis_counts_what_is_known(sam, folder):
    """Wrong boxes of a class that nobody looked for are no mistakes, and are not made masks."""
    coco = average_precisions(sam, folder, detections=str(folder / "boxes.json"))
    lvis = average_precisions(sam, folder, "lvis", detections=str(folder / "boxes.json"))
    names = {name for name in lvis if name.startswith("AP_")}
    assert names == {"AP_small", "AP_medium", "AP_rare", "AP_common", "AP_frequent"}
    assert lvis["boxes"] < coco["boxes"] and lvis["AP"] > coco["AP"]


def test_a_source_without_ids_has_true_boxes_only(sam, folder):
    data = {"name": "shape_scenes", "split": "tuning", "size": 2}
    found = evaluate(sam, "instance_segmentation", data)
    assert 0.3 < found["true_box_AP"] <= 1
    with pytest.raises(UserError, match="has no image ids: .* need the source coco_instances"):
        evaluate(sam, "instance_segmentation", data, detections=str(folder / "boxes.json"))


def test_boxes_outside_the_image_are_left_out_and_counted(sam, folder, tmp_path):
    boxes = json.loads((folder / "boxes.json").read_text())
    outside = boxes[0] | {"bbox": [500, 0, 20, 20], "score": 1.0}
    (tmp_path / "boxes.json").write_text(json.dumps([*boxes, outside]))
    found = average_precisions(sam, folder, detections=str(tmp_path / "boxes.json"))
    wanted = average_precisions(sam, folder, detections=str(folder / "boxes.json"))
    assert found == wanted | {"annotations_dropped": 1}


def test_lvis_without_its_lists_is_one_sentence(sam, folder, tmp_path):
    contents = json.loads((folder / "lvis.json").read_text())
    for image in contents["images"]:
        del image["neg_category_ids"]
    (folder / "other.json").write_text(json.dumps(contents))
    with pytest.raises(UserError, match="image 500 has no 'neg_category_ids'"):
        average_precisions(sam, folder, "other")


def test_records_of_the_source_are_those_of_the_file(folder):
    source = make_source("coco_instances", annotations=folder / "instances.json", images=folder)
    assert len(source[0]["crowds"]) == 1 and source[1]["crowds"] == []
    assert source.image_ids == [str(500 - i) for i in range(IMAGES)]
