"""The paper's baseline (section 3, appendix D): L_CLIP alone, everything trainable, no rehearsal.

python -m samclip_jax.main --config=configs/distill_only.py --workdir=DIR/distill_only \
    --config.init=DIR/sam_vit_b --config.teachers.clip=DIR/clip_vit_l_14 \
    --config.streams.clip.sources.main.path=IMAGES

20 epochs: 418,688 steps, 804 M images of D_CLIP, as many as stage 1 has.

It forgets SAM; no interpolation with SAM's weights (Wise-FT: the evaluations' `wise_ft`) gives both
more than 60 % on ImageNet and more than 35 AP on COCO (appendix D). Not run on the real data.
"""

from samclip_jax import recipe


def get_config():
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    config.lr_factors = (("heads|encoder", 1.0), (".*", None))
    config.optimizer.learning_rate = 4e-5
    config.steps = config.optimizer.schedule_steps = recipe.steps(config, epochs=20)  # appendix D
    return config
