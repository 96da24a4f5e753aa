"""inference/: loading, and every answer about one photograph from one encoder pass."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from parity import golden
from safetensors.numpy import save_file

import samclip_jax as sc
from samclip_jax.checkpoint import save_model
from samclip_jax.data import transforms
from samclip_jax.errors import UserError
from samclip_jax.inference import frames
from samclip_jax.inference.refine import Refinement, choose_prompts, log_odds
from samclip_jax.models.prompt_encoder import ABSENT, FOREGROUND, NOT_A_POINT
from samclip_jax.ops.resize import resize_maps

NAMES = ["zebra", "tiger", "grass"]


@pytest.fixture(scope="module")
def photograph():
    """uint8 [45, 60, 3], larger than nothing it meets: smooth shapes of several colours."""
    y, x = np.mgrid[:45, :60]
    waves = [np.sin(x / 5 + y / 9), np.cos(x / 11), np.sin(y / 6 - x / 20)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture
def predictor(tiny_samclip, photograph):
    predictor = sc.Predictor(tiny_samclip)
    predictor.set_image(photograph)
    return predictor


# Loading


def test_importing_the_package_for_its_data_does_not_load_jax(run_python):
    """Data workers do it, in every process."""
    code = "import sys, samclip_jax, samclip_jax.data.sources; print('jax' in sys.modules)"
    assert run_python(code)[:2] == (0, "False\n")


def test_load_gives_back_what_was_saved(tiny_samclip, words, photograph, tmp_path):
    save_model(tmp_path / "merged", tiny_samclip.config, tiny_samclip.params, words)
    loaded = sc.load(str(tmp_path / "merged"))
    assert loaded.config == tiny_samclip.config
    np.testing.assert_array_equal(loaded.encode_text(NAMES), tiny_samclip.encode_text(NAMES))


def test_load_reads_released_weights(tiny_clip, words, photograph, tmp_path):
    """OpenCLIP's files as they are published, in place of a checkpoint."""
    vision, text = tiny_clip.config.vision, tiny_clip.config.text
    described = {
        "embed_dim": text.embed_dim,
        "vision_cfg": {"width": vision.width, "head_width": vision.width // vision.heads},
        "text_cfg": {"heads": text.heads},
    }
    described = {"model_cfg": described, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer.json").write_text(words)
    save_file(golden("openclip_16").weights, tmp_path / "open_clip_model.safetensors")
    loaded = sc.load(tmp_path)
    assert loaded.config == tiny_clip.config
    assert all(isinstance(leaf, jax.Array) for leaf in loaded.params.values())
    assert loaded.tokenizer(["zebra"]).tolist() == tiny_clip.tokenizer(["zebra"]).tolist()


@pytest.mark.parametrize("dtype", ["bf16", "int32", 3])
def test_a_dtype_that_models_do_not_compute_in_is_refused(dtype, tmp_path):
    with pytest.raises(UserError, match="dtype must be float32 or bfloat16"):
        sc.load(tmp_path, dtype)


@pytest.mark.parametrize("path", ["absent", "."])
def test_what_cannot_be_loaded_is_said_in_a_sentence(path, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        sc.load(tmp_path / path)


# Embeddings


def test_embeddings_are_unit_and_no_template_is_added(tiny_clip, tiny_samclip, photograph):
    for model in (tiny_clip, tiny_samclip):
        for made in (model.encode_image(photograph[None]), model.encode_text([*NAMES, "a star"])):
            np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1, atol=1e-5)
    alone = tiny_clip.run(
        lambda clip, tokens: clip.encode_text(tokens), tiny_clip.tokenizer(["zebra"])
    )
    np.testing.assert_allclose(tiny_clip.encode_text(NAMES)[:1], alone, atol=1e-5)


def test_class_embeddings_are_means_over_templates_renormalised(tiny_clip):
    templates = ("a photo of a {}.", "a small {}.")
    texts = [template.format(name) for name in NAMES for template in templates]
    mean = tiny_clip.encode_text(texts).reshape(3, 2, -1).mean(1)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(tiny_clip.class_embeddings(NAMES, templates), expected, atol=1e-6)


# Masks


def test_shapes_and_kinds_of_what_predict_returns(predictor, photograph):
    point = dict(point_coords=np.array([[30, 20]]), point_labels=np.array([1]))
    masks, scores, low_res_masks = predictor.predict(**point)
    assert (masks.shape, masks.dtype) == ((3, 45, 60), bool)
    assert scores.shape == (3,) and low_res_masks.shape == (3, 32, 32)
    logits, _, _ = predictor.predict(**point, return_logits=True)
    np.testing.assert_array_equal(logits > predictor.mask_threshold, masks)
    best = low_res_masks[scores.argmax()][None]
    masks, scores, _ = predictor.predict(**point, mask_input=best, multimask_output=False)
    assert masks.shape == (1, 45, 60) and scores.shape == (1,)


def test_one_encoder_pass_serves_every_question(tiny_samclip, photograph, monkeypatch):
    passes = []
    encode = tiny_samclip.encode_frames
    monkeypatch.setattr(
        tiny_samclip, "encode_frames", lambda *args: passes.append(1) or encode(*args)
    )
    for name in ("encode_image", "patch_embeddings"):
        monkeypatch.setattr(tiny_samclip, name, None)
    predictor = sc.Predictor(tiny_samclip)
    predictor.set_image(photograph)
    predictor.predict(box=np.array([5, 5, 40, 30]))
    predictor.classify(NAMES)
    predictor.segment(NAMES)
    predictor.segment(NAMES, refine=True)
    assert len(passes) == 1


def test_a_batch_of_boxes_answers_as_each_box_alone(predictor):
    boxes = np.array([[5, 5, 40, 30], [0, 0, 60, 45], [20, 10, 25, 40.5]])
    together = predictor.predict_batch(boxes=boxes, multimask_output=False)
    for i, box in enumerate(boxes):
        alone = predictor.predict(box=box, multimask_output=False)
        np.testing.assert_allclose(together[1][i], alone[1], atol=1e-4)
        np.testing.assert_allclose(together[2][i], alone[2], atol=1e-3)


def test_a_box_answers_alike_from_all_its_corners(predictor):
    expected = predictor.predict(box=[5, 6, 40, 30])
    answers = predictor.predict(box=[40, 6, 5, 30])
    assert answers[0].any()
    for answer, array in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer, array)


@pytest.mark.parametrize("multimask, count", [(True, 3), (False, 1)])
def test_no_prompts_have_no_masks(predictor, multimask, count):
    """As a detector's boxes where it saw nothing: every answer has its axes, of length 0."""
    options = dict(boxes=np.zeros((0, 4)), multimask_output=multimask)
    masks, scores, low_res_masks = predictor.predict_batch(**options)
    assert (masks.shape, masks.dtype) == ((0, count, 45, 60), bool)
    assert scores.shape == (0, count) and low_res_masks.shape == (0, count, 32, 32)
    assert predictor.predict_low_res(**options)[0].dtype == np.float32
    assert predictor.postprocess_masks(low_res_masks).shape == (0, count, 45, 60)


def test_maps_go_to_the_photograph_by_way_of_the_frame():
    """Bilinear to the frame, cut, bilinear again; heights and widths differ everywhere."""
    maps = np.random.default_rng(0).standard_normal((2, 8, 12)).astype(np.float32)
    frame = resize_maps(maps[..., None], (32, 48))[:, :27, :48]
    expected = resize_maps(frame, (81, 100))[..., 0]
    size = ((32, 48), (27, 48), (81, 100))
    np.testing.assert_allclose(frames.to_photograph(maps, *size), expected, atol=1e-5)
    np.testing.assert_array_equal(frames.label_map(maps, *size), expected.argmax(0))


def test_masks_are_where_the_maps_are_over_zero():
    """Small ones at a side, several parts, all of it, nothing, and one in the padding alone."""
    maps = np.full((5, 8, 12), -1, np.float32)
    maps[0, 1, 11] = 3
    maps[1, ::3, ::4] = np.random.default_rng(0).uniform(1, 9, (3, 3))
    maps[2], maps[4, 7] = 1, 1
    size = ((32, 48), (27, 48), (81, 100))
    expected = frames.to_photograph(maps, *size) > 0
    masks = np.stack([*frames.to_masks(maps, *size)])
    np.testing.assert_array_equal(masks, expected)
    assert [mask.any() for mask in masks] == [True, True, True, False, False]


def test_bgr_is_the_same_photograph(tiny_sam, photograph):
    first, second = sc.Predictor(tiny_sam), sc.Predictor(tiny_sam)
    first.set_image(photograph)
    second.set_image(np.ascontiguousarray(photograph[..., ::-1]), image_format="BGR")
    np.testing.assert_array_equal(first.get_image_embedding(), second.get_image_embedding())


# Text


def test_probabilities_are_the_softmax_of_scaled_cosines(tiny_samclip, tiny_clip, photograph):
    """At the model's own scale, here 20. A photograph that fills the frame: what encode_image says
    of it."""
    full = transforms.resize(photograph, 64, 64)
    for model in (tiny_samclip, tiny_clip):
        assert model.params["logit_scale"] == tiny_clip.params["logit_scale"]  # the teacher's
        model = model.with_params(model.params | {"logit_scale": np.float32(np.log(20))})
        predictor = sc.Predictor(model)
        predictor.set_image(full)
        cosine = model.encode_image(full[None])[0] @ model.class_embeddings(NAMES).T
        odds = np.exp(20 * (cosine - cosine.max()))
        np.testing.assert_allclose(predictor.classify(NAMES), odds / odds.sum(), atol=1e-3)


def test_the_clip_head_never_sees_the_padding(predictor, tiny_samclip, photograph):
    """45 x 60 px in a frame of 64 x 64: 6 of 8 rows of patches belong to the photograph."""
    frame, size = frames.to_frame(photograph, 64)
    assert size == (48, 64)
    encoded = tiny_samclip.encode_frames(frame[None], np.int32([size]))
    pooled, dense = tiny_samclip.head(encoded.tokens[:, :6])
    text = tiny_samclip.class_embeddings(NAMES)
    logits = resize_maps(np.einsum("hwd,nd->hwn", dense[0], text), (48, 64))
    labels = predictor.segment(NAMES)
    assert (labels.shape, labels.dtype) == ((45, 60), np.int32)
    np.testing.assert_array_equal(labels, resize_maps(logits, (45, 60)).argmax(-1))
    odds = np.exp(np.exp(tiny_samclip.params["logit_scale"]) * (text @ pooled[0]))
    np.testing.assert_allclose(predictor.classify(NAMES), odds / odds.sum(), atol=1e-3)


def test_refining_is_the_same_for_the_same_seed(predictor):
    """At the model's own scale. With all the weight on the CLIP head it is the CLIP head's map."""
    first, again = (predictor.segment(NAMES, refine=True, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    own = Refinement(scale=predictor.model.logit_scale)
    np.testing.assert_array_equal(predictor.segment(NAMES, refine=own, seed=3), first)
    settled = Refinement(clip_weight=1e6, scale=10, min_patches=0)
    agreement = predictor.segment(NAMES, refine=settled) == predictor.segment(NAMES)
    assert agreement.mean() > 0.97  # log odds and cosines are interpolated apart


def test_prompts_of_a_class_and_of_its_parts():
    """Two squares of class 1 on class 0: one prompt for the class, or one for each square. What
    covers less than min_patches, 16 cells each, is not prompted."""
    odds = np.full((2, 8, 16), -4, np.float32)
    odds[1, 1:4, 1:4] = odds[1, 4:7, 10:14] = 4
    odds[0] = -odds[1]
    options = Refinement(points=2, threshold=0.9, min_patches=0)
    rng = np.random.default_rng(0)
    ground, squares = choose_prompts(odds, (16, 16), 2.0, options, rng)
    assert (ground.category, squares.category) == (0, 1)
    assert squares.labels.tolist() == [FOREGROUND, FOREGROUND, NOT_A_POINT]
    np.testing.assert_array_equal(squares.mask[:8], odds[1])
    np.testing.assert_array_equal(squares.mask[8:], -options.limit)

    parts = dataclasses.replace(options, components=True)
    _, left, right = choose_prompts(odds, (16, 16), 2.0, parts, rng)
    for part, window in ((left, np.s_[1:4, 1:4]), (right, np.s_[4:7, 10:14])):
        inside = np.zeros((8, 16), bool)
        inside[window] = True
        x, y = ((part.points[:2] + 0.5) / 2).astype(int).T
        assert inside[y, x].all()
        np.testing.assert_array_equal(part.mask[:8] == 4, inside)

    for form, patches, categories in (
        (parts, 10 / 16, [0, 1]),
        (parts, 1, [0]),
        (options, 1, [0, 1]),
        (options, 22 / 16, [0]),
        (options, 100, [0]),
    ):
        form = dataclasses.replace(form, min_patches=patches)
        prompts = choose_prompts(odds, (16, 16), 2.0, form, rng)
        assert [prompt.category for prompt in prompts] == categories
    scarce = dataclasses.replace(options, points=200)
    assert (choose_prompts(odds, (16, 16), 2.0, scarce, rng)[1].labels == ABSENT).sum() == 179


def test_log_odds_are_of_the_softmax_and_limited():
    cosine = np.zeros((2, 3, 5))
    cosine[1] = 0.02
    odds = log_odds(cosine, 100, 10)
    assert odds.shape == (2, 12, 20)
    np.testing.assert_allclose(odds[1], 2, atol=1e-5)
    np.testing.assert_allclose(log_odds(cosine, 1e4, 5)[0], -5)
    np.testing.assert_allclose(log_odds(cosine[:1], 100, 5), 5)  # the only class


# Mistakes


def test_a_sam_has_no_text_and_a_clip_no_masks(tiny_sam, tiny_clip, photograph):
    predictor = sc.Predictor(tiny_sam)
    predictor.set_image(photograph)
    for question in (predictor.classify, predictor.segment, tiny_sam.encode_text):
        with pytest.raises(UserError, match="this is a SAM checkpoint"):
            question(NAMES)
    with pytest.raises(UserError, match="this is a SAM checkpoint"):
        tiny_sam.encode_image(photograph[None])
    predictor = sc.Predictor(tiny_clip)
    predictor.set_image(photograph)
    assert predictor.segment(NAMES).shape == (45, 60)
    for question in (
        lambda: predictor.predict(box=np.array([1, 2, 3, 4])),
        lambda: predictor.segment(NAMES, refine=True),
        lambda: sc.MaskGenerator(tiny_clip),
    ):
        with pytest.raises(UserError, match="this is a CLIP checkpoint"):
            question()


@pytest.mark.parametrize(
    "question, sentence",
    [
        (lambda p: p.set_image(np.zeros((4, 4, 3))), "need uint8"),
        (lambda p: p.set_image(np.zeros((4, 4), np.uint8)), "need uint8"),
        (lambda p: p.set_image(np.zeros((4, 4, 3), np.uint8), "HSV"), "RGB or BGR"),
        (lambda p: p.predict(), "give points, a box or a mask"),
        (lambda p: p.predict(point_coords=np.zeros((1, 2))), "give both"),
        (lambda p: p.predict(np.zeros((2, 2)), np.ones(1)), "a label each"),
        (lambda p: p.predict(mask_input=np.zeros((1, 8, 8))), "mask_input must be"),
        (lambda p: p.predict(box=np.ones((2, 4))), "box .* use predict_batch"),
        (lambda p: p.predict_batch(boxes=np.ones(4)), "boxes .* use predict"),
        (lambda p: p.postprocess_masks(np.zeros((3, 8, 8))), "low_res_masks must be"),
        (lambda p: sc.Predictor(p.model).postprocess_masks(np.zeros((3, 8, 8))), "set_image"),
        (lambda p: p.segment(NAMES, refine="yes"), "refine must be True, False"),
        (lambda p: p.segment(NAMES, seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda p: p.segment(NAMES, templates=["a photo"]), "no {} for the name"),
        (lambda p: p.classify("cat"), "a list of class names"),
        (lambda p: p.classify(["cat"], "opena1"), "no templates"),
        (lambda p: (p.reset_image(), p.classify(["cat"])), "set_image first"),
    ],
)
def test_mistakes_are_one_sentence(predictor, question, sentence):
    with pytest.raises(UserError, match=sentence):
        question(predictor)


# The original


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(45, 60), (90, 61), (64, 64)])
def test_every_prompt_is_answered_as_by_segment_anything(tiny_sam, coco, shape):
    """One real photograph, taller, wider and as large as the frame; points, boxes and masks."""
    import original_inference
    from PIL import Image

    image = np.asarray(Image.open(sorted((coco / "images").iterdir())[0]).convert("RGB"))
    image = image[: 3 * shape[0] : 3, : 3 * shape[1] : 3]
    original = original_inference.predictor(tiny_sam.config, golden("sam").weights)
    ours = sc.Predictor(tiny_sam)
    original.set_image(image)
    ours.set_image(image)
    embedding = original.get_image_embedding().numpy()
    np.testing.assert_allclose(ours.get_image_embedding(), embedding, atol=1e-4)
    points = dict(point_coords=np.array([[20, 30], [41.5, 7]]), point_labels=np.array([1, 0]))
    box = dict(box=np.array([4, 9, 50, 33.5]))
    _, _, low_res_masks = original.predict(**points)
    mask = dict(mask_input=low_res_masks[:1])
    for prompt in (points, box, points | box, mask, points | mask, box | mask):
        for multimask in (True, False):
            options = dict(**prompt, multimask_output=multimask, return_logits=True)
            theirs, answers = original.predict(**options), ours.predict(**options)
            for expected, actual in zip(theirs, answers, strict=True):
                scale = np.abs(expected).max()
                np.testing.assert_allclose(actual, expected, atol=1e-4 * scale, rtol=0)
            sure = np.abs(theirs[0]) > 1e-4 * np.abs(theirs[0]).max()
            np.testing.assert_array_equal((answers[0] > 0)[sure], (theirs[0] > 0)[sure])
