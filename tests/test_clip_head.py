"""The CLIP head equals SAM-CLIP's appendix A, told in torch of segment_anything's blocks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from parity import BFLOAT16, MODULE, assert_close, call, golden

from samclip_jax import families, models
from samclip_jax.convert import rules, sam

NORM_AND_MLP = rules.rules(
    ("heads/clip/norm", rules.NORM, "norm"),
    ("heads/clip/mlp/fc1", rules.LINEAR, "mlp.0"),
    ("heads/clip/mlp/fc2", rules.LINEAR, "mlp.2"),
    ("heads/clip/mlp/fc3", rules.LINEAR, "mlp.4"),
)
BLOCKS = rules.rules(*sam.encoder_blocks("blocks.{}", "norm"))


@pytest.fixture(scope="module")
def params():
    """The original's weights as ours; its blocks come through the encoder's rules."""
    original = golden("clip_head")
    graph, abstract = models.split(families.abstract(original.config))
    params = {name: np.zeros(leaf.shape, np.float32) for name, leaf in abstract.items()}
    for rule in NORM_AND_MLP:
        rule.view(params[rule.name])[...] = original.weights[rule.key]
    for rule in BLOCKS:
        stacked = params[rule.name.replace("encoder/blocks/{}", "heads/clip/blocks")]
        for i, block in enumerate(stacked):
            rule.view(block)[...] = original.weights[rule.key.format(i)]
    return params


def head(model, tokens):
    return model.text_head(tokens)


@pytest.mark.parametrize("grid", ["8x8", "7x11"])
def test_head_matches_the_original(params, grid):
    """`pooled` is max-pool, LayerNorm, MLP; `dense` is LayerNorm, MLP of every patch."""
    original = golden("clip_head")
    case = original.case(grid)
    output = call(original.config, params, head, case["tokens"])
    assert_close(output.pooled, case["pooled"], MODULE)
    assert_close(output.dense, case["dense"], MODULE)


def test_head_in_bfloat16_is_close(params):
    original = golden("clip_head")
    case = original.case("7x11")
    output = call(original.config, params, head, case["tokens"].astype(jnp.bfloat16))
    assert_close(output.pooled, case["pooled"], BFLOAT16)
    assert_close(output.dense, case["dense"], BFLOAT16)


def test_pooling_may_be_the_mean(params):
    """With an MLP that is the identity on one channel, the mean of what the norm sees."""
    original = golden("clip_head")
    tokens = original.case("8x8")["tokens"]
    outputs = {}
    for pooling in ("max", "mean"):
        mean_or_max = dataclasses.replace(original.config.heads["clip"], pooling=pooling)
        config = dataclasses.replace(original.config, heads={"clip": mean_or_max})
        outputs[pooling] = call(config, params, head, tokens)
    np.testing.assert_array_equal(outputs["max"].dense, outputs["mean"].dense)
    assert np.abs(outputs["max"].pooled - outputs["mean"].pooled).max() > 0.1
