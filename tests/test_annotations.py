"""One bad annotation costs itself, under one reason, whoever reads it, and no number of a file
reaches a C library unchecked."""

import json
import types

import numpy as np
import pytest
from pycocotools import mask as rle
from test_prepare import HEIGHT, WIDTH, photograph, run_here

from samclip_jax.data import records
from samclip_jax.data.annotations import (
    REASONS,
    BadAnnotation,
    CompressedMask,
    annotation,
    mask_of,
    usable,
)
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.pipeline import SamStream
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.evals.batches import results
from samclip_jax.evals.masks import box_masks

SIZE = (HEIGHT, WIDTH)
SQUARE = [30, 5, 50, 5, 50, 25, 30, 25]
EMPTY = np.zeros(SIZE, np.uint8, order="F")
GOOD = {"bbox": [30, 5, 20, 20], "segmentation": [SQUARE], "area": 400, "category_id": 3}
NAN, INFINITE = float("nan"), float("inf")


def runs(counts, size=SIZE):
    return {"size": size, "counts": counts}


BAD = {  # what differs from a good one, its reason
    "no bbox": ({"bbox": None}, "bad_box"),
    "bbox of none": ({"bbox": []}, "bad_box"),
    "bbox of five": ({"bbox": [1, 2, 3, 4, 5]}, "bad_box"),
    "bbox of text": ({"bbox": ["1", "2", "3", "4"]}, "bad_box"),
    "bbox of truth": ({"bbox": [True, True, 9, 9]}, "bad_box"),
    "bbox of lists": ({"bbox": [[1, 2], [3, 4]]}, "bad_box"),
    "bbox of names": ({"bbox": {"x": 1, "y": 2, "width": 3, "height": 4}}, "bad_box"),
    "NaN": ({"bbox": [NAN, 5, 20, 20]}, "bad_box"),
    "infinite": ({"bbox": [30, 5, INFINITE, 20]}, "bad_box"),
    "400 digits": ({"bbox": [30, 5, 10**400, 20]}, "bad_box"),
    "flat": ({"bbox": [30, 5, 0, 20]}, "bad_box"),
    "turned": ({"bbox": [30, 5, -20, 20]}, "bad_box"),
    "outside": ({"bbox": [WIDTH, 5, 20, 20]}, "bad_box"),
    "no category": ({"category_id": None}, "unknown_category"),
    "other category": ({"category_id": 4}, "unknown_category"),
    "category of lists": ({"category_id": [3]}, "unknown_category"),
    "true category": ({"category_id": True}, "unknown_category"),
    "null corner": ({"segmentation": [[30, 5, None, 5, 50, 25, 30, 25]]}, "bad_mask"),
    "corner of text": ({"segmentation": [["30", "5", "50", "5", "50", "25"]]}, "bad_mask"),
    "corner at 1e12": ({"segmentation": [[30, 5, 1e12, 5, 50, 25]]}, "bad_mask"),
    "corner at 2e8": ({"segmentation": [[30, 5, 2e8, 5, 50, 25]]}, "bad_mask"),
    "corner at -1e300": ({"segmentation": [[30, 5, -1e300, 5, 50, 25]]}, "bad_mask"),
    "corner at NaN": ({"segmentation": [[30, 5, NAN, 5, 50, 25]]}, "bad_mask"),
    "second polygon": ({"segmentation": [SQUARE, [1, 1, 5, 1, None, 5]]}, "bad_mask"),
    "odd": ({"segmentation": [[*SQUARE, 3]]}, "bad_mask"),
    "triples": ({"segmentation": [[[1, 1, 1], [5, 1, 1], [5, 5, 1]]]}, "bad_mask"),
    "numbers and polygons": ({"segmentation": [30, 5, SQUARE]}, "bad_mask"),
    "scribble": ({"segmentation": [[0, 0, 320, 0] * 9999]}, "bad_mask"),
    "many polygons": ({"segmentation": [SQUARE] * 5000}, "bad_mask"),
    "text": ({"segmentation": "30 5 50 5"}, "bad_mask"),
    "number": ({"segmentation": 7}, "bad_mask"),
    "no counts": ({"segmentation": {"size": SIZE}}, "bad_mask"),
    "counts of text": ({"segmentation": runs(["4800"])}, "bad_mask"),
    "counts of floats": ({"segmentation": runs([4800.0])}, "bad_mask"),
    "short counts": ({"segmentation": runs([4799])}, "bad_mask"),
    "negative counts": ({"segmentation": runs([10, -10, 4800])}, "bad_mask"),
    "large counts": ({"segmentation": runs([2**63, 2**63, 4800])}, "bad_mask"),
    "empty counts": ({"segmentation": runs("")}, "bad_mask"),
    "unended counts": ({"segmentation": runs("ooo")}, "bad_mask"),
    "long counts": ({"segmentation": runs("o" * 99 + "0")}, "bad_mask"),
    "letters": ({"segmentation": runs("ééé")}, "bad_mask"),
    "half a letter": ({"segmentation": runs("\ud800")}, "bad_mask"),
    "other size": ({"segmentation": runs([4900], (70, 70))}, "bad_mask"),
    "size of text": ({"segmentation": runs([4800], "60")}, "bad_mask"),
    "size of none": ({"segmentation": runs([4800], None)}, "bad_mask"),
    "runs without a pixel": ({"segmentation": runs([4800])}, "bad_mask"),
    "text without a pixel": (
        {"segmentation": runs(rle.encode(EMPTY)["counts"].decode())},
        "bad_mask",
    ),
    "polygon outside": ({"segmentation": [[30, -99, 50, -99, 50, -25]]}, "bad_mask"),
    "huge size": ({"segmentation": runs([10**18], (10**9, 10**9))}, "bad_mask"),
}
READ = {  # what differs from a good one, px of its mask
    "flat polygon": ({"segmentation": SQUARE}, 400),
    "pairs": ({"segmentation": [SQUARE[i : i + 2] for i in (0, 2, 4, 6)]}, 400),
    "polygon of pairs": ({"segmentation": [[SQUARE[i : i + 2] for i in (0, 2, 4, 6)]]}, 400),
    "two polygons": ({"segmentation": [SQUARE, [0, 0, 10, 0, 10, 10, 0, 10]]}, 500),
    "and a line": ({"segmentation": [SQUARE, [0, 0, 10, 0]]}, 400),
    "partly outside": ({"segmentation": [[30, -99, 50, -99, 50, 25, 30, 25]]}, 500),
    "iscrowd 0": ({"iscrowd": "0"}, 400),
    "iscrowd false": ({"iscrowd": False}, 400),
    "category of text": ({"category_id": "3"}, 400),
    "category 3.0": ({"category_id": 3.0}, 400),
    "area of text": ({"area": "large"}, 400),
    "area NaN": ({"area": NAN}, 400),
    "negative area": ({"area": -5}, 400),
    "no area": ({"area": None}, 400),
    "counts of text": ({"segmentation": runs([1805, *[20, 40] * 19, 20, 1835])}, 400),
}
CROWD = {"true": True, "1": "1", "one": 1, "1.0": 1.0}


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """A COCO json with a good and another annotation for every image, read by data.prepare, as the
    source that training has, from what was prepared, and by an evaluation."""
    folder = tmp_path_factory.mktemp("instances")
    cases = {**BAD, **{f"read {name}": case for name, case in READ.items()}}
    images, annotations = [], []
    for i, (name, (changes, _)) in enumerate(cases.items()):
        (folder / f"{name}.jpg").write_bytes(photograph(i))
        images.append({"id": i, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
        annotations.append(GOOD | {"image_id": i, "id": f"good {name}"})
        annotations.append(GOOD | {"image_id": i, "id": name} | changes)
    contents = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "x"}],
    }
    (folder / "a.json").write_text(json.dumps(contents))
    options = Options(masks=True, max_mask_area=1.0)
    more = {"images": str(folder), "options": options}
    manifest = run_here("coco", folder / "a.json", folder / "out", **more)
    lines = (folder / "out" / records.REJECTS).read_text().splitlines()
    sources = {
        "training": make_source("coco_instances", annotations=folder / "a.json", images=folder),
        "prepared": make_source("prepared", path=folder / "out"),
    }
    by_name = {
        reader: {record["key"]: record for record in map(source.__getitem__, range(len(source)))}
        for reader, source in sources.items()
    }
    evaluation = results(box_masks(Guess(), sources["training"]))
    return types.SimpleNamespace(
        manifest=manifest,
        lines=[json.loads(each) for each in lines],
        evaluation=evaluation,
        **by_name,
    )


class Guess:
    """A model whose masks are empty."""

    encoder, device_count = types.SimpleNamespace(image_size=64), 1

    def require(self, *kinds, what):
        pass

    def encode_frames(self, images, sizes):
        return types.SimpleNamespace(embedding=None)

    def predict_masks(self, embedding, index, coords, labels, multimask):
        return np.zeros((len(index), 1, 32, 32), np.float32), np.ones((len(index), 1))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_annotation_costs_itself_alike_in_preparing_and_training(everywhere, name):
    _, reason = BAD[name]
    (line,) = [line for line in everywhere.lines if line["key"] == f"{name}.jpg"]
    assert (line["annotation"], line["reason"]) == (name, reason) and line["detail"]
    record = everywhere.training[f"{name}.jpg"]
    assert [tuple(each) for each in record["dropped"]] == [(name, reason, line["detail"])]
    for each in (record, everywhere.prepared[f"{name}.jpg"]):
        (good,) = each["annotations"]
        assert np.asarray(good["mask"]).sum() == 400
    example = SamStream(1, 64).example(
        record | {"image": np.asarray(record["image"])}, 64, np.random.default_rng(0)
    )
    assert np.isfinite(example["points"]).all()


@pytest.mark.parametrize("name", READ)
def test_other_forms_of_an_annotation_are_read(everywhere, name):
    for each in (everywhere.training, everywhere.prepared):
        record = each[f"read {name}.jpg"]
        _, read = record["annotations"]
        assert np.asarray(read["mask"]).sum() == READ[name][1] and not record["dropped"]
        assert read["area"] in (400, 500) and read["box"].tolist() == [30, 5, 50, 25]


def test_all_that_is_dropped_is_counted(everywhere):
    """By reason in the manifest, whose rejects are images; in sum by an evaluation."""
    expected = {reason: 0 for _, reason in BAD.values()}
    for _, reason in BAD.values():
        expected[reason] += 1
    assert everywhere.manifest["annotations_dropped"] == expected
    assert everywhere.manifest["rejects"] == 0
    assert everywhere.evaluation["annotations_dropped"] == len(BAD)
    assert everywhere.evaluation["instances"] == len(BAD) + 2 * len(READ)
    assert everywhere.evaluation["images_skipped"] == 0


@pytest.mark.parametrize("value", CROWD.values(), ids=CROWD)
def test_a_crowd_is_left_out_uncounted(value):
    assert usable([GOOD | {"iscrowd": value}], lambda entry: annotation(entry, SIZE)) == ([], [])


NASTY = [None, True, 7, -1, 0.5, NAN, INFINITE, 10**400, "", "x", "\ud800", b"x", [], {}, [[]],
         [None], [[None]], [NAN] * 4, [[1, 2]], ["1"] * 8, [[[[]]]], {"size": []}]  # fmt: skip


@pytest.mark.parametrize("field", ["bbox", "segmentation", "area", "iscrowd", "category_id",
                                   "point_coords", "size", "counts", "id"])  # fmt: skip
def test_no_value_makes_it_crash(field):
    """An annotation or BadAnnotation with one of REASONS, whatever a field holds."""
    for value in NASTY:
        entry = GOOD | {field: value, "segmentation": runs([2400, 2400]) | {field: value}}
        entry = GOOD | {field: value} if field in GOOD else entry
        annotations, dropped = usable(
            [entry, value], lambda each: annotation(each, SIZE, {"3": "x"})
        )
        assert all(reason in REASONS for _, reason, _ in dropped)
        for each in annotations:
            assert np.asarray(each["mask"]).shape in (SIZE, ())


def test_no_bytes_make_run_lengths_crash():
    """Any text is run lengths of the image or BadAnnotation."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = rng.integers(40, 120, rng.integers(0, 12), np.uint8).tobytes()
        try:
            assert np.asarray(CompressedMask(runs(text), SIZE)).shape == SIZE
        except BadAnnotation as bad:
            assert bad.reason == "bad_mask" and len(bad.detail) < 200


@pytest.mark.parametrize(
    "segmentation, detail",
    [
        *((runs(text), "as COCO writes them") for text in ("", "o", "0 0", "0\x7f0", "é")),
        (runs("o" * 99 + "0"), "past all images"),
        ([[30, 5, 1e12, 5, 50, 25]], "1e\\+12 px, far outside 80 x 60 px"),
        ([[30, 5, 2e8, 5, 50, 25]], "2e\\+08 px, far outside"),
        ([[0, 0, 320, 0] * 9999], "an outline of .* px, more than the image has pixels"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(segmentation, detail):
    with pytest.raises(BadAnnotation, match=detail):
        CompressedMask(segmentation, SIZE)


def test_a_polygon_is_cut_to_the_image():
    """As if it were drawn on a page three times as large, from which the image is cut."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(-1, 2, (9, 2)) * (WIDTH, HEIGHT)
        page = rle.frPyObjects(
            [(corners + (WIDTH, HEIGHT)).ravel().tolist()], *np.multiply(SIZE, 3)
        )
        expected = rle.decode(rle.merge(page))[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH]
        drawn = np.asarray(mask_of([corners.ravel().tolist()], SIZE))
        assert (drawn != expected).mean() < 0.02


def test_annotations_that_are_no_list_are_a_bad_record():
    for entries in (None, {}, "x"):
        with pytest.raises(BadRecord, match="bad_annotation"):
            usable(entries, annotation)


STORED = {"box": [30, 5, 50, 25], "point": None, "area": 400.0, "category": None, "mask": [0, 4800]}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"box": [30, NAN, 50, 25]}, "bad_box"),
        ({"box": None}, "bad_box"),
        ({"mask": [4799]}, "bad_mask"),
        ({"mask": "zz"}, "bad_mask"),
        ({"mask": [-1, 4801]}, "bad_mask"),
        ({"mask": [4800]}, "bad_mask"),
    ],
)
def test_a_prepared_record_loses_only_its_bad_annotation(changes, reason):
    record = {"key": "a", "image": photograph(0), "size": SIZE}
    data = records.encode(record | {"annotations": [STORED, STORED | changes]})
    decoded = records.decode(data)
    assert len(decoded["annotations"]) == 1
    assert [each[:2] for each in decoded["dropped"]] == [("#1", reason)]


@pytest.mark.parametrize(
    "size", [(10**9, 10**9), (0, 80), ("60", 80), (None, 80), (60.5, 80), (NAN, 80)]
)
def test_a_size_that_no_image_has_is_a_bad_annotation(tmp_path, size):
    """SA-1B's json, and COCO's, by the source and by data.prepare."""
    (tmp_path / "a.jpg").write_bytes(photograph(0))
    (tmp_path / "b.jpg").write_bytes(photograph(1))
    sized = dict(zip(("height", "width"), size, strict=True))
    (tmp_path / "a.json").write_text(json.dumps({"image": sized, "annotations": [GOOD]}))
    (tmp_path / "b.json").write_text("[" * 99999)
    for index in (0, 1):
        with pytest.raises(BadRecord, match="bad_annotation"):
            make_source("sa1b", path=tmp_path)[index]
    images = [{"id": 0, "file_name": "a.jpg"} | sized,
              {"id": 1, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH}]  # fmt: skip
    contents = {"images": images, "categories": [{"id": 3, "name": "x"}]}
    contents["annotations"] = [GOOD | {"image_id": i, "id": i} for i in (0, 1)]
    (tmp_path / "coco.json").write_text(json.dumps(contents))
    source = make_source("coco_instances", annotations=tmp_path / "coco.json", images=tmp_path)
    assert source[1]["annotations"]
    with pytest.raises(BadRecord, match="a.jpg: height|a.jpg: .* px"):
        source[0]
    found = run_here("coco", tmp_path / "coco.json", tmp_path / "out", images=str(tmp_path))
    assert found["reasons"] == {"bad_annotation": 1} and found["records"] == 1
