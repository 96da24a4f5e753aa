"""From the records of a source to an evaluator's results: over threads, devices and processes."""

import collections
import contextlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from samclip_jax.data.decode import BadRecord, require_side
from samclip_jax.data.evaluation_sets import CLASS_NAMES
from samclip_jax.errors import UserError, memory_errors
from samclip_jax.evals.totals import add, fails_everywhere, over_processes
from samclip_jax.inference import texts
from samclip_jax.progress import Bar

READERS = 4  # threads that read and prepare records
MEASURERS = 2  # threads: the devices work for one batch while the host counts another
SKIPPED, DROPPED = "skipped/", "dropped/"  # totals of each reason begin so


class Evaluation(NamedTuple):
    """What an evaluator does with the records of a source; `collect` does the rest."""

    name: str
    source: object
    rows: int  # samples in a batch, on all devices of this process together; the last has fewer
    limit: int | None  # of the first records
    prepare: Callable  # record -> a sample; BadRecord for one that cannot be used
    measure: Callable  # a batch, list of samples -> {name: total}, see totals.py
    results: Callable  # {name: total} of all samples -> (name, value), ...


class Batch(NamedTuple):
    samples: list
    end: int  # the records before this one are in this batch or an earlier one
    left_out: dict  # {SKIPPED or DROPPED + reason: number} of the records of this batch


def collect(evaluation, saved=None):
    """{name: total} over all records, those of the other processes of the job too, each of which
    takes a part; "images" and the reasons of SKIPPED and DROPPED are among them.

    saved: a totals.Saved, from which an evaluation that was interrupted goes on; it stays, for the
    caller to remove. Records are read ahead and prepared in threads. Progress is shown from ten
    seconds on. UserError where no record can be used.
    """
    length = len(evaluation.source)
    length = length if evaluation.limit is None else min(evaluation.limit, length)
    part, parts = jax.process_index(), jax.process_count()
    first, end = length * part // parts, length * (part + 1) // parts
    # the next record, and the totals of those before it
    state = (saved and saved.read(first, end)) or (first, {})

    def measured(batch):
        measures = evaluation.measure(batch.samples) if batch.samples else {}
        return batch.end, {"images": len(batch.samples)} | batch.left_out | measures

    with (
        fails_everywhere() as failure,
        ThreadPoolExecutor(READERS) as readers,
        ThreadPoolExecutor(MEASURERS) as measurers,
        Bar(None, evaluation.name, end - first, "images", state[0] - first, delay=10) as bar,
        contextlib.ExitStack() as at_the_end,
    ):
        if saved:
            saved.write(first, end, *state, at_once=True)  # if it cannot be, now is the time to say
            at_the_end.callback(lambda: saved.write(first, end, *state, at_once=True))
        batches = read(evaluation, readers, state[0], end)
        batches = at_the_end.enter_context(contextlib.closing(batches))
        measures = ahead(measurers, measured, batches, MEASURERS)
        for position, more in at_the_end.enter_context(contextlib.closing(measures)):
            bar.update(position - state[0])
            state = position, add(state[1], more)
            if saved:
                saved.write(first, end, *state)
    totals = over_processes(state[1], failure)
    if not totals.get("images"):
        if saved:
            saved.remove()
        skipped = dict(reasons(totals, SKIPPED))
        raise UserError(f"no usable image in {evaluation.source}: {skipped}")
    return totals


def results(evaluation, saved=None):
    """{name: value} of the evaluation, Python's own numbers: its counts of images, then what its
    `results` give."""
    totals = collect(evaluation, saved)
    try:
        named = [*counts(evaluation.source, totals), *evaluation.results(totals)]
    except UserError:  # of all records: to go on would not help
        if saved:
            saved.remove()
        raise
    return {name: value if isinstance(value, int) else float(value) for name, value in named}


def ahead(threads, function, items, count):
    """function(item) of all items in their order, `count` of them begun before they are asked for.

    What is not done when the caller leaves is cancelled.
    """
    waiting = collections.deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def read(evaluation, readers, first, end):
    """The batches of the records first to end."""
    records = ahead(
        readers,
        lambda index: (index, *prepared(evaluation.source, index, evaluation.prepare)),
        range(first, end),
        evaluation.rows + READERS,
    )
    samples, left_out = [], collections.Counter()
    for index, sample, dropped in records:
        left_out.update(DROPPED + reason for _, reason, _ in dropped)
        if isinstance(sample, BadRecord):
            left_out[SKIPPED + sample.reason] += 1
        else:
            samples.append(sample)
        if len(samples) == evaluation.rows or index + 1 == end:
            yield Batch(samples, index + 1, dict(left_out))
            samples, left_out = [], collections.Counter()


def prepared(source, index, prepare):
    """The sample of a record, or its BadRecord, and its annotations that are left out.

    prepare gets the record with its `index` in the source and may append to its "dropped".
    """
    dropped = []
    try:
        with memory_errors(f"record {index} of {source}"):
            record = source[index]
            dropped += record.get("dropped", ())
            image = np.asarray(record["image"])
            require_side(image.shape)
            checked = {"image": image, "dropped": dropped, "index": index}
            return prepare(record | checked), dropped
    except BadRecord as bad:
        return bad, dropped


def counts(source, totals):
    """The images used and skipped and, if any, the annotations dropped, as results."""
    skipped = reasons(totals, SKIPPED)
    dropped = reasons(totals, DROPPED)
    dropped.update(reason for *_, reason, _ in getattr(source, "dropped", ()))
    yield "images", totals["images"]
    yield "images_skipped", skipped.total()
    if dropped:
        yield "annotations_dropped", dropped.total()
    for what, numbers in (("images skipped", skipped), ("annotations left out", dropped)):
        if numbers and jax.process_index() == 0:
            logging.warning("%s: %s: %s", source, what, dict(numbers))


def reasons(totals, kind):
    """{reason: number} of SKIPPED or DROPPED."""
    return collections.Counter(
        {name.removeprefix(kind): n for name, n in totals.items() if name.startswith(kind)}
    )


def stack(arrays, rows):  # -> [rows, ...]
    """The arrays as one, zeros after them: a last, shorter batch keeps the compiled shape."""
    stacked = np.stack(arrays)
    return np.pad(stacked, [(0, rows - len(stacked))] + [(0, 0)] * (stacked.ndim - 1))


def class_names(source):
    """The source's classes as one would say them; UserError if it has none."""
    if not getattr(source, "classes", None):
        raise UserError(f"{source} has no classes to choose from: take one with labels or maps")
    return [said(name) for name in texts.class_names(f"the classes of {source}", source.classes)]


def said(name):
    """A WordNet id of ImageNet as CLIP calls it; tvmonitor in two words; alley_cat, door/elevator
    and wall-other-merged without what only data sets write."""
    if name in CLASS_NAMES["imagenet"]:
        return CLASS_NAMES["imagenet"][name]
    spelled = CLASS_NAMES["said"]
    if name not in spelled:
        name = re.sub("(-other|-merged|-stuff)+$", "", name)
    return spelled.get(name, name).replace("_", " ").replace("/", " ")


def field(record, name):
    """record[name]; UserError if this kind of source has none."""
    if name not in record:
        raise UserError(f"{record['key']} has no {name!r}: the source does not fit the task")
    return record[name]
