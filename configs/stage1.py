"""Stage 1: head probing (SAM-CLIP section 3, appendix A). The CLIP head on the frozen SAM encoder.

python -m samclip_jax.main --config=configs/stage1.py --workdir=DIR/stage1 --distributed \
    --config.init=DIR/sam_vit_b --config.teachers.clip=DIR/clip_vit_l_14 \
    --config.streams.clip.sources.main.path=IMAGES

20 epochs: 418,688 steps of 1,920 images on average, 804 M images of D_CLIP.

On TPU pods set --config.fsdp=8. By the roofline (--compile_only=v5e:8x8) the stage takes 5 hours on
v5e-64, with 0.7 GB a chip.

Expected (paper): no figure is given after this stage. Not run on the real data.
"""

from samclip_jax import recipe


def get_config():
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    config.lr_factors = (("heads", 1.0), (".*", None))  # None: frozen
    config.optimizer.learning_rate = 8e-4  # appendix A
    config.steps = config.optimizer.schedule_steps = recipe.steps(config, epochs=20)  # appendix A
    return config
