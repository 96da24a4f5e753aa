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
--config.fsdp=8. Whether it helps is not known: it was not run on the real data.
"""

from configs import stage2


def get_config():
    config = stage2.get_config()
    config.terms.clip_patches = {**config.terms.clip, "target": "patches", "weight": 1.0}
    return config
