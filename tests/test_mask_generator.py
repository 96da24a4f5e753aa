"""inference/mask_generator.py: every object of a photograph once, in the original's records."""

import numpy as np
import pytest
from parity import golden
from pycocotools import mask as coco_rle

import samclip_jax as sc
from samclip_jax.errors import UserError
from samclip_jax.inference import mask_generator

PHOTOGRAPH = np.zeros((64, 64, 3), np.uint8)
CENTRES, RADIUS = np.array([[20, 20], [44, 40]]), 10  # x, y px of two discs


@pytest.fixture
def generate(tiny_sam, monkeypatch):
    """MaskGenerator(**options).generate on a model that masks the disc under a point, surely."""

    def predict_masks(embedding, index, points, labels, masks, multimask):
        x, y = np.meshgrid(np.arange(32) * 2 + 0.5, np.arange(32) * 2 + 0.5)
        distance = np.hypot(x - CENTRES[:, 0, None, None], y - CENTRES[:, 1, None, None])
        discs = 40 * (RADIUS - distance)  # [2, 32, 32], logits
        gaps = np.linalg.norm(points[:, :1] - CENTRES, axis=-1)
        logits = discs[gaps.argmin(1)][:, None].repeat(3, 1)
        logits[:, 1] = 0.1 * np.sign(logits[:, 1])  # unstable
        scores = np.stack([0.99 - gaps.min(1) / 100, np.ones(len(points)), gaps.min(1) * 0], 1)
        scores[gaps.min(1) > RADIUS] = 0.1
        return logits.astype(np.float32), scores.astype(np.float32)

    monkeypatch.setattr(tiny_sam, "predict_masks", predict_masks)

    def run(**options):
        return sc.MaskGenerator(tiny_sam, points_per_side=16, **options).generate(PHOTOGRAPH)

    return run


def test_each_object_is_found_once_with_its_surest_point(generate):
    """Dozens of points hit each disc; duplicates, unsure and unstable masks are dropped."""
    found = generate(points_per_batch=50)
    assert len(found) == 2
    assert list(found[0]) == [
        "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score",
        "crop_box",
    ]  # fmt: skip
    assert found[0]["predicted_iou"] >= found[1]["predicted_iou"] > 0.88
    for record in found:
        centre = CENTRES[np.linalg.norm(CENTRES - record["point_coords"][0], axis=1).argmin()]
        assert np.abs(np.array(record["point_coords"][0]) - centre).max() <= 2
        y, x = np.nonzero(record["segmentation"])
        assert record["area"] == len(x) == pytest.approx(np.pi * RADIUS**2, rel=0.05)
        expected = [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
        assert record["bbox"] == expected
        assert record["stability_score"] >= 0.9
        assert record["crop_box"] == [0, 0, 64, 64]


def test_the_filters_are_their_thresholds(generate):
    assert generate(pred_iou_thresh=0.999) == []
    assert generate(stability_score_thresh=1.01) == []
    assert generate(stability_score_thresh=1.01, min_mask_region_area=5) == []
    assert len(generate(box_nms_thresh=1.0)) > 20


def test_every_output_mode_is_the_same_mask(generate):
    masks = [record["segmentation"] for record in generate()]
    compressed = [record["segmentation"] for record in generate(output_mode="coco_rle")]
    plain = [record["segmentation"] for record in generate(output_mode="uncompressed_rle")]
    assert len(masks) == 2
    for mask, short, long in zip(masks, compressed, plain, strict=True):
        assert isinstance(short["counts"], str) and mask.dtype == bool
        np.testing.assert_array_equal(coco_rle.decode(short), mask)
        np.testing.assert_array_equal(coco_rle.decode(coco_rle.frPyObjects(long, 64, 64)), mask)
        assert sum(long["counts"]) == mask.size


def test_run_lengths_begin_with_zeros():
    """Column by column; a mask that begins with a one has an empty first run."""
    mask = np.array([[1, 0], [1, 0], [0, 1]], bool)
    assert mask_generator.run_lengths(mask) == {"size": [3, 2], "counts": [0, 2, 3, 1]}
    assert mask_generator.run_lengths(~mask)["counts"] == [2, 3, 1]


def test_small_regions():
    """Holes are filled, islands dropped, diagonal neighbours are connected, one island stays."""
    mask = np.zeros((12, 12), bool)
    mask[1:7, 1:7] = True
    expected = mask.copy()
    mask[3, 3] = False  # hole
    mask[10, 10] = True  # island
    mask[7, 7] = expected[7, 7] = True  # by its corner
    np.testing.assert_array_equal(mask_generator.remove_small_regions(mask, 4), expected)
    alone = mask_generator.remove_small_regions(mask, 100)
    assert alone[2, 2] and not alone[10, 10]


def test_a_mask_changed_by_cleaning_gives_way_to_one_that_was_not(generate, monkeypatch):
    found = generate(min_mask_region_area=5)
    assert len(found) == 2
    monkeypatch.setattr(mask_generator, "remove_small_regions", lambda mask, area: mask | True)
    assert len(generate(min_mask_region_area=5)) == 1


def test_nms_keeps_the_best_and_what_overlaps_little():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10], [0, 0, 0, 0]], float)
    scores = np.array([0.5, 0.9, 0.1, 0.0])
    assert mask_generator.nms(boxes, scores, 0.7).tolist() == [1, 2, 3]
    assert mask_generator.nms(boxes, scores, 0.3).tolist() == [1, 3]
    assert mask_generator.nms(boxes[:0], scores[:0], 0.7).tolist() == []


def test_stability_is_the_iou_of_a_higher_and_a_lower_threshold():
    logits = np.array([[[-2, -0.5, 0.5, 2, 3]], [[-9] * 5]], float)
    np.testing.assert_allclose(mask_generator.stability_score(logits, 0, 1), [2 / 4, np.nan])


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"crop_n_layers": 1}, "no crops"),
        ({"output_mode": "png"}, "output_mode must be binary_mask, .* got 'png'"),
        ({"points_per_side": 0}, "points_per_side must be a whole number of at least 1, got 0"),
        ({"points_per_side": None}, "points_per_side must be a whole number"),
        ({"points_per_batch": 2.5}, "points_per_batch must be a whole number"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh must be a number, got nan"),
        ({"stability_score_thresh": "0.9"}, "stability_score_thresh must be a number, got '0.9'"),
        ({"stability_score_offset": -1}, "stability_score_offset must be a number of at least 0"),
        ({"box_nms_thresh": [0.7]}, r"box_nms_thresh must be a number .*, got \[0.7\]"),
        ({"min_mask_region_area": -5}, "min_mask_region_area must be a number .*, got -5"),
    ],
)
def test_mistakes_are_one_sentence(tiny_sam, options, sentence):
    with pytest.raises(UserError, match=sentence):
        sc.MaskGenerator(tiny_sam, **options)


@pytest.mark.oracle
@pytest.mark.parametrize("box_nms_thresh, least", [(1.0, 30), (0.8, 1)])
def test_records_are_those_of_segment_anything(tiny_sam, coco, box_nms_thresh, least):
    """One real photograph, thresholds that a random model's masks pass in part. They resemble each
    other, so that a threshold that drops duplicates leaves few."""
    import original_inference
    from PIL import Image

    image = np.asarray(Image.open(sorted((coco / "images").iterdir())[0]).convert("RGB"))[::3, ::3]
    options = dict(points_per_side=8, points_per_batch=24, box_nms_thresh=box_nms_thresh)
    options |= dict(pred_iou_thresh=-0.5, stability_score_thresh=0.1, stability_score_offset=0.3)
    original = original_inference.mask_generator(tiny_sam.config, golden("sam").weights, **options)
    theirs = original.generate(image)
    ours = sc.MaskGenerator(tiny_sam, **options).generate(image)
    assert least <= len(ours) == len(theirs) < 3 * 64

    def ordered(records):  # nearly equal scores may change places
        return sorted(records, key=lambda r: (r["point_coords"], round(r["predicted_iou"], 2)))

    for record, expected in zip(ordered(ours), ordered(theirs), strict=True):
        assert record.keys() == expected.keys()
        assert (record["segmentation"] != expected["segmentation"]).mean() < 1e-4
        for key in ("bbox", "crop_box", "point_coords"):
            np.testing.assert_allclose(record[key], expected[key], atol=1e-6)
        for key in ("predicted_iou", "stability_score"):
            assert record[key] == pytest.approx(expected[key], abs=1e-3)
        assert record["area"] == pytest.approx(expected["area"], abs=2)
