"""Evaluators: a task each, shared by the training loop and by `python -m samclip_jax.evaluate`.

An evaluator takes a Model, a source (data/sources.py) and options, and yields (name, value); values
are shares of 1 unless their name says otherwise.
"""

import difflib
import inspect
import typing

from samclip_jax.config import build, require_named
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError
from samclip_jax.evals.masks import box_masks, point_masks
from samclip_jax.evals.refined_segmentation import refined_segmentation
from samclip_jax.evals.retrieval import retrieval
from samclip_jax.evals.zero_shot_classification import zero_shot_classification
from samclip_jax.evals.zero_shot_segmentation import zero_shot_segmentation

EVALUATORS = {
    evaluator.__name__: evaluator
    for evaluator in (
        zero_shot_classification,
        retrieval,
        box_masks,
        point_masks,
        zero_shot_segmentation,
        refined_segmentation,
    )
}


def evaluate(model, task, data, flag=None, **options):
    """{name: value} of one task. data: {"name": a source, its options}; options: the evaluator's.

    flag: what sets `data` on the command line, "--config.data" say; its options lie beside it.
    UserError names an unknown task or option, and an option's value that cannot be.
    """
    options = read_options("" if flag is None else flag.removesuffix("data"), task, **options)
    return values(EVALUATORS[task](model, make_source(**data, flag=flag), **options))


def values(results):
    """{name: value} of what an evaluator yields, as Python's own numbers."""
    return {name: value if isinstance(value, int) else float(value) for name, value in results}


def require_usable(evaluations):
    """UserError for a mistake in a run's config.evals, {NAME: {"task", "data", options}}, or where
    the data of one cannot be opened: before the run, which evaluates hours later."""
    for name, evaluation in evaluations.items():
        options = {key: value for key, value in evaluation.items() if key != "data"}
        for key in ("task", "data"):
            if key not in evaluation:
                raise UserError(f"--config.evals.{name} lacks the key {key!r}")
        read_options(f"--config.evals.{name}.", **options)
        require_named(f"--config.evals.{name}.data", evaluation["data"])
        make_source(**evaluation["data"], flag=f"--config.evals.{name}.data")


def evaluate_all(model, evaluations):
    """{"NAME/metric": value} of a run's config.evals."""
    metrics = {}
    for name, options in evaluations.items():
        results = evaluate(model, flag=f"--config.evals.{name}.data", **options)
        metrics |= {f"{name}/{metric}": value for metric, value in results.items()}
    return metrics


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
