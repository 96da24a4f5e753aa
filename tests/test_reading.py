"""inference/reading.py, vote.py: every way to read a map, alone, beside its formula in numpy."""

import dataclasses

import numpy as np
import pytest
from scipy import special

import samclip_jax as sc
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError
from samclip_jax.evals import evaluate
from samclip_jax.inference import frames
from samclip_jax.inference.reading import PAPER, Reading, pruned
from samclip_jax.inference.refine import Refinement, choose_prompts
from samclip_jax.inference.vote import voted
from samclip_jax.models.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND

NAMES = ["zebra", "tiger", "grass"]
FORMS = {
    "values": Reading(attention="values", blocks=2),
    "recursive": Reading(attention="recursive"),
    "self_correlation": Reading(self_correlation=True),
    "windows": Reading(window=32, stride=16, short=48),
    "prune": Reading(prune=0.34),
}


@pytest.fixture
def predictor(tiny_samclip):
    y, x = np.mgrid[:45, :60]
    waves = [np.sin(x / 5 + y / 9), np.cos(x / 11), np.sin(y / 6 - x / 20)]
    predictor = sc.Predictor(tiny_samclip)
    predictor.set_image((127 + 120 * np.stack(waves, -1)).astype(np.uint8))
    return predictor


def test_a_text_that_is_nowhere_probable_is_left_out():
    cosines = np.random.default_rng(0).uniform(-1, 1, (4, 5, 7)).astype(np.float32)
    assert pruned(cosines, 10, 0) is cosines
    probable = special.softmax(10 * cosines, axis=0)
    share = np.sort(probable.max((1, 2)))[:2].mean()
    found = pruned(cosines, 10, share)
    for text in range(4):
        kept = probable[text].max() > share
        np.testing.assert_array_equal(found[text], cosines[text] if kept else -1)
    assert (found == -1).all((1, 2)).sum() == 1
    np.testing.assert_array_equal(pruned(cosines, 0, 0.9), cosines, "none is; all stay")


def test_the_most_frequent_label_of_a_mask_is_that_of_all_of_it():
    labels = np.random.default_rng(0).integers(0, 3, (8, 9))
    large, small, empty = np.zeros((3, 8, 9), bool)
    large[1:7, 2:8], small[2:4, 3:5] = True, True
    found = voted(labels, [small, empty, large])
    expected = labels.copy()
    for mask in (large, small):
        expected[mask] = np.bincount(labels[mask]).argmax()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(voted(labels, []), labels)


@pytest.mark.parametrize("form", FORMS)
def test_off_is_the_paper_and_on_is_another_map(predictor, form):
    """In a Predictor and in both evaluators; classification stays as it is."""
    source = make_source("shape_scenes", split="tuning", size=2, image_size=64)
    options = dict(templates=("a {}.",), batch_size=1)
    before = predictor.classify(NAMES)
    usual = predictor.segment(NAMES)
    np.testing.assert_array_equal(predictor.segment(NAMES, reading=Reading()), usual)
    reading = FORMS[form]
    assert predictor.segment(NAMES, reading=reading).shape == usual.shape
    assert predictor.segment(NAMES, refine=True, reading=reading).shape == usual.shape
    if form != "prune":
        dense = [predictor._map(each)[0] for each in (PAPER, reading)]
        assert dense[0].shape != dense[1].shape or np.abs(dense[0] - dense[1]).max() > 1e-3
    np.testing.assert_array_equal(predictor.classify(NAMES), before)
    data = dict(name="shape_scenes", split="tuning", size=2)
    for task in ("zero_shot_segmentation", "refined_segmentation"):
        size = dict(image_size=64) if task.startswith("zero") else {}
        changed = {k: v for k, v in dataclasses.asdict(reading).items() if v != getattr(PAPER, k)}
        found = evaluate(predictor.model, task, data, reading=changed, **options, **size)
        assert found["images"] == len(source) == 2


def test_a_vote_needs_masks_and_takes_everything(predictor, tiny_clip, monkeypatch):
    top = np.zeros((45, 60), bool)
    top[:20] = True
    monkeypatch.setattr(
        "samclip_jax.inference.vote.MaskGenerator.generate", lambda *_: [{"segmentation": top}]
    )
    labels = predictor.segment(NAMES)
    found = predictor.segment(NAMES, reading=Reading(vote_points=4))
    assert len(np.unique(found[:20])) == 1
    np.testing.assert_array_equal(found[20:], labels[20:])
    clip = sc.Predictor(tiny_clip)
    clip.set_image(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match="vote_points needs a SAM"):
        clip.segment(NAMES, reading=Reading(vote_points=4))


@pytest.mark.parametrize("reading, sentence", [
    ({"attention": "self"}, "attention must be softmax, values or recursive"),
    ({"prune": 2}, "prune must be"), ({"window": 0}, "window must be"),
    ({"vote_points": -1}, "vote_points must be"), ({"blocks": 0}, "blocks must be"),
    ({"windows": 3}, "did you mean 'window'"), ({"attention": "values", "blocks": 9}, "at most 2"),
    ({"window": 33}, "multiples of the patch, 8 px"),
])  # fmt: skip
def test_mistakes_are_one_sentence(tiny_samclip, reading, sentence):
    data = dict(name="shape_scenes", split="tuning", size=1)
    with pytest.raises(UserError, match=sentence):
        evaluate(tiny_samclip, "zero_shot_segmentation", data, reading=reading)


def test_another_attention_is_not_for_a_plain_clip(tiny_clip):
    data = dict(name="shape_scenes", split="tuning", size=1)
    with pytest.raises(UserError, match="attention is that of a merged model's head"):
        options = dict(templates=("a {}.",), reading={"attention": "values"})
        evaluate(tiny_clip, "zero_shot_segmentation", data, **options)


def test_windows_are_read_at_the_middles_of_the_frames_patches():
    """A photograph of 45 x 60 px in patches of 8: six rows, the last with its middle outside."""
    y, x = np.mgrid[:10, :20]
    maps = np.stack([y + 0.5, x + 0.5]).astype(np.float32)
    rows, columns = frames.at_patches(maps, (45, 60), 8)
    assert rows.shape == columns.shape == (6, 8)
    middles = np.minimum(np.arange(8) * 8 + 4, 59) + 0.5
    np.testing.assert_allclose(columns[0], middles / 60 * 20, atol=0.5)
    np.testing.assert_allclose(np.diff(rows[:5, 0]), 8 / 45 * 10, atol=1e-4)


# Both heads


@pytest.fixture
def odds():
    """Two squares of class 1 on class 0, the left one the surest at its corner."""
    odds = np.full((2, 8, 16), -4, np.float32)
    odds[1, 1:4, 1:4] = odds[1, 4:7, 10:14] = 4
    odds[1, 3, 2] = 6
    odds[0] = -odds[1]
    return odds


def test_a_prompt_has_its_box_and_its_peak(odds):
    options = Refinement(points=1, components=True, min_patches=0, box=True, peak=True)
    _, left, right = choose_prompts(odds, (16, 16), 2.0, options, np.random.default_rng(0))
    assert left.labels.tolist() == [FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    np.testing.assert_array_equal(left.points, [[4.5, 6.5], [2, 2], [8, 8]])
    np.testing.assert_array_equal(right.points[1:], [[20, 8], [28, 14]])


def test_a_mask_that_is_not_sure_is_the_clip_heads(predictor, monkeypatch):
    """None is accepted: the map of the CLIP head, by its log odds; all are: as without."""
    scores = predictor.model.predict_masks
    seen = []

    def predict_masks(embedding, index, points, labels, masks=None, multimask=False):
        seen.append(masks)
        low_res_masks, iou = scores(embedding, index, points, labels, masks, multimask)
        return low_res_masks, np.full_like(iou, 0.5)

    monkeypatch.setattr(predictor.model, "predict_masks", predict_masks)
    usual = dict(scale=10, min_patches=0)
    labels = predictor.segment(NAMES, refine=Refinement(**usual))
    accepted = predictor.segment(NAMES, refine=Refinement(**usual, min_iou=0.4))
    np.testing.assert_array_equal(accepted, labels)
    refused = predictor.segment(NAMES, refine=Refinement(**usual, min_iou=0.6))
    assert (refused == predictor.segment(NAMES)).mean() > 0.97
    predictor.segment(NAMES, refine=Refinement(**usual, mask_scale=0.5))
    np.testing.assert_array_equal(seen[-1], seen[0] * np.float32(0.5))
