"""losses.py: eq. 1 and eq. 2, their ranges, edge cases and fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samclip_jax import losses
from samclip_jax.config import MaskLossConfig
from samclip_jax.errors import UserError
from samclip_jax.models.mask_decoder import MaskOutput

SOFT = MaskLossConfig(
    focal=20.0,
    dice=1.0,
    iou=1.0,
    focal_alpha=0.25,
    focal_gamma=2.0,
    targets="soft",
    padding=True,
    tokens=(1, 1, 1, 1),
)


def outputs(seed, scale=3.0):
    rng = np.random.default_rng(seed)
    masks = rng.normal(size=(2, 3, 4, 8, 8)) * scale
    return MaskOutput(jnp.float32(masks), jnp.float32(rng.random((2, 3, 4))))


def test_cosine_distance_ignores_length_and_spans_0_to_2():
    x = jnp.array([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    y = jnp.array([[6.0, 8.0], [0.0, 9.0], [-2.0, 0.0]])
    np.testing.assert_allclose(losses.cosine_distance(x, y), [0, 1, 2], atol=1e-6)


def test_a_zero_vector_has_distance_1_and_no_gradient():
    x, y = jnp.zeros((1, 4)), jnp.ones((1, 4))
    value, gradient = jax.value_and_grad(lambda x: losses.cosine_distance(x, y).sum())(x)
    assert value == 1 and not gradient.any()


def test_the_teacher_gets_no_gradient():
    x, y = jnp.ones((1, 4)), jnp.arange(4.0)[None]
    assert not jax.grad(lambda y: losses.cosine_distance(x, y).sum())(y).any()
    student, teacher = outputs(0), outputs(1)
    gradient = jax.grad(lambda t: losses.mask_distillation(student, t, SOFT)[0])(teacher)
    assert not any(leaf.any() for leaf in gradient)


def test_soft_targets_are_met_exactly_where_the_student_is_the_teacher():
    """Calibration survives: the gradient vanishes at the teacher, and only there."""
    teacher = outputs(0)

    def loss(student):
        return losses.mask_distillation(student, teacher, SOFT)[0]

    at_teacher, elsewhere = jax.grad(loss)(teacher), jax.grad(loss)(outputs(1))
    assert jnp.abs(at_teacher.low_res_masks).max() < 1e-7
    assert jnp.abs(elsewhere.low_res_masks).max() > 1e-4
    assert loss(teacher) < loss(outputs(1))


def test_focal_is_the_usual_one_on_binary_targets():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(5, 6, 6)) * 3, rng.integers(0, 2, (5, 6, 6))
    p = 1 / (1 + np.exp(-logits))
    p_t = np.where(target, p, 1 - p)
    expected = -np.where(target, 0.25, 0.75) * (1 - p_t) ** 2 * np.log(p_t)
    found = losses.focal(jnp.float32(logits), jnp.float32(target), 0.25, 2.0)
    np.testing.assert_allclose(found, expected.mean((-2, -1)), rtol=1e-4)


def test_dice_is_0_for_the_same_mask_and_near_1_for_disjoint_ones():
    target = jnp.zeros((2, 16, 16)).at[:, :8].set(1.0)
    logits = jnp.where(target > 0, 30.0, -30.0)
    np.testing.assert_allclose(losses.dice(logits, target), 0, atol=1e-6)
    assert (losses.dice(-logits, target) > 0.99).all()


@pytest.mark.parametrize("targets", ["soft", "binary"])
def test_losses_stay_finite_at_extreme_logits(targets):
    config = MaskLossConfig(**{**vars(SOFT), "targets": targets})
    student = MaskOutput(outputs(0).low_res_masks * 1e4, outputs(0).iou)
    value, gradient = jax.value_and_grad(
        lambda s: losses.mask_distillation(s, outputs(1), config)[0]
    )(student)
    assert jnp.isfinite(value) and all(jnp.isfinite(leaf).all() for leaf in gradient)


def test_padding_counts_or_not():
    """What lies beside a photograph of half the frame's height and a quarter of its width."""
    student, teacher, half = outputs(0), outputs(1), jnp.float32([[0.5, 0.25], [1.0, 1.0]])
    masks = student.low_res_masks.at[0, :, :, 4:].add(9).at[0, :, :, :4, 2:].add(9)
    for extent, same in ((half, True), (None, False)):
        a, b = (
            losses.mask_distillation(x, teacher, SOFT, extent)[0]
            for x in (student, student._replace(low_res_masks=masks))
        )
        assert (a == b) == same
    cropped = [MaskOutput(x.low_res_masks[:1, ..., :4, :2], x.iou[:1]) for x in (student, teacher)]
    first = [MaskOutput(x.low_res_masks[:1], x.iou[:1]) for x in (student, teacher)]
    value, parts = losses.mask_distillation(*first, SOFT, jnp.float32([[0.5, 0.25]]))
    wanted, wanted_parts = losses.mask_distillation(*cropped, SOFT)
    assert value == pytest.approx(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, wanted_parts)


def test_mask_tokens_have_weights():
    """Relative ones: of the single mask alone, it is that mask's loss."""
    student, teacher = outputs(0), outputs(1)
    alone = MaskLossConfig(**{**vars(SOFT), "tokens": (2.0, 0.0, 0.0, 0.0)})
    single = MaskLossConfig(**{**vars(SOFT), "tokens": (1.0,)})
    first = [MaskOutput(x.low_res_masks[:, :, :1], x.iou[:, :, :1]) for x in (student, teacher)]
    value = losses.mask_distillation(student, teacher, alone)[0]
    assert value == pytest.approx(losses.mask_distillation(*first, single)[0])
    assert value != losses.mask_distillation(student, teacher, SOFT)[0]
    with pytest.raises(UserError, match="tokens has 1 weights for the model's 4 mask tokens"):
        losses.mask_distillation(student, teacher, single)
    with pytest.raises(UserError, match="tokens must have a weight that is not 0"):
        MaskLossConfig(**{**vars(SOFT), "tokens": (0.0, 0.0)})


def test_a_photograph_thinner_than_a_pixel_of_the_masks_counts():
    value, _ = losses.mask_distillation(outputs(0), outputs(1), SOFT, jnp.full((2, 2), 1e-3))
    assert jnp.isfinite(value)
