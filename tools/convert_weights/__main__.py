"""python -m tools.convert_weights ...: the same as python -m samclip_jax.convert."""

from samclip_jax.convert.__main__ import main

if __name__ == "__main__":
    main()
