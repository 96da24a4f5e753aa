"""Segmentation by text: one head, both, windows, and SAM and CLIP one after the other."""

import numpy as np
import pytest
from test_evals import squares

from samclip_jax.data.sources import make_source
from samclip_jax.evals.batches import collect, results
from samclip_jax.evals.cascade_segmentation import cascade_segmentation
from samclip_jax.evals.refined_segmentation import refined_segmentation
from samclip_jax.evals.zero_shot_segmentation import (
    confusion,
    scores,
    zero_shot_segmentation,
)
from samclip_jax.inference.frames import nearest
from samclip_jax.inference.reading import PAPER, Reading
from samclip_jax.inference.refine import Refinement

TEXT = np.eye(3, 24, dtype=np.float32)


def test_miou_is_over_the_classes_that_occur():
    truth, labels = np.array([[0, 0, 1, -1]]), np.array([[0, 1, 1, 2]])
    total = confusion(truth, labels, 3)
    np.testing.assert_array_equal(total, [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert dict(scores("x", total)) == {"x_miou": 0.5, "x_pixel_accuracy": 2 / 3}


def test_scikit_learn_says_the_same():
    """A class that never occurs, one that is only predicted, and pixels of none."""
    from sklearn.metrics import accuracy_score, jaccard_score

    rng = np.random.default_rng(0)
    truth = rng.choice([-1, 0, 1, 2, 4], (40, 50))
    labels = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice([-1, 0, 1, 3], truth.shape))
    found = dict(scores("x", confusion(truth, labels, 6)))
    truth, labels = truth[truth >= 0], labels[truth >= 0]
    wanted = jaccard_score(truth, labels, average="macro", labels=[0, 1, 2, 4])
    assert found["x_miou"] == pytest.approx(wanted, abs=1e-12)
    assert found["x_pixel_accuracy"] == pytest.approx(accuracy_score(truth, labels), abs=1e-12)


def test_nearest_repeats_whole_pixels():
    labels = np.array([[1, 2], [3, 4]])
    np.testing.assert_array_equal(nearest(labels, (4, 2)), [[1, 2], [1, 2], [3, 4], [3, 4]])


@pytest.fixture
def knowing(tiny_samclip, monkeypatch):
    """A merged model whose patches of 8 px point to the text of what they show: of the second class
    where it is light, else of the first; a crop to that of its middle."""

    def patch_embeddings(images, maskclip=False, reading=PAPER):
        return TEXT[(images[:, 4::8, 4::8, 0] > 127).astype(int)]

    def encode_crops(images):
        middle = images.shape[1] // 2
        return TEXT[(images[:, middle, middle, 0] > 127).astype(int)]

    monkeypatch.setattr(
        tiny_samclip, "class_embeddings", lambda names, templates: TEXT[: len(names)]
    )
    monkeypatch.setattr(tiny_samclip, "patch_embeddings", patch_embeddings)
    monkeypatch.setattr(tiny_samclip, "encode_crops", encode_crops)
    return tiny_samclip


@pytest.mark.parametrize("upsample", ["logits", "labels"])
def test_labels_come_from_the_nearest_text(knowing, upsample):
    """Boundaries are the patches' own."""
    options = dict(image_size=128, batch_size=2, upsample=upsample)
    found = results(zero_shot_segmentation(knowing, squares(3), **options))
    assert found["zero_shot_segmentation_miou"] > 0.85
    assert found["zero_shot_segmentation_pixel_accuracy"] > 0.95


def test_the_original_clip_is_read_in_two_ways(tiny_clip):
    """Its patch tokens as they are and, MaskCLIP, by the last block's values: not the same."""
    image = make_source("shape_scenes", split="tuning", size=1, image_size=64)[0]["image"][None]
    plain, values = (tiny_clip.patch_embeddings(image, maskclip=form) for form in (False, True))
    assert plain.shape == values.shape == (1, 4, 4, 24)
    assert np.abs(plain - values).max() > 0.1


def test_both_heads_run_on_scenes(tiny_samclip):
    """The same seed, the same numbers; the paper's form and its variants."""
    source = make_source("shape_scenes", split="tuning", size=3)
    options = dict(templates=("a {}.",), batch_size=2)
    first, again = (
        results(refined_segmentation(tiny_samclip, source, **options)) for _ in range(2)
    )
    assert first == again and first["images"] == 3
    assert 0 <= first["refined_segmentation_miou"] <= 1
    variant = dict(components=True, clip_weight=1.0, min_patches=2)
    results(refined_segmentation(tiny_samclip, source, refinement=Refinement(**variant), **options))


def test_windows_find_what_the_whole_image_does(knowing):
    """What these patches show does not depend on their window."""
    source = squares(5, (64, 96))
    windowed = Reading(short=128, window=64, stride=32)
    found = results(zero_shot_segmentation(knowing, source, reading=windowed, batch_size=2))
    assert found["zero_shot_segmentation_miou"] > 0.85
    one = zero_shot_segmentation(knowing, squares(3), reading=Reading(short=128, window=128))
    assert results(one) == results(zero_shot_segmentation(knowing, squares(3), image_size=128))


def named_background(count):
    """The squares of `squares` on a background, which no text of the model is like."""
    source = squares(count)
    source.classes = ["background", "tiger"]
    return source


def test_the_background_is_asked_for_not_counted_or_wrong(knowing):
    """Without a text of its own the dark is called tiger, the only class, with certainty."""

    def found(**options):
        evaluation = zero_shot_segmentation(knowing, named_background(3), 128, **options)
        miou, accuracy = (value for _, value in evaluation.results(collect(evaluation)))
        return miou, accuracy

    miou, accuracy = found()
    assert miou > 0.85 and accuracy > 0.95
    assert found(background="none") == (1, 1)
    miou, accuracy = found(background="none", background_threshold=0.5)
    light = 40 * 40 / 64**2
    assert accuracy == pytest.approx(light) and miou == pytest.approx(light / 2)


def test_both_heads_call_background_what_no_mask_reaches(tiny_samclip):
    """Everything at a threshold of 1, nothing at one of 0."""
    source = make_source("shape_scenes", split="tuning", size=2)
    source.classes = ("background", *source.classes[1:])
    options = dict(templates=("a {}.",), background="none", batch_size=2)
    shares = []
    for threshold in (0.0, 1.0):
        evaluation = refined_segmentation(
            tiny_samclip, source, background_threshold=threshold, **options
        )
        samples = [evaluation.prepare(source[i] | {"index": i}) for i in range(2)]
        pixels = evaluation.measure(samples)["pixels"]
        shares.append(pixels[:, 0].sum() / pixels.sum())
    assert shares == [0, 1]


def test_each_crop_is_named_and_the_smallest_mask_counts(knowing, monkeypatch):
    """All of the image is called by its light middle, a dark strip in it by its own."""
    strip = np.zeros((64, 64), bool)
    strip[:, :8] = True

    def generate(self, image):
        found = [(strip, [0, 0, 7, 63]), (np.ones((64, 64), bool), [0, 0, 63, 63])]
        return [{"segmentation": m, "bbox": box, "area": m.sum()} for m, box in found]

    monkeypatch.setattr("samclip_jax.inference.mask_generator.MaskGenerator.generate", generate)
    found = results(cascade_segmentation(knowing, squares(2)))
    square, dark = 40 * 40 / 64**2, 8 * 64 / 64**2
    assert found["images"] == 2 and found["masks"] == 4
    assert found["cascade_segmentation_pixel_accuracy"] == pytest.approx(square + dark)
    monkeypatch.setattr(
        "samclip_jax.inference.mask_generator.MaskGenerator.generate", lambda *_: []
    )
    assert results(cascade_segmentation(knowing, squares(2)))["cascade_segmentation_miou"] == 0
