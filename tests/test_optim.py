"""optim.py: freezing, factors, decay and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samclip_jax import families, models, optim
from samclip_jax.config import OptimizerConfig
from samclip_jax.errors import UserError
from samclip_jax.models.config import SamClipConfig

CONFIG = OptimizerConfig(
    learning_rate=1e-2,
    end_learning_rate=1e-4,
    warmup_steps=10,
    schedule_steps=100,
    weight_decay=0.1,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    clip_norm=0.0,
)
NAMES = (
    "encoder/qkv/kernel",
    "encoder/qkv/bias",
    "prompt_encoder/no_mask",
    "heads/clip/mlp/kernel",
)
PARAMS = {name: jnp.ones(3) for name in NAMES}
FACTORS = (("heads", 1.0), ("encoder|mask_decoder", 0.1), (".*", None))


def test_partition_freezes_by_the_first_regex_at_the_start_of_the_name():
    """`encoder` must not catch prompt_encoder, which the paper keeps frozen."""
    used = (("heads", 1.0), ("encoder", 0.1), (".*", None))
    trainable, frozen, factors = optim.partition(PARAMS, used)
    assert set(frozen) == {"prompt_encoder/no_mask"}
    assert factors == {NAMES[0]: 0.1, NAMES[1]: 0.1, NAMES[3]: 1.0}
    assert set(trainable) == set(factors)


@pytest.mark.parametrize(
    "lr_factors, message",
    [
        ((("encoder", 1.0),), "no regex matches"),
        ((("decoder", 1.0), (".*", None)), "matches no parameter"),
        (((".*", None),), "nothing to train"),
    ],
)
def test_partition_names_what_is_wrong(lr_factors, message):
    with pytest.raises(UserError, match=message):
        optim.partition(PARAMS, lr_factors)


def test_every_kernel_is_decayed_and_nothing_else():
    """By the names of a merged model: matrices and convolutions, no table, token, norm or bias."""
    names = models.split(families.abstract(SamClipConfig()))[1]
    decayed = {name for name in names if optim.is_decayed(name)}
    assert {name.rpartition("/")[2] for name in names.keys() - decayed} == {
        "bias", "scale", "pos_embed", "rel_pos_h", "rel_pos_w", "gaussian", "point_embeddings",
        "not_a_point", "no_mask", "iou_token", "mask_tokens", "token_embed", "logit_scale",
    }  # fmt: skip
    assert len(decayed) == 66 and "encoder/neck/conv2/kernel" in decayed


def test_one_update_is_adamw_times_the_factor():
    """Adam's first update has size 1; decay acts on kernels, the factor on both."""
    trainable, _, factors = optim.partition(PARAMS, FACTORS[:1] + (("encoder", 0.1), (".*", None)))
    tx = optim.adamw(OptimizerConfig(**{**vars(CONFIG), "warmup_steps": 0}), factors)
    grads = {name: jnp.full(3, 5.0) for name in trainable}
    updates, _ = tx.update(grads, tx.init(trainable), trainable)
    expected = {NAMES[0]: 0.1 * 1.1, NAMES[1]: 0.1 * 1.0, NAMES[3]: 1.1}
    for name, size in expected.items():
        np.testing.assert_allclose(updates[name], -1e-2 * size, rtol=1e-4)


def test_the_schedule_warms_up_and_ends_low():
    schedule = optim.schedule(CONFIG)
    values = [float(schedule(step)) for step in (0, 5, 10, 100, 1000)]
    np.testing.assert_allclose(values, [0, 5e-3, 1e-2, 1e-4, 1e-4], rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_of_a_batch_give_the_same_gradient(axis):
    rng = np.random.default_rng(0)
    weight, batch = jnp.ones(3), {"x": jnp.float32(rng.normal(size=(8, 12, 3)))}

    def gradient(batch):
        return jax.grad(lambda w: jnp.square(batch["x"] @ w).mean())(weight), {"rows": 1.0}

    whole, _ = optim.mean_over_parts(gradient, batch, 1, axis)
    parts, metrics = optim.mean_over_parts(gradient, batch, 4, axis)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert metrics["rows"] == 1
    with pytest.raises(UserError, match="does not divide into 5"):
        optim.mean_over_parts(gradient, batch, 5, axis)
