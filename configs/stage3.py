"""Stage 3: resolution adaptation (SAM-CLIP section 3, appendix A). The CLIP head alone, to 1024 px.

python -m samclip_jax.main --config=configs/stage3.py --workdir=DIR/stage3 --distributed \
    --config.init=DIR/stage2 --config.teachers.clip=DIR/clip_vit_l_14 \
    --config.streams.clip.sources.main.path=IMAGES

3 epochs: 91,166 steps of 1,323 images on average, 121 M images of D_CLIP.

On TPU pods set --config.fsdp=8. By the roofline (--compile_only=v5e:8x8) the stage takes 1 hour on
v5e-64, with 0.7 GB a chip.

Expected (paper, table 5): both heads together 66.0 mIoU on Pascal VOC. Not run on the real data.
"""

from samclip_jax import recipe


def get_config():
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    config.lr_factors = (("heads", 1.0), (".*", None))  # None: frozen
    config.optimizer.learning_rate = 8e-4  # "same as the first stage" (appendix A)
    config.streams.clip.resolutions = (224, 448, 1024)  # appendix A
    config.steps = config.optimizer.schedule_steps = recipe.steps(config, epochs=3)
    return config
