"""families/: every kind of model gives what it says, and a student learns it in one pass."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import golden
from test_train import CLIP, SAM

from samclip_jax import families, models, train
from samclip_jax.config import MaskLossConfig, TermConfig
from samclip_jax.models.config import ClipHeadConfig, SamClipConfig
from samclip_jax.models.samclip import Sam

STUDENT = SamClipConfig(SAM, {"clip": ClipHeadConfig(1, 16, embed_dim=8)}, CLIP.text)
CONFIGS = {"sam": SAM, "clip": CLIP, "samclip": STUDENT}
GRID = 3, 4
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (2, 36, 48, 3), np.uint8)}
PROMPTS = {"points": np.zeros((2, 1, 2, 2), np.float32), "labels": np.ones((2, 1, 2), np.int32)}
SHAPES = {name: array.shape for name, array in (BATCH | PROMPTS).items()}
MASK_LOSS = MaskLossConfig(20.0, 1.0, 1.0, 0.25, 2.0, "soft", True, (1.0,) * 4)
OPTIONS = types.SimpleNamespace(mask_loss=MASK_LOSS, dtype=jnp.float32, remat=False)


def term(target="summary", teacher="clip", head="clip", weight=1.0):
    return TermConfig("clip", teacher, target, head, "cosine", weight)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_a_family_gives_what_it_says(kind):
    config = CONFIGS[kind]
    family = families.of(config)
    assert family.kind == kind and family.outputs <= {"summary", "patches", "masks", "text"}
    graph, params = models.split(families.abstract(config))
    names = sorted(family.outputs - {"text"})

    def shapes(params):
        given = family.targets(models.merge(graph, params), BATCH, names, GRID, jnp.float32)
        if "masks" in given:
            given["masks"] = given["masks"](**PROMPTS)
        return given

    given = jax.eval_shape(shapes, params)
    assert sorted(given) == names
    expected = {"summary": (2, 8), "patches": (2, *GRID, 8)}
    assert {name: x.shape for name, x in given.items() if name != "masks"} == {
        name: shape for name, shape in expected.items() if name in names
    }
    if "summary" in names:
        assert family.width(config) == 8
    if "masks" in names:
        assert given["masks"].low_res_masks.shape[:2] == (2, 1)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_operations_grow_with_what_is_asked(kind):
    config = CONFIGS[kind]
    family = families.of(config)
    names = sorted(family.outputs - {"text"})
    single = [family.operations(config, [name], SHAPES, GRID) for name in names]
    assert min(single) > 0
    assert family.operations(config, names, SHAPES, GRID) >= max(single)


def test_a_clips_patches_are_its_values_where_the_student_has_patches():
    """An image of another size is resized, no feature is."""
    clip = golden("openclip_16")
    images = clip.case("vision")["images"][:1].repeat(2, 2)  # twice as wide
    family = families.of(clip.config)

    def targets(model, images):
        return family.targets(model, {"image": images}, ["patches"], (4, 8), jnp.float32)

    def values(model, images):
        return model.vision.dense(model.vision.preprocess(images, grid=(4, 8)), values=True)

    patches = clip.call(targets, images)["patches"]
    direct = np.asarray(clip.call(values, images))
    assert patches.shape[1:3] == (4, 8)
    np.testing.assert_allclose(
        patches, direct / np.linalg.norm(direct, axis=-1, keepdims=True), atol=1e-6
    )


def weighted_sum(terms, student, teachers):
    graphs = {name: models.split(families.init(config))[0] for name, config in teachers.items()}
    params = {
        name: models.split(families.init(config, seed=number))[1]
        for number, (name, config) in enumerate(teachers.items(), 1)
    }
    graph, student_params = models.split(families.init(student))

    def total(student_params, params):
        merged = {name: models.merge(graphs[name], params[name]) for name in teachers}
        return train.weighted_sum(
            terms, models.merge(graph, student_params), merged, BATCH, OPTIONS
        )

    return jax.jit(total)(student_params, params)


def test_terms_on_one_stream_are_one_pass_of_the_student(monkeypatch):
    """Two teachers, a head each, and a dense term: the encoder runs once, every head once."""
    calls = []
    encode = Sam.encode
    monkeypatch.setattr(Sam, "encode", lambda *a, **k: calls.append("encode") or encode(*a, **k))
    heads = {name: ClipHeadConfig(1, 16, embed_dim=8) for name in ("clip", "other")}
    terms = {
        "clip": term(),
        "dense": term("patches", weight=0.5),
        "other": term(teacher="second", head="other", weight=2.0),
    }
    student = SamClipConfig(SAM, heads, CLIP.text)
    total, metrics = weighted_sum(terms, student, {"clip": CLIP, "second": CLIP})
    assert calls == ["encode"]
    losses = {name: float(metrics[f"{name}/loss"]) for name in terms}
    assert len({round(loss, 4) for loss in losses.values()}) == 3
    expected = losses["clip"] + 0.5 * losses["dense"] + 2 * losses["other"]
    assert float(total) == pytest.approx(expected, rel=1e-6)
