"""inference/model.py: which part of a photograph an embedding is of, and what the texts may be."""

import numpy as np
import pytest

import samclip_jax as sc
from samclip_jax import models
from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import results
from samclip_jax.evals.zero_shot_classification import zero_shot_classification

NAMES = ["zebra", "tiger", "grass"]


def photograph(height, width):
    """uint8 [height, width, 3]: other colours at its sides than in its middle."""
    y, x = np.mgrid[:height, :width]
    waves = [x / width, np.sin(3 * y / height), np.cos(9 * x / width + y / height)]
    return np.uint8(127 + 120 * np.stack(waves, -1))


def classified(model, image):
    """The embedding that Predictor.classify compares with the texts."""
    predictor = sc.Predictor(model)
    predictor.set_image(image)
    return predictor._embeddings()[0]


def as_it_is(model, images):
    return model.run(lambda module, images: module.encode_image(images), images)


# The view of a photograph


@pytest.mark.parametrize("shape", [(45, 60), (100, 70), (3, 90), (64, 64)])
def test_a_clip_sees_the_centre_as_classify_does(tiny_clip, shape):
    image = photograph(*shape)
    pooled = tiny_clip.encode_image(image[None])[0]
    np.testing.assert_allclose(pooled, classified(tiny_clip, image), atol=1e-5)
    crop = transforms.centre_crop(image, 64)
    np.testing.assert_array_equal(pooled, as_it_is(tiny_clip, crop[None])[0])


def test_a_clip_squashes_the_whole_photograph_if_told(tiny_clip):
    image = photograph(45, 120)[None]
    squashed = tiny_clip.encode_image(image, squash=True)
    np.testing.assert_array_equal(squashed, as_it_is(tiny_clip, image))
    assert (squashed * tiny_clip.encode_image(image)).sum() < 0.999


@pytest.mark.parametrize("shape", [((90, 61)), ((30, 40)), ((80, 80))])
def test_a_merged_model_sees_a_photograph_as_classify_does(tiny_samclip, shape):
    """In the frame of 64 px, whose padding the head does not see."""
    image = photograph(*shape)
    pooled = tiny_samclip.encode_image(image[None].repeat(2, 0))
    np.testing.assert_allclose(pooled, [classified(tiny_samclip, image)] * 2, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 96), (40, 56)])
def test_a_merged_model_sees_crops_at_the_size_they_have(tiny_samclip, shape):
    """As evaluation crops them: bit for bit."""
    images = photograph(*shape)[None]
    np.testing.assert_array_equal(tiny_samclip.encode_crops(images), as_it_is(tiny_samclip, images))


@pytest.mark.parametrize("model, size", [("tiny_clip", 64), ("tiny_samclip", 80)])
def test_evaluation_cuts_crops_that_are_seen_as_they_are(model, size, request, monkeypatch):
    """A CLIP's at its own size, a merged model's at image_size; bit for bit."""
    model, batches = request.getfixturevalue(model), []
    encode = model.encode_crops
    monkeypatch.setattr(
        model, "encode_crops", lambda images: batches.append(images) or encode(images)
    )
    records = [{"key": "0", "image": photograph(45, 60), "label": 1}]
    source = type("Source", (list,), {"classes": NAMES})(records)
    options = dict(image_size=80, templates=("a photo of a {}.",), batch_size=2)
    results(zero_shot_classification(model, source, **options))
    assert [images.shape for images in batches] == [(2, size, size, 3)]
    np.testing.assert_array_equal(encode(batches[0]), as_it_is(model, batches[0]))


def test_an_interpolation_goes_from_the_start_to_the_end():
    """Of what SAM has; the CLIP head is the end's."""
    start = {"encoder/a": np.float32([0, 4]), "mask_decoder/b": np.float32([8])}
    end = {name: leaf + 4 for name, leaf in start.items()} | {"heads/clip/c": np.float32([1])}
    for alpha, change in ((0.0, 0), (0.25, 1), (1.0, 4)):
        mixed = models.wise_ft(start, end, alpha)
        assert mixed.keys() == end.keys() and mixed["heads/clip/c"] == 1
        for name, leaf in start.items():
            np.testing.assert_array_equal(mixed[name], leaf + change)


def test_a_merged_model_squashes_nothing(tiny_samclip):
    with pytest.raises(UserError, match="squash is for a plain CLIP"):
        tiny_samclip.encode_image(photograph(45, 60)[None], squash=True)


def test_a_line_of_pixels_is_a_photograph(tiny_clip, tiny_samclip):
    image = photograph(1, 700)
    for model in (tiny_clip, tiny_samclip):
        assert np.isfinite(model.encode_image(image[None])).all()
        predictor = sc.Predictor(model)
        predictor.set_image(image)
        assert predictor.segment(NAMES).shape == (1, 700)
    assert predictor.predict([[0, 0]], [1])[0].shape == (3, 1, 700)


# Texts


def test_texts_come_from_any_list_and_templates_may_be_functions(tiny_clip):
    expected = tiny_clip.class_embeddings(NAMES, ["a {}.", "a small {}."])
    functions = [lambda name: f"a {name}.", "a small {}."]
    names = (name for name in NAMES)
    np.testing.assert_array_equal(tiny_clip.class_embeddings(names, functions), expected)
    texts = np.array(["a zebra " * 500, ""])
    np.testing.assert_array_equal(
        tiny_clip.encode_text(texts), tiny_clip.encode_text(["a zebra " * 30, " "])
    )


@pytest.mark.parametrize(
    "question, sentence",
    [
        (lambda model: model.encode_text(["a", None]), r"texts\[1\] must be a text"),
        (lambda model: model.tokenizer("a star"), "texts must be a list"),
        (lambda model: model.class_embeddings(["a", "\udcff"]), r"names\[1\] has half of"),
        (lambda model: model.class_embeddings(NAMES, ["a photo"]), r"has no {} for the name"),
        (lambda model: model.encode_image(photograph(4, 5)), "add the first axis"),
        (lambda model: model.patch_embeddings(photograph(4, 5)[None] / 255), "images: need uint8"),
        (lambda model: model.predict_masks(*[[0]] * 4), "a mask needs a SAM"),
    ],
)
def test_mistakes_are_one_sentence(tiny_clip, question, sentence):
    with pytest.raises(UserError, match=sentence):
        question(tiny_clip)


# Passes of the encoder

FRAMES, SIZES = np.zeros((2, 64, 64, 3), np.uint8), [[64, 48], [0, 0]]
TOKENS, EMBEDDING = np.zeros((1, 8, 8, 32)), np.zeros((1, 8, 8, 16))


@pytest.mark.parametrize(
    "question, sentence",
    [
        (
            lambda m: m.encode_frames(FRAMES[:, :32], SIZES),
            r"frames must be \[B, 64, 64, 3\], made",
        ),
        (lambda m: m.encode_frames(FRAMES[0], SIZES), "frames: need uint8"),
        (lambda m: m.encode_frames(FRAMES, SIZES[:1]), r"sizes must be \[2, 2\], height and width"),
        (lambda m: m.encode_frames(FRAMES, [[64, 65]] * 2), "sizes must be whole px .* got 65"),
        (lambda m: m.encode_frames(FRAMES, [[64, -1]] * 2), "sizes must be whole px .* got -1"),
        (lambda m: m.encode_frames(FRAMES, [[9.5, 1]] * 2), "sizes must be whole px .* got 9.5"),
        (lambda m: m.encode_frames(FRAMES, None), "sizes must be real numbers"),
        (lambda m: m.head(TOKENS[0]), r"tokens must be \[B, h, w, 32\], of an encoder pass"),
        (lambda m: m.head(TOKENS, (0, 9)), "size must be whole px of the frame, 1 to 64"),
        (lambda m: m.predict_masks(EMBEDDING[0], [0], [[[1, 2]]], [[1]]), "embedding must be"),
        (lambda m: m.predict_masks(None, [0], [[[1, 2]]], [[1]]), r"embedding must be .* got \[\]"),
    ],
)
def test_what_no_encoder_pass_takes_or_gives_is_one_sentence(tiny_samclip, question, sentence):
    with pytest.raises(UserError, match=sentence):
        question(tiny_samclip)


def test_a_frame_may_be_empty(tiny_samclip):
    assert tiny_samclip.encode_frames(FRAMES, SIZES).tokens.shape[:3] == (2, 8, 8)
