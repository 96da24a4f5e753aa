"""One evaluation of one checkpoint: TASK is a name of samclip_jax.evals.EVALUATORS.

python -m samclip_jax.evaluate --config=configs/eval.py:box_masks --checkpoint=DIR/stage2 \
    --config.data.annotations=instances_val2017.json --config.data.images=val2017

`task` and `data` are the evaluation's own, every other key is an option of the evaluator. Paper,
stage 3: ImageNet zero-shot 72.4, ImageNet-v2 63.2 (336 px); Pascal VOC segmentation by text 60.6,
both heads 66.0. Not run on those sets.
"""

import dataclasses

from ml_collections import ConfigDict

from samclip_jax.errors import UserError
from samclip_jax.inference.refine import Refinement
from samclip_jax.recipe import anything, source

TASKS = {
    "zero_shot_classification": dict(
        data="folder",  # with --config.data.labels=True: a sub-folder for each class
        image_size=336,  # of a merged model; table 1 is table 6's row of 336 px
        templates=anything("openai"),  # 80 a class (4.2); or simple, or a tuple of texts with {}
        batch_size=64,
    ),
    "retrieval": dict(
        data="captions",
        image_size=336,  # of a merged model; the paper does not say
        batch_size=64,
    ),
    "box_masks": dict(
        data="coco_instances",
        threshold=anything(),  # a logit to report masks at besides 0, or "best"
        batch_size=4,
    ),
    "point_masks": dict(data="coco_instances", threshold=anything(), batch_size=4),
    "zero_shot_segmentation": dict(
        data="coco_panoptic",
        image_size=448,  # of a merged model (4.2)
        templates=anything("openai"),
        upsample="logits",  # 4.2; or labels (appendix C)
        maskclip=False,  # of a plain CLIP: its last block's values alone
        batch_size=16,
    ),
    "refined_segmentation": dict(
        data="coco_panoptic",
        templates=anything("openai"),
        refinement=dataclasses.asdict(Refinement()) | {"scale": anything()},  # the paper's form
        seed=0,
        batch_size=4,
    ),
}


def get_config(task=""):
    if task not in TASKS:
        raise UserError(f"name a task, configs/eval.py:TASK, of {', '.join(TASKS)}; got {task!r}")
    options = TASKS[task] | {"data": source(TASKS[task]["data"])}
    config = ConfigDict({"task": task, "limit": anything(), "dtype": "float32", **options})
    config.wise_ft = 1.0  # of a workdir: its SAM parts' way from 0, the start, to 1 (appendix D)
    return config
