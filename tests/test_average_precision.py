"""evals/average_precision.py: what COCO's and LVIS's own code says of the same detections."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest

from samclip_jax.evals.average_precision import average_precision
from samclip_jax.evals.instance_segmentation import run_lengths

CLASSES = [str(number) for number in range(1, 7)]
FREQUENCIES = ["c", "f", "r", "c", "f", "r"]
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
HEIGHT, WIDTH = 240, 300


def random_set(seed, crowds=0.0, images=40):
    """Images, annotations and detections: near, far and of another class, with many equal scores.
    Every image has two classes that are known to be absent, unless they are not, and one of which
    not all objects are annotated."""
    rng = np.random.default_rng(seed)
    entries, annotations, detections = [], [], []

    def rectangle():
        y, x = rng.integers(0, 150, 2)
        height, width = rng.integers(*((3, 20), (30, 150))[rng.integers(2)], 2)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y : y + height, x : x + width] = True
        return mask

    def category():
        return int(rng.integers(1, len(CLASSES) + 1))

    def detect(image, category, mask):
        score = float(rng.integers(10) / 10)
        known = {"image_id": image, "category_id": category, "score": score}
        detections.append(known | {"segmentation": run_lengths(mask)})

    for image in range(1, images + 1):
        lists = {
            "neg_category_ids": [category(), category()],
            "not_exhaustive_category_ids": [category()],
        }
        entries.append({"id": image, "height": HEIGHT, "width": WIDTH} | lists)
        for _ in range(rng.integers(0, 7)):
            mask, kind = rectangle(), category()
            known = {"image_id": image, "category_id": kind, "segmentation": run_lengths(mask)}
            area = float(mask.sum() * rng.uniform(0.7, 1.3))  # files have that of the polygon
            is_crowd = int(rng.random() < crowds)
            annotations.append(known | {"area": area, "iscrowd": is_crowd, "bbox": [0, 0, 1, 1]})
            for _ in range(rng.integers(0, 4)):
                near = np.roll(mask, tuple(rng.integers(-3, 4, 2)), (0, 1))
                detect(image, kind if rng.random() < 0.8 else category(), near)
        for _ in range(3):
            detect(image, category(), rectangle())
    return entries, annotations, detections


def numbered(annotations):
    return [each | {"id": number} for number, each in enumerate(copy.deepcopy(annotations), 1)]


@pytest.mark.parametrize("crowds", [0, 0.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_coco_says_the_same(seed, crowds):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, annotations, detections = random_set(seed, crowds)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        categories = [{"id": number, "name": str(number)} for number in range(1, 7)]
        annotated = numbered(annotations)
        truth.dataset = {"images": images, "annotations": annotated, "categories": categories}
        truth.createIndex()
        theirs = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "segm")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    ours = average_precision(images, annotations, detections, CLASSES)
    assert list(ours) == list(NAMES)
    np.testing.assert_allclose([*ours.values()], theirs.stats[:6], rtol=0, atol=1e-12)
    assert len({*ours.values()}) == 6 and min(ours.values()) > 0.01


def test_lvis_says_what_coco_does_where_all_is_annotated():
    """Of every class it is known whether it is there; rare, common and frequent are parts of it."""
    images, annotations, detections = random_set(2)
    whole = {"neg_category_ids": [*range(1, 7)], "not_exhaustive_category_ids": []}
    annotated = [image | whole for image in images]
    coco = average_precision(images, annotations, detections, CLASSES)
    lvis = average_precision(annotated, annotations, detections, CLASSES, FREQUENCIES)
    assert {name: lvis[name] for name in NAMES} == pytest.approx(coco, abs=1e-12)
    parts = [lvis[f"AP_{name}"] for name in ("rare", "common", "frequent")]
    assert np.mean(parts) == pytest.approx(coco["AP"], abs=1e-12) and len({*parts}) == 3
    other = average_precision(images, annotations, detections, CLASSES, FREQUENCIES)
    assert other["AP"] > coco["AP"] + 0.01, "what is not known to be wrong does not count"


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [3, 4])
def test_lvis_own_code_says_the_same(seed, tmp_path, monkeypatch):
    """On a few annotated classes an image; the package is from before numpy 1.24."""
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)
    images, annotations, detections = random_set(seed)
    detections += 4 * detections[:60]  # over 300 in an image
    detections = [each | {"image_id": min(each["image_id"], 3)} for each in detections]
    categories = [
        {"id": number, "name": str(number), "frequency": frequency}
        for number, frequency in enumerate(FREQUENCIES, 1)
    ]
    contents = {
        "images": images,
        "annotations": numbered(annotations),
        "categories": categories,
    }
    (tmp_path / "lvis.json").write_text(json.dumps(contents))
    theirs = lvis.LVISEval(str(tmp_path / "lvis.json"), copy.deepcopy(detections), "segm")
    theirs.run()
    theirs = theirs.get_results()
    ours = average_precision(images, annotations, detections, CLASSES, FREQUENCIES)
    names = [*NAMES[:3], *(f"AP{letter}" for letter in "smlrcf")]
    wanted = [theirs[name.replace("_", "")] for name in names]
    wanted = [value for value in wanted if value > -1]
    np.testing.assert_allclose([*ours.values()], wanted, rtol=0, atol=1e-12)


def test_sizes_without_objects_are_left_out_and_nothing_found_is_zero():
    image = {"id": 1, "height": HEIGHT, "width": WIDTH}
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:20, :20] = True
    known = {"image_id": 1, "category_id": 1, "segmentation": run_lengths(mask)}
    annotation = known | {"area": 400.0, "iscrowd": 0}
    names = {"AP", "AP50", "AP75", "AP_small"}
    found = average_precision([image], [annotation], [known | {"score": 0.5}], CLASSES)
    assert found == pytest.approx(dict.fromkeys(names, 1))
    assert average_precision([image], [annotation], [], CLASSES) == dict.fromkeys(names, 0)
    assert average_precision([image], [], [known | {"score": 0.5}], CLASSES) == {}
