"""detect.py: kind and size from shapes, the rest from the files beside the weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from releases import (
    CLIP,
    OPEN_CLIP_JSON,
    SAM,
    WORDS,
    assert_same,
    leaves,
    released,
    save_clip,
    vocabulary,
)

from samclip_jax.convert import clip, export, sam
from samclip_jax.convert.apply import import_weights
from samclip_jax.convert.detect import detect
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    SamConfig,
)

CLIP_MODEL_JSON = {
    "config.json": {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": 3, "hidden_act": "quick_gelu"},
        "text_config": {"num_attention_heads": 2, "hidden_act": "quick_gelu"},
    },
    "preprocessor_config.json": {"image_mean": [0.5] * 3, "image_std": [0.2] * 3},
}


SIZES = {
    "SAM ViT-B": SamConfig(),
    "SAM ViT-L": SamConfig(ImageEncoderConfig(1024, 24, 16, mlp_width=4096)),
    "SAM ViT-H": SamConfig(ImageEncoderConfig(1280, 32, 16, mlp_width=5120)),
    "SAM ViT-24x6": SAM,
    "CLIP ViT-L/14": ClipConfig(),
    "CLIP ViT-B/32": ClipConfig(
        ClipVisionConfig(768, 12, 12, 3072, 32, 224, 512),
        ClipTextConfig(512, 12, 8, 2048, embed_dim=512),
    ),
    "CLIP ViT-g/14": ClipConfig(
        ClipVisionConfig(1408, 40, 16, 6144, 14, 224, 1024),
        ClipTextConfig(1024, 24, 16, 4096, embed_dim=1024),
    ),
    "CLIP ViT-bigG/14": ClipConfig(
        ClipVisionConfig(1664, 48, 16, 8192, 14, 224, 1280),
        ClipTextConfig(1280, 32, 20, 5120, embed_dim=1280),
    ),
    "CLIP ViT-S/16": ClipConfig(
        ClipVisionConfig(384, 12, 6, 1536, 16, 224, None),
        ClipTextConfig(384, 12, 6, 1536, embed_dim=None),
    ),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_size_is_seen_in_the_shapes(size, tmp_path):
    """Every layout, without a file beside the weights."""
    config = SIZES[size]
    blank = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in leaves(config).items()}
    family = sam if isinstance(config, SamConfig) else clip
    for layout in family.LAYOUTS:
        tensors = export.released(layout, blank)
        shapes = {name: tensors[key].shape for name, key in layout.names(tensors).items()}
        quick_gelu = None if config == SAM else False
        found, assumed = detect(family, layout, shapes, tmp_path / "weights", quick_gelu)
        assert (found, family.size_name(found)) == (config, size)
        assert (assumed == []) == (layout is sam.SEGMENT_ANYTHING)


def test_what_shapes_do_not_tell_is_read_beside_the_weights(tmp_path):
    clip_folder = save_clip(tmp_path / "clip")
    config, params, tokenizer, source = import_weights(clip_folder)
    assert (config, source["assumed"]) == (CLIP, [])
    assert_same(params, CLIP)
    assert json.loads(tokenizer)["model"] == json.loads(vocabulary(WORDS))["model"]


def test_hugging_face_tells_it_in_its_own_files(tmp_path):
    export.write_safetensors(tmp_path / "model.safetensors", released(clip.CLIP_MODEL, CLIP))
    for name, described in CLIP_MODEL_JSON.items():
        (tmp_path / name).write_text(json.dumps(described))
    (tmp_path / "tokenizer.json").write_text(vocabulary(WORDS))
    config, params, _, source = import_weights(tmp_path)
    assert (config, source["assumed"]) == (CLIP, [])
    assert_same(params, CLIP)


QUICK = "quick_gelu activations in the {} tower (else --quick_gelu, --no-quick_gelu)"


OLD_FILES = [
    ({"vision_config_dict": {"num_attention_heads": 2}}, [QUICK.format("image")]),
    ({"vision_config_dict": {"num_attention_heads": 2, "hidden_act": "gelu"}}, []),
    ({"vision_config_dict": {}}, ["12 heads in the image tower", QUICK.format("image")]),
    ({"text_config_dict": {}}, ["8 heads in the text tower", QUICK.format("text")]),
    (
        {"vision_config": None, "text_config": {"num_attention_heads": 2}},
        ["12 heads in the image tower", QUICK.format("image"), QUICK.format("text")],
    ),
]


def detected_clip_model(described, folder):
    """detect() of the tiny CLIP as CLIPModel, with this config.json."""
    (folder / "config.json").write_text(json.dumps(described))
    processor = CLIP_MODEL_JSON["preprocessor_config.json"]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    tensors = released(clip.CLIP_MODEL, CLIP)
    names = clip.CLIP_MODEL.names(tensors)
    shapes = {name: tensors[key].shape for name, key in names.items()}
    return detect(clip, clip.CLIP_MODEL, shapes, folder / "model.safetensors")


@pytest.mark.parametrize("described, assumed", OLD_FILES)
def test_old_descriptions_of_a_tower_count_alone(described, assumed, tmp_path):
    """What they leave out has transformers' default, and is reported."""
    described = CLIP_MODEL_JSON["config.json"] | described
    config, reported = detected_clip_model(described, tmp_path)
    assert reported == assumed
    old = described.get("vision_config_dict") or {}
    if "num_attention_heads" in old:
        assert config.vision.heads == old["num_attention_heads"]
        assert config.vision.activation == old.get("hidden_act", "quick_gelu")


@pytest.mark.oracle
@pytest.mark.parametrize("described, assumed", OLD_FILES)
def test_old_hugging_face_files_are_read_as_transformers_reads_them(described, assumed, tmp_path):
    import transformers

    new = {"vision_config": {"num_attention_heads": 3, "hidden_act": "gelu"}}
    new["text_config"] = {"num_attention_heads": 2, "hidden_act": "gelu"}
    described = {"model_type": "clip"} | new | described
    config, _ = detected_clip_model(described, tmp_path)
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(described)))
    for tower in ("vision", "text"):
        ours, expected = getattr(config, tower), getattr(theirs, f"{tower}_config")
        assert ours.heads == expected.num_attention_heads
        assert ours.activation == expected.hidden_act


def test_an_epsilon_that_clip_does_not_have_is_refused(tmp_path):
    described = CLIP_MODEL_JSON["config.json"] | {"text_config": {"layer_norm_eps": 1e-6}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    export.write_safetensors(tmp_path / "model.safetensors", released(clip.CLIP_MODEL, CLIP))
    with pytest.raises(UserError, match="config.json: layer_norm_eps must be 1e-5"):
        import_weights(tmp_path)


def test_what_is_assumed_of_a_sam_is_reported(tmp_path):
    export.write_safetensors(tmp_path / "model.safetensors", released(sam.SAM_MODEL, SAM))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    processor = {"image_std": [0.2] * 3, "size": {"longest_edge": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    config, _, _, source = import_weights(tmp_path)
    assert [line.split()[:2] for line in source["assumed"]] == [
        ["8", "heads"],
        ["mean", "(123.675,"],
        ["size", "{'longest_edge':"],
    ]
    assert config.encoder.std == (51.0,) * 3


def test_what_is_assumed_is_said_and_can_be_overruled(tmp_path):
    """Width 24 is no published size: without its config file the heads are unknown."""
    clip_folder = save_clip(tmp_path / "clip")
    weights = clip_folder / "open_clip_model.safetensors"
    (clip_folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match="put the model's open_clip_config.json beside"):
        import_weights(weights)
    towers = OPEN_CLIP_JSON["model_cfg"] | {"quick_gelu": None}
    (clip_folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers}))
    config, _, _, source = import_weights(weights, quick_gelu=True)
    assert config.text.activation == config.vision.activation == "quick_gelu"
    assert [line.split()[0] for line in source["assumed"]] == ["mean", "std"]
    config, _, _, source = import_weights(weights)
    assert config.vision.activation == "gelu"
    assert [line.split()[0] for line in source["assumed"]] == ["gelu", "gelu", "mean", "std"]


@pytest.mark.parametrize(
    "view, ours",
    [
        ({"resize_mode": "squash"}, "resize_mode 'shortest'"),
        ({"resize_mode": "longest"}, "resize_mode 'shortest'"),
        ({"interpolation": "bilinear"}, "interpolation 'bicubic'"),
        ({"size": 48}, "size 32"),
        ({"size": [32, 32], "resize_mode": "shortest", "interpolation": "bicubic"}, None),
    ],
)
def test_another_view_of_open_clip_is_reported(view, ours, tmp_path):
    clip_folder = save_clip(tmp_path / "clip")
    described = json.loads((clip_folder / "open_clip_config.json").read_text())
    described["preprocess_cfg"] |= view
    (clip_folder / "open_clip_config.json").write_text(json.dumps(described))
    *_, source = import_weights(clip_folder)
    (theirs, *_) = view.values()
    said = f"{ours}, though a file beside the weights has {theirs!r}"
    assert source["assumed"] == ([said] if ours else [])


@pytest.mark.parametrize(
    "processor, reported",
    [
        ({"do_center_crop": False}, ["do_center_crop True, though a file .* has False"]),
        ({"resample": 2}, ["resample 3, though a file .* has 2"]),
        ({"do_resize": False}, ["do_resize True, though a file .* has False"]),
        ({"rescale_factor": 1 / 127.5}, ["rescale_factor 0.0039.*, though a file .* has 0.0078"]),
        ({"size": {"height": 32, "width": 32}}, ["size {'shortest_edge': 32}, though a file .*"]),
        ({"size": 32, "crop_size": {"height": 32, "width": 32}, "rescale_factor": 1 / 255}, []),
        ({"do_center_crop": True, "resample": 3, "do_normalize": True}, []),
    ],
)
def test_another_view_of_hugging_face_is_reported(processor, reported, tmp_path, monkeypatch):
    beside = CLIP_MODEL_JSON["preprocessor_config.json"] | processor
    monkeypatch.setitem(CLIP_MODEL_JSON, "preprocessor_config.json", beside)
    _, assumed = detected_clip_model(CLIP_MODEL_JSON["config.json"], tmp_path)
    assert len(assumed) == len(reported)
    assert all(map(re.match, reported, assumed))


def test_pixels_that_are_not_normalised_are_in_0_to_1(tmp_path, monkeypatch):
    beside = CLIP_MODEL_JSON["preprocessor_config.json"] | {"do_normalize": False}
    monkeypatch.setitem(CLIP_MODEL_JSON, "preprocessor_config.json", beside)
    config, assumed = detected_clip_model(CLIP_MODEL_JSON["config.json"], tmp_path)
    assert (config.vision.mean, config.vision.std, assumed) == ((0.0,) * 3, (255.0,) * 3, [])


@pytest.mark.parametrize(
    "tower, field, value",
    [("vision_cfg", "pool_type", "avg"), ("vision_cfg", "timm_model_name", "vit"),
     ("text_cfg", "hf_tokenizer_name", "bert"), ("text_cfg", "no_causal_mask", True)],
)  # fmt: skip
def test_another_architecture_is_refused_by_its_name(tower, field, value, tmp_path):
    clip_folder = save_clip(tmp_path / "clip")
    described = json.loads((clip_folder / "open_clip_config.json").read_text())
    described["model_cfg"][tower][field] = value
    (clip_folder / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"{tower}.{field} = {value!r}: only towers as OpenAI"):
        import_weights(clip_folder)


@pytest.mark.oracle
@pytest.mark.parametrize("size", ["vit_b", "vit_l", "vit_h"])
def test_released_sams_are_detected(size, tmp_path):
    import originals
    import torch

    with originals.torchvision_absent():
        from segment_anything import sam_model_registry
    with torch.device("meta"):
        state_dict = sam_model_registry[size]().state_dict()
    expected = SIZES[f"SAM ViT-{size[-1].upper()}"]
    assert detected(state_dict, tmp_path) == (expected, [])


def open_clip_models():
    """The plain ViT models of OpenCLIP, OpenAI's among them: {name: description}."""
    try:
        import originals

        with originals.torchvision_absent():
            import open_clip
    except ImportError:
        return {}
    folder = Path(open_clip.__file__).parent / "model_configs"
    described = {path.stem: json.loads(path.read_text()) for path in folder.glob("ViT-*.json")}
    return {
        name: model
        for name, model in sorted(described.items())
        if model["text_cfg"].keys() <= {*"context_length vocab_size width heads layers".split()}
        and "ls_init_value" not in model["vision_cfg"]
    }


@pytest.mark.oracle
@pytest.mark.parametrize("beside", [True, False], ids=["config", "alone"])
def test_released_clips_are_detected(beside, tmp_path):
    """With the config file and, but for the activation, without it."""
    import open_clip.model
    import torch

    released_models = open_clip_models()
    assert len(released_models) > 20
    for name, model in released_models.items():
        with torch.device("meta"):
            state_dict = open_clip.model.CLIP(**model).state_dict()
        if beside:
            described = json.dumps({"model_cfg": model})
            (tmp_path / "open_clip_config.json").write_text(described)
        config, _ = detected(state_dict, tmp_path)
        vision, text = model["vision_cfg"], model["text_cfg"]
        heads = vision["width"] // vision.get("head_width", 64)
        assert config.vision.heads == heads, name
        assert config.vision.image_size == vision["image_size"], name
        assert config.text.heads == text["heads"], name
        if beside:
            quick = model.get("quick_gelu", False)
            assert config.vision.activation == ("quick_gelu" if quick else "gelu"), name


def detected(state_dict, folder):
    """detect() of a state dict on torch's meta device; every tensor has its place."""
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    layouts = ((family, layout) for family in (sam, clip) for layout in family.LAYOUTS)
    family, layout = next(pair for pair in layouts if pair[1].signature in shapes)
    names = layout.names(shapes)
    named = {name: shapes[key] for name, key in names.items()}
    config, assumed = detect(family, layout, named, folder / "weights")
    blank = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in leaves(config).items()}
    assert {key: x.shape for key, x in export.released(layout, blank).items()} == shapes
    return config, assumed
