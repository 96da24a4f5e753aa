"""Configs are built from what a user gives, and say what is wrong with one that is not right.

Model configs go to JSON and back.
"""

import functools
import importlib
import json

import pytest

from samclip_jax.config import STREAM, OptimizerConfig, TrainConfig, build
from samclip_jax.demo_stages import get_config
from samclip_jax.errors import UserError
from samclip_jax.evals import EVALUATORS, read_options
from samclip_jax.families import from_dict, to_dict
from samclip_jax.models.config import (
    ClipConfig,
    ClipHeadConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    SamClipConfig,
    SamConfig,
)
from samclip_jax.streams import KINDS


@pytest.mark.parametrize(
    "config",
    [
        SamConfig(ImageEncoderConfig(width=1280, depth=32, heads=16, mlp_width=5120)),
        ClipConfig(ClipVisionConfig(activation="quick_gelu", embed_dim=None, mean=(1.0, 2.0, 3.0))),
        SamClipConfig(
            heads={"clip": ClipHeadConfig(pooling="mean"), "other": ClipHeadConfig(depth=1)},
            text=ClipTextConfig(width=512),
        ),
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
        ({"kind": "samclip", "heads": {"other": {}}}, ["one named clip", "other"]),
        ({"kind": "samclip", "heads": {"a": {"zzz": 1}}}, ["samclip.heads.a", "'zzz'"]),
        ({"kind": "dino"}, ["sam, clip, samclip", "'dino'"]),
        ({}, ["kind", "None"]),
        ({"kind": "sam", "encoder": {"groups": 0}}, ["sam.encoder.groups must be", "got 0"]),
        ({"kind": "clip", "vision": {"std": [1, 0, 1]}}, ["clip.vision.std must be", "above 0"]),
    ],
)
def test_unknown_keys_kinds_and_values_are_named(values, named):
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


NAN = float("nan")


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("optimizer.b1", 2, "--config.optimizer.b1 must be a number of at least 0 and below 1, "),
        ("optimizer.learning_rate", NAN, "--config.optimizer.learning_rate must be a number of"),
        ("optimizer.weight_decay", -1, "--config.optimizer.weight_decay must be a number of"),
        ("optimizer", 3, "--config.optimizer must be a dictionary, got 3"),
        ("terms.clip.weight", NAN, "--config.terms.clip.weight must be a number of at least 0"),
        ("terms", [], "--config.terms must be a dictionary"),
        ("mask_loss.targets", "hard", "--config.mask_loss.targets must be soft or binary, "),
        ("heads.clip.depth", 1.5, "--config.heads.clip.depth must be a whole number"),
        ("streams.clip.workers", -1, "--config.streams.clip.workers must be a whole number"),
        ("streams.clip", {"kind": "clip"}, "--config.streams.clip lacks the key 'workers'"),
        ("eval_every", -1, "--config.eval_every must be a whole number of at least 0, got -1"),
        ("steps", "many", "--config.steps must be a whole number of at least 1, got 'many'"),
        ("fsdp", True, "--config.fsdp must be a whole number of at least 1, got True"),
        ("remat", 1, "--config.remat must be True or False, got 1"),
        ("seed", -1, "--config.seed must be a whole number of at least 0 and below 4294967296"),
    ],
)
def test_a_value_that_cannot_be_is_named(key, value, sentence):
    values = get_config("stage2").to_dict()
    *groups, last = key.split(".")
    functools.reduce(dict.__getitem__, groups, values)[last] = value
    with pytest.raises(UserError) as error:
        build(TrainConfig, values, "--config")
    assert str(error.value).startswith(sentence)


def test_nothing_is_a_value_where_it_says_so():
    """0 workers, no clipping, no warm-up and no evaluation before the end."""
    values = get_config("stage2").to_dict()
    values["optimizer"] |= {"clip_norm": 0, "warmup_steps": 0}
    values["streams"]["clip"]["workers"] = values["eval_every"] = 0
    config = build(TrainConfig, values, "--config")
    assert isinstance(config.optimizer, OptimizerConfig)


def test_every_experiment_can_be_built():
    for name in ("stage1", "stage2", "stage3", "distill_only"):
        for module, arguments in ((f"configs.{name}", ()), ("configs.demo", (name,))):
            values = importlib.import_module(module).get_config(*arguments)
            config = build(TrainConfig, values.to_dict(), "--config")
            for stream in config.streams.values():
                options = {k: v for k, v in stream.items() if k not in STREAM}
                build(KINDS[stream["kind"]], options, "--config.streams")


@pytest.mark.parametrize("task", EVALUATORS)
def test_every_evaluation_can_be_built(task):
    values = importlib.import_module("configs.eval").get_config(task).to_dict()
    others = ("data", "dtype", "wise_ft", "baseline")
    options = {k: v for k, v in values.items() if k not in others}
    assert read_options("--config.", **options).keys() == options.keys() - {"task"}
