"""The losses of SAM-CLIP, section 3. Float32 whatever comes in; gradients to the student only."""

import jax
import jax.numpy as jnp

from samclip_jax.errors import UserError
from samclip_jax.models.layers import unit


def cosine_distance(student, teacher):  # [..., D], [..., D] -> [...]
    """1 - cos(student, teacher), eq. 1. In [0, 2].

    A zero vector has no direction: its distance is 1 and its gradient 0.
    """
    return 1 - jnp.sum(unit(student) * unit(jax.lax.stop_gradient(teacher)), -1)


def mask_distillation(student, teacher, config, extent=None):
    """L_FD of eq. 2: focal + dice, and the IoU head's error, between two MaskOutputs.

    Every mask token is compared with its counterpart for the same prompt. Returns (loss, parts),
    scalars averaged over images, prompts and masks. `config` is a MaskLossConfig; UserError where
    its `tokens` are not those of the masks. Soft targets make focal and dice least exactly where
    the student's mask is the teacher's. extent: float [B, 2], the part of the frame's height and
    width that the photograph takes: focal and dice count its pixels; None: the frame's.
    """
    if len(config.tokens) != student.iou.shape[-1]:
        raise UserError(
            f"--config.mask_loss.tokens has {len(config.tokens)} weights for the model's "
            f"{student.iou.shape[-1]} mask tokens"
        )
    weights = jnp.array(config.tokens) / (sum(config.tokens) / len(config.tokens))
    target = jax.nn.sigmoid(jax.lax.stop_gradient(teacher.low_res_masks))
    if config.targets == "binary":
        target = (target > 0.5).astype(jnp.float32)
    logits = student.low_res_masks
    inside = None if extent is None else photograph(extent, logits.shape[-2:])
    parts = {
        "focal": focal(logits, target, config.focal_alpha, config.focal_gamma, inside),
        "dice": dice(logits, target, inside),
        "iou": jnp.square(student.iou - jax.lax.stop_gradient(teacher.iou)),
    }
    parts = {name: (weights * value).mean() for name, value in parts.items()}
    return sum(getattr(config, name) * value for name, value in parts.items()), parts


def photograph(extent, size):  # [B, 2] -> bool [B, 1, 1, h, w]
    """The pixels of masks of a size (h, w) that begin in the photograph: one at least."""
    rows, columns = (jnp.arange(n) / n < extent[:, [i]] for i, n in enumerate(size))
    return (rows[:, :, None] & columns[:, None])[:, None, None]


def focal(logits, target, alpha, gamma, inside=None):  # [..., h, w], in [0, 1] -> [...]
    """The focal loss (arXiv 1708.02002), for soft targets as in arXiv 2006.04388 eq. 3:

    |target - p|^gamma times the cross-entropy; equal to the usual one for targets 0 and 1.
    The mean over pixels. alpha weighs foreground against 1 - alpha for background; SAM 2's code has
    0.25 and gamma 2.
    """
    p = jax.nn.sigmoid(logits)
    cross_entropy = jax.nn.softplus(logits) - target * logits
    balance = alpha * target + (1 - alpha) * (1 - target)
    return (balance * jnp.abs(target - p) ** gamma * cross_entropy).mean((-2, -1), where=inside)


def dice(logits, target, inside=None):  # [..., h, w], in [0, 1] -> [...] in [0, 1]
    """1 - (2 sum p t + 1) / (sum p^2 + sum t^2 + 1) (arXiv 1606.04797); least at p = t."""
    p = jax.nn.sigmoid(logits)
    products = p * target, p * p, target * target
    overlap, p2, t2 = (x.sum((-2, -1), where=inside) for x in products)
    return 1 - (2 * overlap + 1) / (p2 + t2 + 1)
