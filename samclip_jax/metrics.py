"""Where a run's numbers go: metrics.jsonl in its workdir."""

import contextlib
import json
import math
import time

import jax

from samclip_jax.errors import os_errors
from samclip_jax.paths import any_path, is_remote


class MetricWriter:
    """Adds {"step", "time", name: number} lines to WORKDIR/metrics.jsonl, from process 0 only.

    A resumed run goes on in the same file: of two lines of one step, the later one counts.
    UserError where the file cannot be written.
    """

    def __init__(self, workdir):
        workdir = any_path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._is_object = is_remote(workdir)  # rewritten whole: it cannot grow
        self._file, self._lines = None, ""
        if jax.process_index() != 0:
            return
        with os_errors(f"{self._path} was not written"):
            if self._is_object:
                self._lines = self._path.read_text() if self._path.exists() else ""
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "a+", buffering=1)
                self._drop_half_a_line()

    def write(self, step, metrics):
        """metrics: {name: number}. Not finite becomes null."""
        if jax.process_index() != 0:
            return
        known = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": int(step), "time": round(time.time(), 3), **known}) + "\n"
        with os_errors(f"{self._path} was not written"):
            if self._is_object:
                self._lines += line
                self._path.write_text(self._lines)
            else:
                self._file.write(line)

    def _drop_half_a_line(self):
        """Cuts what a killed run left after its last whole line."""
        self._file.seek(0)
        complete = self._file.read().rpartition("\n")
        self._file.truncate(len("".join(complete[:2]).encode()))

    def close(self):
        if self._file:
            with os_errors(f"{self._path} was not written"):
                self._file.close()


def metrics_at(workdir, step):
    """{name: number} of all that WORKDIR/metrics.jsonl, if there is one, has of this step."""
    path, metrics = any_path(workdir) / "metrics.jsonl", {}
    with os_errors(f"{path} was not read"):
        lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError):  # half a line of a killed run
            values = json.loads(line)
            metrics |= values if values["step"] == step else {}
    return metrics


def write_json(path, value):
    """value as JSON; UserError where it cannot be written."""
    with os_errors(f"{path} was not written"):
        any_path(path).write_text(json.dumps(value, indent=2) + "\n")


class Timer:
    """Seconds a step since it was last asked, and at most which part of them the devices had
    nothing to do for want of data."""

    def __init__(self):
        self.restart()

    def restart(self):
        self.steps, self.waited, self.began = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self, running):
        """While the host waits for data. running: arrays that the devices may still be computing;
        the wait counts, all of it, if they are done when it ends."""
        began = time.monotonic()
        yield
        if all(array.is_ready() for array in jax.tree.leaves(running)):
            self.waited += time.monotonic() - began

    def step(self):
        self.steps += 1

    def take(self):
        seconds = time.monotonic() - self.began
        taken = {"seconds_per_step": seconds / self.steps, "data_wait": self.waited / seconds}
        self.restart()
        return taken
