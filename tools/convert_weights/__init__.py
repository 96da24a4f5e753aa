"""The command that converts weights, under its name in a checkout: see samclip_jax.convert."""
