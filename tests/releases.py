"""Tiny models with random weights, in the layouts and files in which others release them."""

import functools
import json

import numpy as np
import tokenizers

from samclip_jax import families, models
from samclip_jax.convert import clip, export, sam
from samclip_jax.convert.__main__ import main
from samclip_jax.models.config import (
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
)

SAM = SamConfig(
    ImageEncoderConfig(
        width=24, depth=6, heads=3, groups=2, patch=12, image_size=96, window=5, mlp_width=40,
        out_channels=32,
    ),
    MaskDecoderConfig(mlp_width=48, iou_width=20),
)  # fmt: skip
CLIP = ClipConfig(
    ClipVisionConfig(
        width=24, depth=2, heads=3, mlp_width=40, patch=8, image_size=32, embed_dim=20,
        activation="quick_gelu", mean=(127.5, 127.5, 127.5), std=(51.0, 51.0, 51.0),
    ),
    ClipTextConfig(
        width=16, depth=3, heads=2, mlp_width=48, context_length=16, vocab_size=6, embed_dim=20,
        activation="quick_gelu",
    ),
)  # fmt: skip
OPEN_CLIP_JSON = {
    "model_cfg": {
        "embed_dim": 20,
        "quick_gelu": True,
        "vision_cfg": {"width": 24, "head_width": 8, "layers": 2, "pool_type": "tok"},
        "text_cfg": {"width": 16, "heads": 2, "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3},
}
WORDS = ["?", "a", "dog", "cat", "<|startoftext|>", "<|endoftext|>"]


def vocabulary(words):
    """A tokenizer that knows these words, the last one the end token."""
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer.to_str()


@functools.cache
def leaves(config):
    return models.split(families.abstract(config))[1]


def random_params(config):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(x.shape, np.float32) for name, x in leaves(config).items()}


def released(layout, config):
    """{key: array} as a layout has the random model of a config."""
    return export.released(layout, random_params(config))


def assert_same(params, config):
    expected = random_params(config)
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)


def save_sam(path):
    """A tiny SAM as Meta would release it."""
    export.write_torch(path, released(sam.SEGMENT_ANYTHING, SAM))
    return path


def save_clip(folder):
    """A tiny CLIP as OpenCLIP would release it, with the tokenizer beside it."""
    folder.mkdir()
    tensors = released(clip.OPEN_CLIP, CLIP)
    export.write_safetensors(folder / "open_clip_model.safetensors", tensors)
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_JSON))
    (folder / "tokenizer.json").write_text(vocabulary(WORDS))
    return folder


def run(*arguments):
    """The command line in this process: the sentence that it ends with, or None."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        return str(error.code)
    return None
