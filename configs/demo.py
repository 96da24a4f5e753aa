"""The demo: the stages of the paper at toy size, in the procedural world of data/shapes.py.

python -m samclip_jax.demo --workdir=runs/demo          (make demo)

A CPU with 2 cores: 953 s measured on a loaded machine; 10 minutes are the aim. One stage alone:
python -m samclip_jax.main --config=configs/demo.py:stage2 --workdir=DIR --config.init=STAGE1 \
    --config.teachers.clip=CLIP --config.teachers.sam=SAM

Sizes against the paper's: SAM at 96 px instead of 1024, CLIP at 60 and 84 px instead of 224 and
448. The baseline, distill_only, sees as many CLIP images as the three stages together.
"""

from configs import common

BATCH = 64
STEPS = dict(stage1=250, stage2=380, stage3=60)
STEPS["distill_only"] = sum(STEPS.values())
# How both heads are put together, chosen on the tuning scenes; empty: the paper's form
REFINEMENT = dict()


def world(name, **options):
    return common.source(name, split="train", size=200_000, **options)


def get_config(stage):
    config = common.base()
    config.terms.clip = common.clip_term()
    # bare grounds and whole scenes too: from single objects alone the head learns no ground
    config.streams.clip.sources.main = world("shape_objects", empty=0.15)
    config.streams.clip.sources.scenes = world("shape_scenes")
    config.streams.clip.update(
        workers=0,
        batch_size=BATCH,
        resolutions=(60, 84, 96) if stage == "stage3" else (60, 84),
        base_resolution=60,
    )
    if stage == "stage2":
        config.terms.sam, config.streams.sam = common.sam_term()
        config.streams.sam.sources.main = world("shape_scenes")
        config.streams.sam.update(
            workers=0,
            batch_size=16,
            image_size=96,
        )
        config.streams.sam.prompts.update(per_image=4, interior=True)
    config.lr_factors = {
        "stage1": (("clip_head", 1.0), (".*", None)),
        "stage2": (("clip_head", 1.0), ("encoder|mask_decoder", 0.1), (".*", None)),
        "stage3": (("clip_head", 1.0), (".*", None)),
        "distill_only": (("clip_head|encoder", 1.0), (".*", None)),
    }[stage]
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, warmup_steps=50, clip_norm=1.0)
    if stage == "stage2":
        config.optimizer.learning_rate = (
            2e-3  # 2e-4 for the encoder, which stays SAM's all the same
        )
    config.steps = config.optimizer.schedule_steps = STEPS[stage]
    config.head.mlp_hidden = 128
    config.dtype = "float32"
    config.remat = False
    config.log_every = 50
    config.checkpoint_every = 10_000
    config.checkpoints_kept = 1
    return config
