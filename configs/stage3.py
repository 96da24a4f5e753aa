"""Stage 3: resolution adaptation (SAM-CLIP section 3, appendix A). The CLIP head alone, to 1024 px.

python -m samclip_jax.main --config=configs/stage3.py --workdir=DIR/stage3 --distributed \
    --config.init=DIR/stage2 --config.teachers.clip=DIR/clip_vit_l_14 \
    --config.streams.clip.sources.main.path=IMAGES

On TPU pods set --config.fsdp=8. By the roofline (--compile_only=v5e:8x8) the stage takes 1 hour on
v5e-64, with 0.5 GB a chip.

Expected (paper, table 5): both heads together 66.0 mIoU on Pascal VOC. Not run on the real data.
"""

from configs import common, stage1


def get_config():
    config = stage1.get_config()  # "same as the first stage" (appendix A)
    config.streams.clip.resolutions = (224, 448, 1024)  # appendix A
    config.steps = config.optimizer.schedule_steps = common.steps(epochs=3, resolutions=3)
    return config
