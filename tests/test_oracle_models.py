"""Our models against the PyTorch originals themselves, up to their full sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, END_TO_END, MODULE, assert_close, assert_same_ranking, call, converted

from samclip_jax import models
from samclip_jax.models.config import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    SamConfig,
)

torch = pytest.importorskip("torch")
originals = pytest.importorskip("originals")
make_goldens = pytest.importorskip("make_goldens")
F = torch.nn.functional
pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def weights_of(original):
    return {name: value.numpy() for name, value in original.state_dict().items()}


def prompted(size, box=True):
    """(what the original takes, what ours takes) of one photograph with two prompts."""
    generator = np.random.default_rng(0)
    images = make_goldens.photographs(generator, 1, *size)
    theirs, ours = make_goldens.prompts(generator, 2, size, box)
    return theirs, (images, ours["points"][None], ours["labels"][None])


def predict(original, embedding, prompts, masks=None):
    sparse, dense = original.prompt_encoder(**prompts, masks=masks)
    embedding = embedding.permute(0, 3, 1, 2)
    image_pe = original.prompt_encoder.get_dense_pe()
    return original.mask_decoder.predict_masks(embedding, image_pe, sparse, dense)


def photograph_to_masks(dtype=jnp.float32):
    def method(sam, images, points, labels):
        output = sam.encode(images, dtype=dtype)
        return output, sam.predict_masks(output.embedding, points, labels)

    return method


@pytest.fixture(scope="module")
def vit_b():
    """SAM ViT-B in full: (original, our params)."""
    with torch.no_grad():
        original = originals.randomise(originals.sam(SamConfig()))
    return original, converted(SamConfig(), weights_of(original))


@pytest.mark.parametrize("size", [(448, 448), (512, 768), (1024, 1024)])
def test_sam_vit_b(vit_b, size):
    """Photograph, box and points to masks. At 1024 px attention goes chunk by chunk."""
    original, params = vit_b
    original = originals.resize_sam(original, size)
    theirs, ours = prompted(size)
    expected = make_goldens.encode(original, ours[0])
    masks, iou = predict(original, expected["embedding"], theirs)
    output, answer = call(SamConfig(), params, photograph_to_masks(), *ours)
    assert_close(output.tokens, expected["tokens"], END_TO_END)
    assert_close(output.embedding, expected["embedding"], END_TO_END)
    assert_close(answer.low_res_masks[0], masks, END_TO_END)
    assert_close(answer.iou[0], iou, END_TO_END)


def test_sam_vit_b_in_bfloat16(vit_b):
    original, params = vit_b
    original = originals.resize_sam(original, (448, 448))
    theirs, ours = prompted((448, 448))
    masks, iou = predict(original, make_goldens.encode(original, ours[0])["embedding"], theirs)
    _, answer = call(SamConfig(), params, photograph_to_masks(jnp.bfloat16), *ours)
    assert_close(answer.low_res_masks[0], masks, BFLOAT16)
    assert_same_ranking(answer.iou[0], iou)


@pytest.mark.parametrize("width, heads", [(768, 12), (1024, 16), (1280, 16)])
def test_sam_encoders_of_every_width(width, heads):
    """ViT-B, L and H, two blocks a group, at 224 x 304 px of their 1024 px tables."""
    config = SamConfig(ImageEncoderConfig(width, 8, heads, mlp_width=4 * width))
    original = originals.randomise(originals.sam(config))
    params = converted(config, weights_of(original))
    images = make_goldens.photographs(np.random.default_rng(0), 1, 224, 304)
    expected = make_goldens.encode(originals.resize_sam(original, (224, 304)), images)
    output = call(config, params, lambda sam, images: sam.encode(images), images)
    assert_close(output.tokens, expected["tokens"], MODULE)
    assert_close(output.embedding, expected["embedding"], MODULE)


def test_sam_gradients():
    """Of every weight, for a loss on masks and IoU: training needs more than equal outputs."""
    config = make_goldens.SAM
    original = originals.randomise(originals.sam(config))
    params = converted(config, weights_of(original))
    theirs, ours = prompted((64, 64))
    with torch.enable_grad():
        masks, iou = predict(original, make_goldens.encode(original, ours[0])["embedding"], theirs)
        (masks.square().mean() + iou.square().mean()).backward()
    slopes = {name: torch.zeros_like(value) for name, value in original.state_dict().items()}
    for name, value in original.named_parameters():
        if value.grad is not None:  # no mask prompt was given
            slopes[name] = value.grad
    expected = converted(config, {name: value.numpy() for name, value in slopes.items()})

    def gradients(sam, *prompt):
        graph, params = models.split(sam)

        def loss(params):
            _, answer = photograph_to_masks()(models.merge(graph, params), *prompt)
            return jnp.square(answer.low_res_masks).mean() + jnp.square(answer.iou).mean()

        return jax.grad(loss)(params)

    found = call(config, params, gradients, *ours)
    largest = max(np.abs(value).max() for value in expected.values())
    for name in expected.keys() - {"prompt_encoder/gaussian"}:  # a buffer
        allowed = END_TO_END * np.abs(expected[name]).max() + 1e-7 * largest
        assert np.abs(found[name] - expected[name]).max() <= allowed, name


@pytest.mark.parametrize("box", [False, True])
def test_huggingface_sam(box):
    """SamModel with points, a box and a mask prompt: single mask, then the three others."""
    config = make_goldens.SAM
    original = originals.randomise(originals.huggingface_sam(config))
    params = converted(config, weights_of(original))
    theirs, (images, points, labels) = prompted((64, 64), box)
    masks = np.random.default_rng(1).standard_normal((1, 2, 32, 32), np.float32)
    encoder = config.encoder
    pixels = (images - np.float32(encoder.mean)) / np.float32(encoder.std)
    given = {
        "pixel_values": make_goldens.channels_first(pixels),
        "input_points": theirs["points"][0][None],
        "input_labels": theirs["points"][1][None],
    }
    if box:
        given["input_boxes"] = theirs["boxes"][None]
    several, single = (original(**given, multimask_output=many) for many in (True, False))
    _, answer = call(config, params, photograph_to_masks(), images, points, labels)
    expected = torch.cat([single.pred_masks, several.pred_masks], 2)
    assert_close(answer.low_res_masks, expected, END_TO_END)
    expected = torch.cat([single.iou_scores, several.iou_scores], 2)
    assert_close(answer.iou, expected, END_TO_END)

    # Hugging Face takes one mask prompt an image.
    dense = original.prompt_encoder.mask_embed(torch.from_numpy(masks[0, :, None]))
    found = call(config, params, lambda sam, masks: sam.prompt_encoder.masks(masks), masks)
    assert_close(found[0], make_goldens.channels_last(dense), MODULE)


def config_of(name, depth=None):
    """ClipConfig of OpenCLIP's model `name`, at full or reduced depth."""
    values = originals.open_clip.get_model_config(name)
    vision, text = values["vision_cfg"], values["text_cfg"]
    activation = "quick_gelu" if values.get("quick_gelu") else "gelu"
    return ClipConfig(
        ClipVisionConfig(
            width=vision["width"],
            depth=depth or vision["layers"],
            heads=vision["width"] // vision.get("head_width", 64),
            mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4)),
            patch=vision["patch_size"],
            image_size=vision["image_size"],
            embed_dim=values["embed_dim"],
            activation=activation,
        ),
        ClipTextConfig(
            width=text["width"],
            depth=depth or text["layers"],
            heads=text["heads"],
            mlp_width=4 * text["width"],
            vocab_size=text["vocab_size"],
            embed_dim=values["embed_dim"],
            activation=activation,
        ),
    )


def assert_same_embeddings(config, original, encode_image, encode_text):
    """Of both towers, as unit vectors."""
    params = converted(config, weights_of(original))
    images, tokens = make_goldens.clip_case(config, np.random.default_rng(0))
    image, text = call(
        config,
        params,
        lambda clip, images, tokens: (clip.encode_image(images), clip.encode_text(tokens)),
        images,
        tokens,
    )
    pixels = make_goldens.normalised(images, config)
    expected_image = encode_image(pixels)
    expected_text = encode_text(torch.from_numpy(tokens).long())
    assert_close(image, F.normalize(expected_image), END_TO_END)
    assert_close(text, F.normalize(expected_text), END_TO_END)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_openclip_in_full(name):
    config = config_of(name)
    with originals.torchvision_absent():
        original = originals.open_clip.create_model(name)
    original = originals.randomise(original.eval())
    assert_same_embeddings(config, original, original.encode_image, original.encode_text)


REDUCED = (
    "ViT-S-32 ViT-M-16 ViT-B-16 ViT-B-32-256 ViT-B-16-plus-240 ViT-B-32-quickgelu ViT-L-14 "
    "ViT-L-14-336 ViT-L-14-quickgelu ViT-L-16 ViT-H-14 ViT-g-14 ViT-bigG-14 ViT-e-14"
).split()


@pytest.mark.parametrize("name", REDUCED)
def test_openclip_of_every_width(name):
    """Two layers of every tower of OpenCLIP's and OpenAI's ViTs."""
    config = config_of(name, depth=2)
    original = originals.randomise(originals.openclip(config))
    assert_same_embeddings(config, original, original.encode_image, original.encode_text)


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-L-14"])
def test_huggingface_clip(name):
    """CLIPModel, two layers of the towers that OpenAI released."""
    config = config_of(name, depth=2)
    original = originals.randomise(originals.huggingface_clip(config))
    assert_same_embeddings(
        config,
        original,
        lambda pixels: original.visual_projection(original.vision_model(pixels).pooler_output),
        lambda tokens: original.text_projection(original.text_model(tokens).pooler_output),
    )
