"""Stage 2 with a dense term, beyond the paper: the CLIP head's patches learn the CLIP's own.

python -m samclip_jax.main --config=configs/stage2_dense.py --workdir=DIR/stage2_dense \
    --distributed --config.init=DIR/stage1 --config.teachers.clip=DIR/clip_vit_l_14 \
    --config.teachers.sam=DIR/sam_vit_b --config.streams.clip.sources.main.path=IMAGES \
    --config.streams.sam.sources.main.path=SA1B

L_CLIP acts on the pooled embedding alone. Here every patch, too, comes nearer to the teacher's
last-block values (MaskCLIP, arXiv 2112.01071) at the size whose grid is the student's: 196 px for
ViT-L/14 beside a student at 224 px, 392 beside 448. On the same pass of the student; the
teacher goes a second time over every image: 1.36 times the operations of stage 2 at 224 px, 1.59 at
448, by the formulas of samclip_jax/flops.py. As many steps as configs/stage2.py; on pods, too, set
--config.fsdp=8. Not run on the real data. In the demo's world it hurts, for the teacher's own
patches are worse than what the pooled loss teaches: docs/demo.md.
"""

from samclip_jax import recipe


def get_config():
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    config.terms.clip_patches = recipe.clip_term()
    config.terms.clip_patches.target = "patches"
    config.terms.sam, config.streams.sam = recipe.sam_term()
    config.lr_factors = (("heads", 1.0), ("encoder|mask_decoder", 0.1), (".*", None))  # as stage 2
    config.optimizer.learning_rate = 4e-5
    config.optimizer.schedule_steps = recipe.steps(config, epochs=20)
    config.steps = recipe.steps(config, epochs=16)
    return config
