"""evals/: what is measured is what the words say, on models whose answers are known."""

import collections

import numpy as np
import pytest

from samclip_jax import evals
from samclip_jax.data.decode import BadRecord
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import Evaluation, collect, counts, results, stack
from samclip_jax.evals.masks import box_masks, overlap, point_masks, point_prompt
from samclip_jax.evals.retrieval import recalls, retrieval
from samclip_jax.evals.zero_shot_classification import zero_shot_classification
from samclip_jax.inference.texts import TEMPLATES

NAMES = ["zebra", "tiger", "grass"]


class Source(list):
    """Records in memory; an exception among them is raised."""

    classes = NAMES

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if isinstance(record, Exception):
            raise record
        return record


def squares(count, shape=(64, 64)):
    """Photographs that are black with a white square each, annotated; class 1 on class 0."""
    source = Source()
    for i in range(count):
        mask = np.zeros(shape, bool)
        mask[8 + 2 * i : 48 + 2 * i, 20:60] = True
        box = np.float32([20, 8 + 2 * i, 60, 48 + 2 * i])
        annotation = {"box": box, "point": None, "mask": mask, "area": 1600.0, "category": None}
        source.append(
            {
                "key": str(i),
                "image": np.repeat(np.uint8(255 * mask)[..., None], 3, -1),
                "annotations": [annotation],
                "semantic": np.int32(mask),
                "label": i % 3,
            }
        )
    return source


def number(image):
    """Which of `squares` a photograph is; 0 for one of zeros."""
    return max(0, image[..., 0].any(1).argmax() - 8) // 2


# Reading


def listing(source, prepare=lambda record: int(record["image"]), rows=2, limit=None):
    """An Evaluation that lists its samples and the sizes of its batches."""

    def measure(samples):
        return {"samples": samples, "sizes": [len(samples)]}

    return Evaluation("listing", source, rows, limit, prepare, measure, lambda totals: ())


def test_unusable_records_are_left_out_and_counted():
    source = Source([{"image": 0}, BadRecord("truncated", ""), *({"image": n} for n in (1, 2, 3))])
    totals = collect(listing(source))
    assert totals["samples"] == [0, 1, 2, 3] and totals["sizes"] == [2, 2]
    assert dict(counts(source, totals)) == {"images": 4, "images_skipped": 1}
    assert collect(listing(source, limit=3))["samples"] == [0, 1]
    with pytest.raises(UserError, match="no usable image in .*'empty': 1"):
        collect(listing(Source([BadRecord("empty", "")])))


def test_a_mistake_in_preparing_is_not_hidden_in_a_thread():
    with pytest.raises(KeyError):
        collect(listing(Source([{"image": 0}]), lambda record: record["n"]))


def test_batches_keep_one_shape():
    np.testing.assert_array_equal(stack([np.ones(2)], 3), [[1, 1], [0, 0], [0, 0]])


# Classification


def test_accuracy_counts_the_likeliest_and_the_five_likeliest(tiny_clip, monkeypatch):
    """Classes 0 and 1 look like their label, class 2 like class 0; every batch has one shape."""
    source, shapes = squares(7), []
    text = np.eye(3, 24, dtype=np.float32)

    def encode_image(images):
        shapes.append(images.shape)
        return np.stack([text[(0, 1, 0)[number(image) % 3]] for image in images])

    monkeypatch.setattr(tiny_clip, "class_embeddings", lambda names, templates: text)
    monkeypatch.setattr(tiny_clip, "encode_crops", encode_image)
    found = results(zero_shot_classification(tiny_clip, source, batch_size=4))
    assert shapes == [(4, 64, 64, 3)] * 2
    assert found["zero_shot_accuracy"] == pytest.approx(5 / 7)
    assert found["zero_shot_top5_accuracy"] == 1
    assert found["images"] == 7


def test_templates_are_the_published_ones():
    assert {name: len(each["templates"]) for name, each in TEMPLATES.items()} == {
        "openai": 80,
        "simple": 7,
    }
    for each in TEMPLATES.values():
        assert len(set(each["templates"])) == len(each["templates"]) and each["source"]
        assert all(template.count("{}") == 1 for template in each["templates"])


@pytest.mark.oracle
def test_templates_are_those_of_open_clip():
    from originals import torchvision_absent

    with torchvision_absent():
        from open_clip import zero_shot_metadata

    for name, theirs in (("OPENAI", "openai"), ("SIMPLE", "simple")):
        expected = getattr(zero_shot_metadata, f"{name}_IMAGENET_TEMPLATES")
        assert TEMPLATES[theirs]["templates"] == [template("{}") for template in expected]


def test_scikit_learn_says_the_same_of_accuracy(tiny_clip, monkeypatch):
    from sklearn.metrics import top_k_accuracy_score

    rng, classes = np.random.default_rng(0), 9
    source = squares(11)
    source.classes = [f"class {i}" for i in range(classes)]
    text, images = rng.normal(size=(classes, 24)), rng.normal(size=(11, 24))
    for record in source:
        record["label"] = int(rng.integers(classes))
    monkeypatch.setattr(tiny_clip, "class_embeddings", lambda names, templates: text)
    monkeypatch.setattr(
        tiny_clip, "encode_crops", lambda crops: images[[number(crop) for crop in crops]]
    )
    found = results(zero_shot_classification(tiny_clip, source, batch_size=4))
    labels, each = [record["label"] for record in source], range(classes)
    for name, k in (("zero_shot_accuracy", 1), ("zero_shot_top5_accuracy", 5)):
        wanted = top_k_accuracy_score(labels, images @ text.T, k=k, labels=each)
        assert found[name] == pytest.approx(wanted, abs=1e-12)


# Retrieval


def test_recall_is_what_a_loop_finds():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(60, 8)), rng.normal(size=(90, 8))
    owners, wanted = rng.integers(0, 40, 90), rng.integers(0, 40, 60)
    hits = np.zeros(3)
    for query, own in zip(queries, wanted, strict=True):
        order = sorted(range(90), key=lambda i: -float(query @ gallery[i]))
        hits += [any(owners[i] == own for i in order[:rank]) for rank in (1, 5, 10)]
    np.testing.assert_allclose(recalls(queries, wanted, gallery, owners), hits / 60, atol=1e-12)
    assert 0 < hits[0] < hits[1] < hits[2] < 60


def test_recall_counts_the_own_image_and_any_own_caption(tiny_clip, monkeypatch):
    """Three images with 2, 1 and 2 captions; the second's is nearer to the third image."""
    source = squares(3)
    captions = [["a", "b"], ["c"], ["d", "e"]]
    for record, texts in zip(source, captions, strict=True):
        record["captions"] = texts
    space = np.eye(3, 24, dtype=np.float32)
    texts = {"a": space[0], "b": space[1] * 0.9, "c": space[2], "d": space[2] * 0.5, "e": space[2]}
    monkeypatch.setattr(
        tiny_clip, "encode_crops", lambda images: space[[number(image) for image in images]]
    )
    monkeypatch.setattr(tiny_clip, "encode_text", lambda given: np.stack([texts[t] for t in given]))
    found = results(retrieval(tiny_clip, source, batch_size=2))
    assert (found["images"], found["captions"]) == (3, 5)
    assert found["image_recall_at_1"] == pytest.approx(3 / 5)  # a, d, e
    assert found["text_recall_at_1"] == pytest.approx(
        1 / 3
    )  # b is the second's nearest, c's the third's
    assert found["mean_recall_at_1"] == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert found["image_recall_at_5"] == found["text_recall_at_5"] == 1
    assert results(retrieval(tiny_clip, source, captions=1))["captions"] == 3


def test_an_image_with_a_caption_that_is_no_text_is_skipped(tiny_clip, monkeypatch):
    source = squares(2)
    source[0]["captions"], source[1]["captions"] = ["a", "\ud83d"], ["grass"]
    monkeypatch.setattr(tiny_clip, "encode_crops", lambda images: np.ones((len(images), 24)))
    found = results(retrieval(tiny_clip, source, batch_size=2))
    assert (found["images"], found["images_skipped"], found["captions"]) == (1, 1, 1)


def test_classes_without_a_name_are_said(tiny_clip):
    source = Source()
    source.classes = ["zebra", ""]
    with pytest.raises(UserError, match=r"the classes of .*\[1\] is blank"):
        results(zero_shot_classification(tiny_clip, source))


# Masks


def test_overlap_is_iou_and_area_at_every_threshold():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(0, 3, (9, 11)), rng.random((9, 11)) < 0.4
    logits[0, 0] = 0  # not above 0
    thresholds = np.array([-20.0, -1, 0, 2, 20])
    iou, area = overlap(logits, mask, thresholds)
    for i, threshold in enumerate(thresholds):
        predicted = logits > threshold
        assert area[i] == predicted.sum()
        assert iou[i] == pytest.approx((predicted & mask).sum() / (predicted | mask).sum())


def test_the_point_is_the_innermost_one():
    mask = np.zeros((30, 40), bool)
    mask[10:21, 4:35] = True
    mask[10:21, 18:21] = False
    ((x, y), _), labels = point_prompt(None, mask)
    assert mask[y - 4 : y + 5, x - 4 : x + 5].all() and labels == (1, -1)


@pytest.fixture
def knowing_sam(tiny_sam, monkeypatch):
    """A SAM that answers the square of `squares`, half as wide above logit 2; with three answers
    the second one is the surest and right, the others are empty."""

    def encode_frames(images, sizes):
        encoded = collections.namedtuple("Encoded", "embedding")
        return encoded(images[..., 0].astype(np.float32))

    def predict_masks(embedding, index, points, labels, multimask):
        light = embedding[index][:, 1::2, 1::2] > 127  # [K, 32, 32]
        left = np.cumsum(light, -1) <= light.sum(-1, keepdims=True) / 2
        right = np.where(light, np.where(left, 5, 1), -2)[:, None].astype(np.float32)
        if not multimask:
            return right, np.ones((len(index), 1))
        wrong = np.full_like(right, -5)
        return np.concatenate([wrong, right, wrong], 1), np.array([[0.1, 0.8, 0.3]] * len(index))

    monkeypatch.setattr(tiny_sam, "encode_frames", encode_frames)
    monkeypatch.setattr(tiny_sam, "predict_masks", predict_masks)
    return tiny_sam


@pytest.mark.parametrize("evaluator, name", [(box_masks, "box"), (point_masks, "point")])
def test_mask_iou_at_zero_and_at_another_threshold(knowing_sam, evaluator, name):
    """Measured at the photograph's own size; half of the square is left above logit 2."""
    found = results(evaluator(knowing_sam, squares(5), threshold=2.5, batch_size=2))
    assert found["images"] == found["instances"] == 5
    assert found[f"{name}_miou"] == pytest.approx(1, abs=0.01)
    assert found[f"{name}_area_ratio"] == pytest.approx(1, abs=0.01)
    assert found[f"{name}_threshold"] == 2.5
    assert found[f"{name}_miou_at_threshold"] == pytest.approx(0.5, abs=0.01)
    assert found[f"{name}_area_ratio_at_threshold"] == pytest.approx(0.5, abs=0.01)
    best = results(evaluator(knowing_sam, squares(5), threshold="best", batch_size=2))
    assert -2 < best[f"{name}_threshold"] < 1.5
    assert best[f"{name}_miou_at_threshold"] >= found[f"{name}_miou"]


# The registry


def test_real_photographs_to_the_end(tiny_samclip, coco):
    """COCO's instances and panoptic maps; the numbers mean nothing, the model is random."""
    data = dict(name="coco_instances", annotations=coco / "instances.json", images=coco / "images")
    found = evals.evaluate(tiny_samclip, "box_masks", data, limit=2, batch_size=2, threshold="best")
    assert found["images"] + found["images_skipped"] == 2 <= found["instances"]
    captioned = dict(name="captions", annotations=coco / "captions.json", images=coco / "images")
    found = evals.evaluate(tiny_samclip, "retrieval", captioned, limit=3, image_size=64)
    assert found["images"] == 3 <= found["captions"] and 0 <= found["mean_recall_at_1"] <= 1
    data |= dict(name="coco_panoptic", annotations=coco / "panoptic.json", maps=coco / "panoptic")
    for task in ("zero_shot_segmentation", "refined_segmentation"):
        options = dict(limit=1, batch_size=2, templates=("a {}.",))
        options |= dict(image_size=64) if task == "zero_shot_segmentation" else {}
        found = evals.evaluate(tiny_samclip, task, data, **options)
        assert found["images"] == 1 and 0 <= found[f"{task}_miou"] < 0.5


@pytest.mark.parametrize(
    "task, options, sentence",
    [
        ("box_mask", {}, "did you mean 'box_masks'"),
        ("box_masks", {"treshold": 1}, "did you mean 'threshold'"),
        ("zero_shot_segmentation", {"upsample": "twice"}, "upsample must be logits or labels"),
        ("zero_shot_segmentation", {"templates": "opena"}, "no templates 'opena'"),
        ("refined_segmentation", {"templates": ["a photo"]}, "no {} for the name"),
        ("zero_shot_segmentation", {"maskclip": True}, "maskclip"),
        ("refined_segmentation", {"refinement": {"point": 1}}, "did you mean 'points'"),
        (
            "refined_segmentation",
            {"refinement": {"points": -1}},
            "refinement.points must be a whole number",
        ),
        ("refined_segmentation", {"refinement": 3}, "refinement must be a dictionary, got 3"),
        ("refined_segmentation", {"seed": -1}, "seed must be"),
        ("zero_shot_segmentation", {"image_size": 0}, "image_size must be"),
        ("zero_shot_classification", {"batch_size": 0}, "batch_size must be"),
        ("retrieval", {"limit": -1}, "limit must be a whole number of at least 1 or None, got -1"),
        ("box_masks", {"threshold": "bets"}, "threshold must be a number, best or None"),
        ("point_masks", {"threshold": float("nan")}, "threshold must be a number"),
    ],
)
def test_mistakes_are_one_sentence(tiny_samclip, task, options, sentence):
    data = dict(name="shape_scenes", split="tuning", size=2)
    with pytest.raises(UserError, match=sentence):
        evals.evaluate(tiny_samclip, task, data, **options)


def test_a_source_that_does_not_fit_is_said(tiny_samclip, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    data = dict(name="folder", path=tmp_path)
    with pytest.raises(UserError, match="has no classes"):
        evals.evaluate(tiny_samclip, "zero_shot_classification", data)
    with pytest.raises(UserError, match="one.png has no 'annotations'"):
        evals.evaluate(tiny_samclip, "box_masks", data)
