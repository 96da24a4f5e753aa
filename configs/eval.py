"""One evaluation of one checkpoint: TASK is a name of samclip_jax.evals.EVALUATORS.

python -m samclip_jax.evaluate --config=configs/eval.py:box_masks --checkpoint=DIR/stage2 \
    --config.data.annotations=instances_val2017.json --config.data.images=val2017

All devices of this host work together, with --distributed those of all hosts. `task` and `data` are
the evaluation's own, every other key is an option of the evaluator. Paper, stage 3: ImageNet
zero-shot 72.4, ImageNet-v2 63.2 (336 px); Pascal VOC segmentation by text 60.6, both heads 66.0.
Not run on those sets.
"""

from samclip_jax import recipe
from samclip_jax.errors import UserError


def get_config(task=""):
    tasks = recipe.evaluations()
    if task not in tasks:
        known = ", ".join(tasks)
        raise UserError(f"name a task, configs/eval.py:TASK, of {known}; got {task!r}")
    config = recipe.evaluation(task)
    config.baseline = ""  # another checkpoint: its results, and the difference, are reported too
    config.dtype = "float32"  # or bfloat16
    config.wise_ft = 1.0  # of a workdir: its SAM parts' way from 0, the start, to 1 (appendix D)
    return config
