"""Probes on frozen features: heads beside torch's, optimum and neighbours beside theirs."""

import dataclasses

import numpy as np
import pytest
from test_evals import squares

from samclip_jax.data import transforms
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.shapes import ShapeObjects
from samclip_jax.errors import UserError
from samclip_jax.evals import evaluate
from samclip_jax.evals.classification_probe import classification_probe, logistic_regression
from samclip_jax.evals.features import class_numbers
from samclip_jax.evals.probing import ATTENTIVE, CVNETS, samples
from samclip_jax.evals.segmentation_probe import augmented

OBJECTS = dict(name="shape_objects", split="train", size=40, image_size=64)
TESTED = dict(name="shape_objects", split="tuning", size=11, image_size=64)
SCENES = dict(name="shape_scenes", split="train", size=6, image_size=64)


def short(training, **options):
    """The training with these options and one step of warm-up, as a config has it."""
    optimizer = dataclasses.asdict(training.optimizer) | dict(warmup_steps=1)
    return dataclasses.asdict(training) | dict(optimizer=optimizer) | options


# Neighbours


@pytest.mark.parametrize("neighbours", [1, 5, 500])
def test_neighbours_vote_as_numpy_counts_them(tiny_clip, neighbours):
    """By DINO's weights, of the same features; no more neighbours than there are images."""
    train, tested = OBJECTS | dict(size=200), TESTED | dict(size=60)
    options = dict(train=train, neighbours=neighbours, batch_size=4, layer="encoder")
    found = evaluate(tiny_clip, "knn", tested, **options)
    vectors, labels = [], []
    for options in (train, tested):
        records = [*ShapeObjects(options["split"], options["size"], 64)]
        crops = np.stack([transforms.centre_crop(each["image"], 64) for each in records])
        vectors.append(unit(tiny_clip.features(crops, "encoder")[0]))
        labels.append([each["label"] for each in records])
    ranks = []
    for query, own in zip(vectors[1], labels[1], strict=True):
        cosines = vectors[0] @ query
        votes = np.zeros(26)
        for i in np.argsort(-cosines)[:neighbours]:
            votes[labels[0][i]] += np.exp(cosines[i] / 0.07)
        ranks.append(np.flatnonzero(np.argsort(-votes, kind="stable") == own)[0])
    assert found["knn_accuracy"] == np.mean(np.array(ranks) == 0)
    assert found["knn_top5_accuracy"] == np.mean(np.array(ranks) < 5)
    assert found["training_images"] == 200 and 0 < found["knn_accuracy"] < 1


# Classification


def test_the_linear_probe_is_scikit_learns_optimum(tiny_clip):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    inputs = rng.normal(size=(300, 10)) + 1.5 * np.eye(4, 10)[labels]
    for C in (0.05, 1.0):
        theirs = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(inputs, labels)
        arguments = inputs.astype(np.float32), labels, 4, C, 1000, tiny_clip.mesh
        kernel, bias = logistic_regression(*arguments)
        np.testing.assert_allclose(kernel.T, theirs.coef_, atol=2e-4)
        shift = bias - theirs.intercept_  # which the softmax does not see
        np.testing.assert_allclose(shift, shift.mean(), atol=2e-4)


@pytest.mark.parametrize("model, probe", [
    ("tiny_sam", "linear"), ("tiny_clip", "attentive"), ("tiny_samclip", "attentive"),
])  # fmt: skip
def test_images_are_classified_on_features_of_every_model(request, monkeypatch, model, probe):
    """Patches kept or made again in every epoch: the same, but for the order."""
    model = request.getfixturevalue(model)
    few = dict(training=short(ATTENTIVE, epochs=2, batch_size=16))
    options = dict(train=OBJECTS, probe=probe, image_size=64, batch_size=8) | few
    found = evaluate(model, "classification_probe", TESTED, **options)
    assert (found["images"], found["training_images"]) == (11, 40)
    assert 0 <= found["classification_probe_accuracy"] <= 1
    if probe == "attentive":
        monkeypatch.setitem(classification_probe.__globals__, "KEPT_BYTES", 0)
        again = evaluate(model, "classification_probe", TESTED, **options)
        assert again.keys() == found.keys()


def test_a_model_has_its_layers(tiny_sam, tiny_clip, tiny_samclip):
    images = np.stack([ShapeObjects("tuning", 2, 64)[i]["image"] for i in range(2)])
    pooled, patches = tiny_samclip.features(images, "embedding")
    np.testing.assert_allclose(unit(pooled), tiny_samclip.encode_crops(images), atol=1e-5)
    np.testing.assert_allclose(unit(patches), tiny_samclip.patch_embeddings(images), atol=1e-5)
    np.testing.assert_allclose(
        unit(tiny_clip.features(images, "embedding")[0]), tiny_clip.encode_crops(images), atol=1e-5
    )
    pooled, patches = tiny_sam.features(images)
    np.testing.assert_allclose(pooled, patches.mean((1, 2)), atol=1e-5)
    tokens = tiny_sam.encode_frames(images, np.full((2, 2), 64)).tokens
    np.testing.assert_allclose(patches, tokens, atol=1e-5)
    assert tiny_samclip.features(images)[1].shape[-1] == patches.shape[-1]
    with pytest.raises(UserError, match="the layer 'head' needs a CLIP"):
        tiny_sam.features(images, "head")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Damaged(ShapeObjects):
    """Every third image cannot be read."""

    def __getitem__(self, index):
        if index % 3 == 0:
            raise BadRecord("truncated", str(index))
        return super().__getitem__(index)


def test_training_leaves_out_what_cannot_be_used():
    """In every epoch again; it ends only where no image can."""
    training = dataclasses.replace(CVNETS, batch_size=4)

    def keys(record, rng):
        return record["key"]

    batches = [*samples(Damaged("train", 9, 64), keys, training, 30)]
    assert len(batches) == 30 and all(len(batch) == 4 for batch in batches)
    assert len({key for batch in batches for key in batch}) == 6
    assert batches == [*samples(Damaged("train", 9, 64), keys, training, 30)]
    with pytest.raises(UserError, match="no usable image in .*'truncated': 1"):
        next(samples(Damaged("train", 1, 64), keys, training, 1))


# Segmentation


@pytest.mark.parametrize("head", ["linear", "deeplabv3", "pspnet"])
def test_pixels_are_classified_by_every_head(tiny_samclip, head):
    training = short(CVNETS, epochs=2, batch_size=4)
    options = dict(train=SCENES, head=head, image_size=64, short=(64, 96), batch_size=4)
    tested = dict(name="shape_scenes", split="tuning", size=3)
    found = evaluate(tiny_samclip, "segmentation_probe", tested, training=training, **options)
    assert found["images"] == 3 and 0 <= found["segmentation_probe_miou"] <= 1


def test_a_crop_shows_its_labels():
    """A light square of class 1 on black, at any size, mirrored or not, cut or beside nothing."""
    record = squares(1, (48, 64))[0]
    places = np.array([1, 0])
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, labels = augmented(40, (24, 80), 96, 0.75, places, record, rng)
        assert image.shape == (40, 40, 3) and labels.shape == (40, 40)
        light = image[..., 0] > 127
        counted = labels >= 0
        assert ((labels == 0) == light)[counted].mean() > 0.93
        assert not image[~counted].any()
        seen.add((bool((~counted).any()), bool(light[:, :20].sum() > light[:, 20:].sum())))
    assert len(seen) == 4
    rng = np.random.default_rng(0)
    same = [
        augmented(40, (24, 80), 96, 0.75, places, record, np.random.default_rng(1)) for _ in "ab"
    ]
    np.testing.assert_array_equal(same[0][0], same[1][0])


@pytest.mark.parametrize("task, options, sentence", [
    ("knn", {"train": {"name": "folder"}}, "source 'folder' needs path: set train.path"),
    ("knn", {"train": {"name": "folder", "path": "tests"}}, "train: no images under tests"),
    ("knn", {"train": OBJECTS, "layer": "neck"}, "layer must be encoder, head or embedding"),
    ("classification_probe", {"train": OBJECTS, "probe": "mlp"}, "probe must be linear or attent"),
    ("segmentation_probe", {"train": SCENES, "head": "unet"}, "head must be linear, deeplabv3"),
    ("segmentation_probe", {"train": SCENES}, "a warm-up of 500 steps is not over in 9, 50 epochs"),
    ("segmentation_probe", {"train": SCENES | dict(size=999), "short": (96, 64)}, "short must be"),
    ("knn", {"train": OBJECTS, "layer": "neck"}, "layer must be encoder, head or embedding"),
])  # fmt: skip
def test_mistakes_are_one_sentence(tiny_clip, task, options, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate(tiny_clip, task, TESTED, **options)


def test_training_images_have_the_same_classes_in_any_order():
    source, train = squares(1), squares(1)
    train.classes = ["grass", "zebra", "tiger"]
    assert class_numbers(source, train).tolist() == [2, 0, 1]
    train.classes = ["zebra", "tiger", "snow"]
    with pytest.raises(UserError, match="have other classes: 'grass' is in one of them"):
        class_numbers(source, train)
    train.classes = None
    with pytest.raises(UserError, match="has no classes: take one with labels"):
        class_numbers(source, train)
