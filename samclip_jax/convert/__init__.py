"""Released SAM and CLIP weights to samclip_jax checkpoints, and merged models back."""

from samclip_jax.convert.apply import import_weights

__all__ = ["import_weights"]
