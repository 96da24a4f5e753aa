"""The stages of the demo: those of the paper at toy size, in the world of data/shapes.py.

Sizes against the paper's: SAM at 96 px instead of 1024, CLIP at 60 and 120 px, one window and two
by two, instead of 224 and 448. The baseline, distill_only, sees as many CLIP images as the three
stages together.
"""

from samclip_jax import recipe
from samclip_jax.errors import UserError

STEPS = dict(stage1=450, stage2=400, stage3=120)
STEPS["distill_only"] = sum(STEPS.values())
# How both heads are put together, chosen on the tuning scenes; empty: the paper's form. At 8 x 8
# patches a prompt is better off with one point and softer logits, and without the smallest parts.
REFINEMENT = dict(points=1, scale=10.0, min_area=0.02)


def world(name, **options):
    return recipe.source(name, split="train", size=200_000, **options)


def get_config(stage=""):
    if stage not in STEPS:
        known = ", ".join(STEPS)
        raise UserError(f"name a stage, configs/demo.py:STAGE, of {known}; got {stage!r}")
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    # bare grounds too: from objects alone the head gives every ground an object's name
    config.streams.clip.sources.main = world("shape_objects", empty=0.15)
    config.streams.clip.update(
        workers=0,
        batch_size=64,
        resolutions=(60, 96, 120) if stage == "stage3" else (60, 120),
        base_resolution=60,
        batch_multiple=1,
    )
    if stage == "stage2":
        config.terms.sam, config.streams.sam = recipe.sam_term()
        config.streams.sam.sources.main = world("shape_scenes")
        config.streams.sam.update(workers=0, batch_size=4, image_size=96)
        config.streams.sam.prompts.update(per_image=4, interior=True)
    config.lr_factors = {
        "stage1": (("heads", 1.0), (".*", None)),
        "stage2": (("heads", 1.0), ("encoder|mask_decoder", 0.1), (".*", None)),
        "stage3": (("heads", 1.0), (".*", None)),
        "distill_only": (("heads|encoder", 1.0), (".*", None)),
    }[stage]
    config.optimizer.update(
        learning_rate=3e-3 if stage == "stage1" else 2e-3,
        weight_decay=0.05,
        warmup_steps=50,
        clip_norm=1.0,
    )
    config.steps = config.optimizer.schedule_steps = STEPS[stage]
    config.heads.clip.mlp_hidden = 128
    config.dtype = "float32"
    config.log_every = 10
    config.checkpoint_every = 10_000
    config.checkpoints_kept = 1
    return config
