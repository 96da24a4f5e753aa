"""Reading a source for evaluation: ahead of the model, in order, every usable record once."""

import collections
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from samclip_jax.data.decode import BadRecord, require_side
from samclip_jax.data.evaluation_sets import CLASS_NAMES
from samclip_jax.errors import UserError, memory_errors
from samclip_jax.inference import texts
from samclip_jax.progress import Bar

THREADS = 4  # that read and prepare records while the model runs


class Batches:
    """Lists of `batch_size` prepared records, the last one shorter.

    prepare(record) runs in threads. Unusable records are left out and counted in `rejected`, by
    reason; annotations that are left out, of `record["dropped"]`, which prepare may append to, in
    `dropped`. Progress is shown, after the title, from ten seconds on.
    """

    def __init__(self, source, prepare, batch_size, limit=None, title="images"):
        self.title = title
        self.source, self.prepare, self.batch_size = source, prepare, batch_size
        self.length = len(source) if limit is None else min(limit, len(source))
        self.images, self.rejected = 0, collections.Counter()
        self.dropped = collections.Counter(
            reason for *_, reason, _ in getattr(source, "dropped", ())
        )

    def __iter__(self):
        records = self._records()
        while batch := list(itertools.islice(records, self.batch_size)):
            self.images += len(batch)
            yield batch

    def counts(self):
        """The images used and skipped and, if any, the annotations dropped, as results. UserError
        if no image was usable."""
        if not self.images:
            raise UserError(f"no usable image in {self.source}: {dict(self.rejected)}")
        if self.rejected:
            logging.warning("%s: images skipped: %s", self.source, dict(self.rejected))
        yield "images", self.images
        yield "images_skipped", self.rejected.total()
        if self.dropped:
            logging.warning("%s: annotations left out: %s", self.source, dict(self.dropped))
            yield "annotations_dropped", self.dropped.total()

    def _records(self):
        waiting = collections.deque()
        with (
            ThreadPoolExecutor(THREADS) as threads,
            Bar(desc=self.title, total=self.length, unit="images", delay=10) as bar,
        ):
            for index in range(self.length + self.batch_size):
                if index < self.length:
                    waiting.append(threads.submit(self._record, index))
                if waiting and index >= self.batch_size:
                    prepared, dropped = waiting.popleft().result()
                    bar.update()
                    self.dropped.update(reason for _, reason, _ in dropped)
                    if isinstance(prepared, BadRecord):
                        self.rejected[prepared.reason] += 1
                    else:
                        yield prepared

    def _record(self, index):
        dropped = []
        try:
            with memory_errors(f"record {index} of {self.source}"):
                record = self.source[index]
                dropped += record.get("dropped", ())
                image = np.asarray(record["image"])
                require_side(image.shape)
                return self.prepare(record | {"image": image, "dropped": dropped}), dropped
        except BadRecord as bad:
            return bad, dropped


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
