"""The evaluations of a training run, config.evals: {NAME: {"task", "data", options}}."""

import inspect
import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from samclip_jax import checkpoint
from samclip_jax.config import require_named
from samclip_jax.data.sources import SOURCES, make_source
from samclip_jax.errors import UserError
from samclip_jax.evals import evaluate, read_options
from samclip_jax.evals.totals import Saved
from samclip_jax.inference.model import Model
from samclip_jax.metrics import metrics_at


def named(evaluations):
    """Those whose data are given; of others, as the shipped configs have them, the source has
    nothing of what it needs."""

    def is_named(data):
        name = data.get("name") if isinstance(data, dict) else None
        if not isinstance(name, str) or name not in SOURCES:
            return True  # a mistake, which `require_usable` tells
        parameters = inspect.signature(SOURCES[name]).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty]
        return any(data.get(option) not in (None, "") for option in needed)

    return {name: each for name, each in evaluations.items() if is_named(each.get("data"))}


def require_usable(evaluations):
    """UserError for a mistake in a run's config.evals, or where the data of one cannot be opened:
    before the run, which evaluates hours later."""
    for name, evaluation in named(evaluations).items():
        options = {key: value for key, value in evaluation.items() if key != "data"}
        for key in ("task", "data"):
            if key not in evaluation:
                raise UserError(f"--config.evals.{name} lacks the key {key!r}")
        read_options(f"--config.evals.{name}.", **options)
        require_named(f"--config.evals.{name}.data", evaluation["data"])
        make_source(**evaluation["data"], flag=f"--config.evals.{name}.data")


class RunEvaluations:
    """Evaluates a run's model, on all devices of every process of the job together.

    What is counted lies in WORKDIR/evaluation until the results are written: an evaluation that was
    interrupted goes on.
    """

    def __init__(self, config, workdir, mesh, student, tokenizer):
        self.evaluations = named(config.evals)
        self.every, self.last = config.eval_every, config.steps
        self.workdir, self.mesh, self.dtype = workdir, mesh, str(config.dtype)
        self.model = Model(student, {}, tokenizer, config.dtype, jax.local_devices())
        self.saved = []

    def due(self, step):
        """Whether the config asks for them after this step."""
        is_due = step == self.last or self.every and step % self.every == 0
        return bool(self.evaluations and is_due)

    def interrupted(self, step):
        """Whether a run that goes on after this step owes its results."""
        if step == 0 or not self.due(step):
            return False
        written = metrics_at(self.workdir, step)
        owed = not any(f"{name}/images" in written for name in self.evaluations)
        return bool(multihost_utils.broadcast_one_to_all(np.int32(owed)))  # all do the same

    def __call__(self, step, params):
        """{"NAME/metric": value} of the trained parameters. The rest, the text tower too, is read
        from the workdir. A copy of all lies on every device for as long."""
        _, start, _ = checkpoint.load_model(self.workdir, mesh=self.mesh, initial=True)
        model, metrics, self.saved = self.model.with_params({**start, **params}), {}, []
        del start
        for name, options in self.evaluations.items():
            settings = {"step": step, "dtype": self.dtype, **options}
            key = json.dumps(settings, sort_keys=True, default=str)
            self.saved.append(Saved(self.workdir / "evaluation", name, key))
            flag = f"--config.evals.{name}.data"
            results = evaluate(model, flag=flag, saved=self.saved[-1], **options)
            metrics |= {f"{name}/{metric}": value for metric, value in results.items()}
        return metrics

    def forget(self):
        """When the results are written."""
        for saved in self.saved:
            saved.remove()
