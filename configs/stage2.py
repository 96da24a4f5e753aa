"""Stage 2: multi-task distillation (SAM-CLIP section 3, appendix A). L_CLIP + 10 L_SAM.

python -m samclip_jax.main --config=configs/stage2.py --workdir=DIR/stage2 --distributed \
    --config.init=DIR/stage1 --config.teachers.clip=DIR/clip_vit_l_14 \
    --config.teachers.sam=DIR/sam_vit_b --config.streams.clip.sources.main.path=IMAGES \
    --config.streams.sam.sources.main.path=SA1B

16 epochs of 20: 334,950 steps, on average of 1,920 images of D_CLIP, and 32 of D_SAM. These are
643 M and 10.7 M images: D_CLIP is seen 16 times, D_SAM 17.3.

On TPU pods set --config.fsdp=8. By the roofline (docs/tpu.md) the stage takes 8 hours on
v5e-64, 2 on v5e-256, with 1.9 and 1.0 GB a chip; on v5e-8 micro_batches=4 for both streams.

Expected (paper, table 1): ImageNet zero-shot 71.7 at 224 px, COCO mask AP 40.9 (SAM 41.2).
Not run on the real data.
"""

from samclip_jax import recipe


def get_config():
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    config.terms.sam, config.streams.sam = recipe.sam_term()
    # 10 times smaller for what SAM already knows (4.1); prompt encoder and text tower are frozen
    config.lr_factors = (("heads", 1.0), ("encoder|mask_decoder", 0.1), (".*", None))
    config.optimizer.learning_rate = 4e-5  # appendix A
    config.optimizer.schedule_steps = recipe.steps(config, epochs=20)
    config.steps = recipe.steps(config, epochs=16)  # then COCO AP began to fall (appendix A)
    return config
