"""Released SAM and CLIP weights to samclip_jax checkpoints, and merged models back."""
