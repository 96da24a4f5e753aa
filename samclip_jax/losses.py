"""The losses of SAM-CLIP, section 3. Float32 whatever comes in; gradients to the student only."""

import jax
import jax.numpy as jnp

from samclip_jax.models.samclip import unit


def cosine_distance(student, teacher):  # [..., D], [..., D] -> [...]
    """1 - cos(student, teacher), eq. 1. In [0, 2].

    A zero vector has no direction: its distance is 1 and its gradient 0.
    """
    return 1 - jnp.sum(unit(student) * unit(jax.lax.stop_gradient(teacher)), -1)


def mask_distillation(student, teacher, config):
    """L_FD of eq. 2: focal + dice, and the IoU head's error, between two MaskOutputs.

    Every mask token is compared with its counterpart for the same prompt. Returns (loss, parts),
    scalars averaged over images, prompts and masks. `config` is a MaskLossConfig. Soft targets
    make focal and dice least exactly where the student's mask is the teacher's.
    """
    target = jax.nn.sigmoid(jax.lax.stop_gradient(teacher.low_res_masks))
    if config.targets == "binary":
        target = (target > 0.5).astype(jnp.float32)
    parts = {
        "focal": focal(student.low_res_masks, target, config.focal_alpha, config.focal_gamma),
        "dice": dice(student.low_res_masks, target),
        "iou": jnp.square(student.iou - jax.lax.stop_gradient(teacher.iou)),
    }
    parts = {name: value.mean() for name, value in parts.items()}
    return sum(getattr(config, name) * value for name, value in parts.items()), parts


def focal(logits, target, alpha, gamma):  # [..., h, w], in [0, 1] -> [...], mean over pixels
    """Focal loss (arXiv 1708.02002), for soft targets as in arXiv 2006.04388 eq. 3:

    |target - p|^gamma times the cross-entropy; equal to the usual one for targets 0 and 1.
    alpha weighs foreground against 1 - alpha for background; SAM 2's code has 0.25 and gamma 2.
    """
    p = jax.nn.sigmoid(logits)
    cross_entropy = jax.nn.softplus(logits) - target * logits
    balance = alpha * target + (1 - alpha) * (1 - target)
    return (balance * jnp.abs(target - p) ** gamma * cross_entropy).mean((-2, -1))


def dice(logits, target):  # [..., h, w], in [0, 1] -> [...] in [0, 1]
    """1 - (2 sum p t + 1) / (sum p^2 + sum t^2 + 1) (arXiv 1606.04797); least at p = t."""
    p = jax.nn.sigmoid(logits)
    overlap, p2, t2 = ((x).sum((-2, -1)) for x in (p * target, p * p, target * target))
    return 1 - (2 * overlap + 1) / (p2 + t2 + 1)
