"""The whole models: photograph and prompt to masks, image and text to one space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, END_TO_END, assert_close, assert_same_ranking, call, golden

from samclip_jax import families, models
from samclip_jax.models.config import ClipConfig, ClipHeadConfig, SamClipConfig, SamConfig
from samclip_jax.models.layers import unit
from samclip_jax.models.prompt_encoder import ABSENT


def photograph_to_masks(dtype=jnp.float32):
    """Three prompts, then the same again with the masks of the first answer."""

    def method(sam, images, sizes, points, labels, masks):
        embedding = sam.encode(images, sizes, dtype).embedding
        first = sam.predict_masks(embedding, points, labels)
        return first, sam.predict_masks(embedding, points, labels, masks)

    return method


def prompted(case):
    prompt = (case[key][None] for key in ("points", "labels"))
    return case["images"], case["sizes"], *prompt, case["low_res_masks"][None, :, 1]


@pytest.mark.parametrize("size, box", [("64x64", True), ("56x88", False), ("56x88", True)])
def test_sam_end_to_end_matches_the_original(size, box):
    """A photograph smaller than its frame, points with and without a box, and mask prompts."""
    original = golden("sam")
    case = original.case(f"end_to_end/{size}/box={box}")
    first, refined = original.call(photograph_to_masks(), *prompted(case))
    assert_close(first.low_res_masks[0], case["low_res_masks"], END_TO_END)
    assert_close(first.iou[0], case["iou"], END_TO_END)
    assert_close(refined.low_res_masks[0], case["refined_masks"], END_TO_END)
    assert_close(refined.iou[0], case["refined_iou"], END_TO_END)


def test_sam_end_to_end_in_bfloat16_ranks_alike():
    original = golden("sam")
    case = original.case("end_to_end/64x64/box=True")
    first, _ = original.call(photograph_to_masks(jnp.bfloat16), *prompted(case))
    assert_close(first.low_res_masks[0], case["low_res_masks"], BFLOAT16)
    assert_close(first.iou[0], case["iou"], BFLOAT16)
    assert_same_ranking(first.iou[0], case["iou"])


def test_absent_slots_and_prompts_apart_change_nothing():
    """Prompts of different lengths in one call, filled up with ABSENT: each as if alone."""
    original = golden("sam")
    case = original.case("end_to_end/64x64/box=True")
    points, labels = case["points"][None], case["labels"][None]
    labels[0, 1, :3] = ABSENT  # the second prompt: its box alone

    def predict(sam, embedding, points, labels):
        return sam.predict_masks(embedding, points, labels)

    embedding = 0.1 * np.random.default_rng(0).standard_normal((1, 8, 8, 48), np.float32)
    together = original.call(predict, embedding, points, labels)
    alone = original.call(predict, embedding, points[:, 1:2, 3:], labels[:, 1:2, 3:])
    assert_close(together.low_res_masks[:, 1:2], alone.low_res_masks, 1e-6)
    assert_close(together.iou[:, 1:2], alone.iou, 1e-6)


@pytest.mark.parametrize("name", ["openclip_16", "openclip_32_quick"])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, END_TO_END), (jnp.bfloat16, BFLOAT16)])
def test_clip_end_to_end_matches_the_original(name, dtype, tolerance):
    """Unit embeddings of both towers; every image ranks the texts alike."""
    original = golden(name)
    case = original.case("clip")
    image, text = original.call(
        lambda clip, images, tokens: (
            clip.encode_image(images, dtype),
            clip.encode_text(tokens, dtype),
        ),
        case["images"],
        case["tokens"],
    )
    assert image.dtype == text.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1, atol=1e-6)
    assert_close(image, case["image"], tolerance)
    assert_close(text, case["text"], tolerance)
    assert_same_ranking(image @ text.T, case["image"] @ case["text"].T)


def test_samclip_is_its_parts():
    """SAM's masks from the merged model, CLIP's text tower, and embeddings from the CLIP head."""
    merged, sam, clip = golden("clip_head"), golden("sam"), golden("openclip_16")
    rng = np.random.default_rng(0)
    abstract = models.split(families.abstract(merged.config))[1]
    params = {k: np.float32(0.2 * rng.standard_normal(v.shape)) for k, v in abstract.items()}
    params |= sam.params | {k: v for k, v in clip.params.items() if k.startswith("text/")}
    images, tokens = sam.case("encoder/56x88")["images"], clip.case("clip")["tokens"]

    def parts(model, images, tokens):
        output = model.text_head(model.encode(images).tokens)
        image, dense = model.encode_image(images), model.encode_dense(images)
        return output, image, dense, model.encode(images).embedding, model.encode_text(tokens)

    output, image, dense, embedding, text = call(merged.config, params, parts, images, tokens)
    np.testing.assert_allclose(image, unit(output.pooled), atol=1e-6)
    np.testing.assert_allclose(dense, unit(output.dense), atol=1e-6)
    assert_close(embedding, sam.case("encoder/56x88")["embedding"], END_TO_END)
    assert_close(text, clip.case("clip")["text"], END_TO_END)


def test_unit_of_a_zero_vector():
    """Stays zero, with zero gradient; others get length one in float32."""
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]], jnp.bfloat16)
    np.testing.assert_allclose(unit(x), [[0, 0], [0.6, 0.8]], atol=1e-6)
    gradient = jax.grad(lambda x: unit(x)[:, 0].sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(gradient, 0)


def test_split_and_merge_round_trip():
    """Flat names of strings, float32 weights, unchanged; an abstract model has their shapes."""
    config = golden("openclip_16").config
    graph, params = models.split(families.init(config, seed=1))
    assert all(isinstance(name, str) and leaf.dtype == jnp.float32 for name, leaf in params.items())
    _, abstract = models.split(families.abstract(config))
    assert {k: v.shape for k, v in abstract.items()} == {k: v.shape for k, v in params.items()}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in abstract.values())
    _, again = models.split(models.merge(graph, params))
    assert again.keys() == params.keys()
    for name in params:
        np.testing.assert_array_equal(again[name], params[name])
    first, second, _ = params["vision/blocks/qkv/kernel"]
    assert np.abs(first - second).max() > 0, "layers of a stack start alike"


def test_sizes_are_the_published_ones():
    """SAM ViT-B, OpenCLIP ViT-L/14, and a CLIP head that adds about 25 % (SAM-CLIP appendix E)."""

    def count(config, start=""):
        params = models.split(families.abstract(config))[1]
        return models.count({k: v for k, v in params.items() if k.startswith(start)})

    assert count(SamConfig(), "encoder/") == 89_670_912
    assert count(SamConfig()) == 93_735_472 + 2 * 128  # and the Gaussian matrix
    assert count(ClipConfig()) == 427_616_513
    assert count(SamClipConfig(), "heads/") / 89_670_912 == pytest.approx(0.257, abs=1e-3)
    small = SamClipConfig(heads={"clip": ClipHeadConfig(mlp_hidden=512)})
    assert count(small, "heads/") / 89_670_912 == pytest.approx(0.249, abs=1e-3)
