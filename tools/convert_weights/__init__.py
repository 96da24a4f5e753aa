"""Released SAM and CLIP weights to samclip_jax checkpoints, and merged models back."""

from tools.convert_weights.apply import import_weights

__all__ = ["import_weights"]
