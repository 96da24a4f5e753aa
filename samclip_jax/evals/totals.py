"""What an evaluation has counted so far: added up, over all processes of the job, and kept on disk.

A total is a number or an array, a sum over records, or a list of what belongs to each of them.
"""

import contextlib
import time

import jax
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from jax.experimental import multihost_utils

from samclip_jax.errors import UserError, os_errors
from samclip_jax.paths import any_path, is_remote

SECONDS = 30  # between two times that an evaluation is saved


def add(totals, more):
    """The sums of both, {name: total}; lists one after the other."""
    both = {name: totals[name] + more[name] for name in totals.keys() & more.keys()}
    return totals | more | both


@contextlib.contextmanager
def fails_everywhere():
    """Of one process an error inside is raised; of several it is in the list that this gives, for
    `over_processes`, where the others wait."""
    failure = []
    try:
        yield failure
    except Exception as error:
        if jax.process_count() == 1:
            raise
        failure.append(error)


def over_processes(totals, failure):
    """The totals of all processes of the job, added up in their order; all call it together.

    failure: see `fails_everywhere`. UserError where another process failed.
    """
    if jax.process_count() == 1:
        return totals
    mine = {"totals": totals, "failure": [f"{type(each).__name__}: {each}" for each in failure]}
    mine = np.frombuffer(msgpack_serialize(mine), np.uint8)
    lengths = multihost_utils.process_allgather(np.int64(len(mine)))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, lengths.max() - len(mine))))
    if failure:
        raise failure[0]
    everyone = {}
    for process, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        theirs = msgpack_restore(row[:length].tobytes())
        if theirs["failure"]:
            raise UserError(f"process {process} of the job failed: {theirs['failure'][0]}")
        everyone = add(everyone, theirs["totals"])
    return everyone


class Saved:
    """The totals of an evaluation that is not done yet, in a file of this process.

    folder: local or gs://. key: a text that says what is evaluated, of what and how: another one's
    totals are not taken.
    """

    def __init__(self, folder, name, key):
        process = f"{jax.process_index() + 1}_of_{jax.process_count()}"
        self.path = any_path(folder) / f"{name}.{process}.msgpack"
        self.name, self.key, self.written, self.cost = name, key, time.monotonic(), 0.0

    def read(self, first, end):
        """(position, totals): of this process's records, first to end, those before the position
        are in the totals. None: nothing is kept, or of other records."""
        with os_errors(f"{self.path} was not read"):
            data = self.path.read_bytes() if self.path.exists() else b""
        try:
            kept = msgpack_restore(data) if data else {}
        except ValueError:  # it was cut
            return None
        wanted = self.key, first, end
        same = tuple(kept.get(name) for name in ("key", "first", "end")) == wanted
        return (kept["position"], kept["totals"]) if same else None

    def write(self, first, end, position, totals, at_once=False):
        """Keeps them; most of the calls in SECONDS do nothing, but for those that say at_once."""
        began = time.monotonic()
        if not at_once and began < self.written + max(SECONDS, 20 * self.cost):
            return
        records = {"first": first, "end": end, "position": position}
        kept = msgpack_serialize({"key": self.key, **records, "totals": totals})
        with os_errors(f"{self.path} was not written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if is_remote(self.path):
                self.path.write_bytes(kept)
            else:
                part = self.path.with_suffix(".part")
                part.write_bytes(kept)
                part.replace(self.path)
        self.written = time.monotonic()
        self.cost = self.written - began

    def remove(self):
        """All processes call it; the first takes away what others, and earlier ones, left."""
        with os_errors(f"{self.path} was not removed"):
            kept = self.path.parent.glob(f"{self.name}.*_of_*.msgpack")
            for path in [self.path, *(kept if jax.process_index() == 0 else ())]:
                path.unlink(missing_ok=True)
