"""Model configs go to JSON and back, and say what is wrong with one that does not."""

import json

import pytest

from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    ClipConfig,
    ClipHeadConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    SamClipConfig,
    SamConfig,
    from_dict,
    to_dict,
)


@pytest.mark.parametrize(
    "config",
    [
        SamConfig(ImageEncoderConfig(width=1280, depth=32, heads=16, mlp_width=5120)),
        ClipConfig(ClipVisionConfig(activation="quick_gelu", embed_dim=None, mean=(1.0, 2.0, 3.0))),
        SamClipConfig(clip_head=ClipHeadConfig(pooling="mean"), text=ClipTextConfig(width=512)),
    ],
)
def test_json_round_trip(config):
    """Equal and of the same types: tuples come back as tuples."""
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert hash(back) == hash(config)


def test_missing_keys_are_defaults():
    assert from_dict({"kind": "sam"}) == SamConfig()
    assert from_dict({"kind": "sam", "encoder": {"depth": 24}}).encoder.depth == 24


@pytest.mark.parametrize(
    "values, named",
    [
        ({"kind": "sam", "encoder": {"windows": 7}}, ["sam.encoder", "'windows'", "'window'"]),
        ({"kind": "clip", "visual": {}}, ["'visual'", "vision, text"]),
        ({"kind": "samclip", "clip_head": {"zzz": 1}}, ["samclip.clip_head", "'zzz'"]),
        ({"kind": "dino"}, ["sam, clip, samclip", "'dino'"]),
        ({}, ["kind", "None"]),
    ],
)
def test_unknown_keys_and_kinds_are_named(values, named):
    with pytest.raises(UserError) as error:
        from_dict(values)
    for words in named:
        assert words in str(error.value)


@pytest.mark.parametrize(
    "sizes",
    [{"depth": 10}, {"depth": 4}, {"heads": 7}, {"image_size": 1000}],
)
def test_an_encoder_whose_sizes_do_not_divide_is_refused(sizes):
    with pytest.raises(UserError, match="must divide"):
        ImageEncoderConfig(**sizes)
