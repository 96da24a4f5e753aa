"""The demo: the stages of the paper at toy size, in the procedural world of data/shapes.py.

python -m samclip_jax.demo --workdir=runs/demo          (make demo)

6 to 7 minutes on two cores of a shared AMD EPYC; docs/demo.md has the figures. One stage alone:
python -m samclip_jax.main --config=configs/demo.py:stage2 --workdir=DIR --config.init=STAGE1 \
    --config.teachers.clip=CLIP --config.teachers.sam=SAM
"""

from samclip_jax.demo_stages import get_config

__all__ = ["get_config"]
