"""The stages of the demo: those of the paper at toy size, in the world of data/shapes.py.

Sizes against the paper's: SAM at 192 px instead of 1024; CLIP at 96 px instead of 224 and 448, for
every size is a program to compile; stage 3 at 96 and 192 px. The baseline, distill_only, sees as
many CLIP images as stage 1, as in the paper: 16,000, of 12,000 different ones.
"""

from samclip_jax import recipe
from samclip_jax.errors import UserError

CLIP_SIZE, SAM_SIZE = 96, 192  # px; as images and scenes are drawn
SCENES = dict(objects=(0, 3), radius=(0.12, 0.4))  # for the CLIP term: close, far, bare grounds
STAGES = {  # steps, CLIP images a step, learning rate; docs/demo.md says why the batches are small
    "stage1": (2000, 8, 3e-3),
    "stage2": (300, 16, 2e-3),
    "stage3": (40, 8, 2e-4),
    "distill_only": (1000, 16, 2e-3),
}
# How both heads are put together, chosen on the tuning scenes; empty: the paper's form. A prompt is
# better off with one point, a part of the map at a time, and not for the smallest.
REFINEMENT = dict(points=1, components=True, min_patches=5)


def world(name, size, image_size, **options):
    return recipe.source(
        name, split="train", size=size, image_size=image_size, keep=True, weight=1, **options
    )


def get_config(stage=""):
    if stage not in STAGES:
        known = ", ".join(STAGES)
        raise UserError(f"name a stage, configs/demo.py:STAGE, of {known}; got {stage!r}")
    steps, images, rate = STAGES[stage]
    config = recipe.base()
    config.terms.clip = recipe.clip_term()
    drawn = SAM_SIZE if stage == "stage3" else CLIP_SIZE
    config.streams.clip.sources.main = world("shape_scenes", 8000, drawn, **SCENES)
    config.streams.clip.sources.objects = world("shape_objects", 4000, drawn)
    config.streams.clip.update(
        workers=0,
        batch_size=images,
        resolutions=(CLIP_SIZE, SAM_SIZE) if stage == "stage3" else (CLIP_SIZE,),
        base_resolution=CLIP_SIZE,
        batch_multiple=1,
    )
    if stage == "stage2":
        config.terms.sam, config.streams.sam = recipe.sam_term()
        config.streams.sam.sources.main = world("shape_scenes", 4000, SAM_SIZE)
        config.streams.sam.update(workers=0, batch_size=1, image_size=SAM_SIZE)
        config.streams.sam.prompts.update(per_image=4, interior=True)
    config.lr_factors = {
        "stage1": (("heads", 1.0), (".*", None)),
        "stage2": (("heads", 1.0), ("encoder|mask_decoder", 0.1), (".*", None)),
        "stage3": (("heads", 1.0), (".*", None)),
        "distill_only": (("heads|encoder", 1.0), (".*", None)),
    }[stage]
    config.optimizer.update(
        learning_rate=rate,
        weight_decay=0.05,
        warmup_steps=steps // 10,
    )
    config.steps = config.optimizer.schedule_steps = steps
    config.evals = {}
    config.heads.clip.mlp_hidden = 384
    config.dtype = "float32"
    config.log_every = 10
    config.checkpoint_every = 10_000
    config.checkpoints_kept = 1
    return config
