"""Evaluators: a task each, shared by the training loop and by `python -m samclip_jax.evaluate`.

An evaluator takes a Model, a source (data/sources.py) and options, and returns an Evaluation, which
`results` carries out; values are shares of 1 unless their name says otherwise.
"""

import difflib
import inspect
import typing

from samclip_jax.config import build
from samclip_jax.data.detections import read_detections
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError, under
from samclip_jax.evals.batches import results
from samclip_jax.evals.cascade_segmentation import cascade_segmentation
from samclip_jax.evals.classification_probe import classification_probe
from samclip_jax.evals.instance_segmentation import instance_segmentation
from samclip_jax.evals.knn import knn
from samclip_jax.evals.masks import box_masks, point_masks
from samclip_jax.evals.refined_segmentation import refined_segmentation
from samclip_jax.evals.retrieval import retrieval
from samclip_jax.evals.segmentation_probe import segmentation_probe
from samclip_jax.evals.zero_shot_classification import zero_shot_classification
from samclip_jax.evals.zero_shot_segmentation import zero_shot_segmentation
from samclip_jax.inference.model import load

EVALUATORS = {
    evaluator.__name__: evaluator
    for evaluator in (
        zero_shot_classification,
        retrieval,
        box_masks,
        point_masks,
        instance_segmentation,
        zero_shot_segmentation,
        refined_segmentation,
        cascade_segmentation,
        segmentation_probe,
        classification_probe,
        knn,
    )
}


def evaluate(model, task, data, flag=None, saved=None, **options):
    """{name: value} of one task. saved: see batches.collect; the rest: `evaluations`."""
    (evaluation,) = evaluations([model], task, data, flag, **options)
    return results(evaluation, saved)


def evaluations(models, task, data, flag=None, **options):
    """The Evaluation of each model, baselines after the first, by the same task, source and
    options, for `results`.

    data: {"name": a source, its options}; options: the evaluator's, of which `train` is like data,
    `clip` a checkpoint and `detections` a file. flag: what sets `data` on the command line,
    "--config.data" say; its options, and the evaluator's, lie beside it. UserError names an unknown
    task or option, an option's value that cannot be, or what a model or the source lacks.
    """
    where = "" if flag is None else flag.removesuffix("data")
    options = read_options(where, task, **options)
    source = make_source(**data, flag=flag)
    if "train" in options:
        options["train"] = make_source(**options["train"], flag=f"{where}train")
    if options.get("detections") is not None:
        with under(f"{where}detections: "):
            options["detections"] = read_detections(options["detections"], source)
    if options.get("clip") is not None:
        with under(f"{where}clip: "):
            devices = [*models[0].mesh.devices.flat]
            options["clip"] = load(options["clip"], models[0].dtype, devices)
    evaluations = []
    for number, model in enumerate(models):
        with under("the baseline: " if number else ""):
            evaluations.append(EVALUATORS[task](model, source, **options))
    return evaluations


def read_options(where, task, **options):
    """The options of a task as its evaluator's type hints have them.

    where: what stands before their names in a message, "--config." say. UserError names an unknown
    task or option and the nearest known one, or the option whose value is not what its hint says.
    """
    evaluator = EVALUATORS[_known(task, EVALUATORS, "evaluation task")]
    taken = list(inspect.signature(evaluator).parameters)[2:]
    hints = typing.get_type_hints(evaluator, include_extras=True)
    for option in options:
        _known(option, taken, f"option of {task}")
    return {
        option: build(hints[option], value, where + option) if option in hints else value
        for option, value in options.items()
    }


def _known(name, names, what):
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise UserError(f"no {what} {name!r}: {hint}")
    return name
