"""Batches for the streams of a training step: exact, resumable, the same on any number of hosts.

The position of a stream is one integer, the number of batches made so far. Everything else follows
from it and the seed:

    batch g    has a resolution and a place in the endless sequence of examples (Schedule)
    example e  is a record: every epoch is another shuffle of all sources, each image once, or as
               often as the weight of its source says (Mixture)
    its draws  come from (seed, e); so does the record that replaces it if it cannot be used

Each process makes its own run of every batch's examples, so which examples batch g has does not
depend on how many processes there are.
"""

import dataclasses
import sys

import grain
import numpy as np
from absl import flags, logging

from samclip_jax.data import transforms, worker
from samclip_jax.data.decode import REASONS, BadRecord, require_side
from samclip_jax.data.prompts import PromptConfig, simulate
from samclip_jax.errors import UserError, memory_errors
from samclip_jax.validation import Area, PositiveInt, Share, Validated

MAX_REPLACEMENTS = 100
RESOLUTION, EXAMPLE = 0, 1  # what a draw is for: keeps the random sequences apart


@dataclasses.dataclass(frozen=True)
class ClipStream(Validated):
    """Crops for the CLIP term at several resolutions, with the same number of pixels a batch."""

    # Of all hosts, at base_resolution. SAM-CLIP, appendix A: 2048. With as many pixels at every
    # resolution (CVNets) 3,072 images at 224 px are 768 at 448, 1,920 on average: D_CLIP and D_SAM
    # end nearly together, as 5.7 % of SA-1B was chosen for (4.1), and up to 256 chips have whole
    # images. 3,328 would be 2,080 on average, and whole on 64 chips only.
    batch_size: PositiveInt = 3072
    resolutions: tuple[PositiveInt, ...] = (224, 448)  # 4.1
    base_resolution: PositiveInt = 224
    batch_multiple: PositiveInt = 1  # the batch at every resolution is cut to a multiple of this
    crop_scale: tuple[Area, Area] = (0.9, 1.0)  # from, to; CVNets' CLIP recipe
    flip: Share = 0.5  # the chance of it; CVNets

    def __post_init__(self):
        super().__post_init__()
        if self.crop_scale[0] > self.crop_scale[1]:
            raise UserError(
                f"crop_scale must be the least and the greatest area, got {self.crop_scale}"
            )

    def shapes(self, resolution):
        """{name: (shape, dtype)} of an example."""
        return {"image": ((resolution, resolution, 3), np.uint8)}

    def example(self, record, resolution, rng):
        """{"image": uint8 [R, R, 3]}"""
        image = transforms.random_resized_crop(record["image"], resolution, rng, self.crop_scale)
        return {"image": transforms.flip(image) if rng.random() < self.flip else image}


@dataclasses.dataclass(frozen=True)
class SamStream(Validated):
    """Whole photographs with simulated prompts for the SAM term."""

    batch_size: PositiveInt = 32  # global; SAM-CLIP appendix A
    image_size: PositiveInt = 1024
    prompts: PromptConfig = PromptConfig()

    batch_multiple = 1

    @property
    def resolutions(self):
        return (self.image_size,)

    @property
    def base_resolution(self):
        return self.image_size

    def shapes(self, resolution):
        """{name: (shape, dtype)} of an example."""
        prompts = self.prompts.per_image, self.prompts.slots
        return {
            "image": ((resolution, resolution, 3), np.uint8),
            "size": ((2,), np.int32),
            "points": ((*prompts, 2), np.float32),
            "labels": (prompts, np.int32),
        }

    def example(self, record, resolution, rng):
        """An example of these shapes; "size" is the photograph's within the padded image."""
        if "annotations" not in record:
            raise BadRecord("no_annotation", "the source has images only")
        image = transforms.resize_longest(record["image"], resolution)
        old, new = record["image"].shape[:2], image.shape[:2]
        points, labels = simulate(record["annotations"], old, new, self.prompts, rng)
        image = transforms.pad(image, resolution)
        return {"image": image, "size": np.int32(new), "points": points, "labels": labels}


def batch_sizes(config):
    """{resolution: images of a batch}: as many pixels at every resolution.

    UserError where that is fewer images than batch_multiple.
    """
    sizes, multiple = {}, config.batch_multiple
    for resolution in config.resolutions:
        size = max(1, config.batch_size * config.base_resolution**2 // resolution**2)
        if size < multiple:
            raise UserError(
                f"batch_size={config.batch_size} is {size} images at {resolution} px, fewer "
                f"than batch_multiple={multiple}; raise the one or lower the other."
            )
        sizes[resolution] = size // multiple * multiple
    return sizes


class Schedule:
    """Resolution, size and first example of every batch, each a pure function of (seed, batch).

    Batches come in rounds that use every resolution once, in an order drawn by (seed, round). The
    resolutions are as frequent as if drawn one by one, and since all rounds have the same number of
    examples, the first example of any batch is known without counting up to it.
    """

    def __init__(self, config, seed):
        self.seed, self.resolutions = seed, config.resolutions
        self.sizes = batch_sizes(config)

    def __call__(self, batch):  # -> resolution, batch size, first example
        turn, place = divmod(batch, len(self.resolutions))
        order = np.random.default_rng((self.seed, RESOLUTION, turn)).permutation(self.resolutions)
        sizes = [self.sizes[resolution] for resolution in order.tolist()]
        return int(order[place]), sizes[place], turn * sum(sizes) + sum(sizes[:place])


def one_process(images):
    """The part that a process makes that is alone."""
    return 0, 1


def stream(sources, config, seed, start=0, part=one_process, workers=0, keys=False):
    """An endless iterator of this process's part of the batches of `config`, from batch `start` on.

    part: images of a batch -> (index, count), this process makes the index-th of count equal parts
    (sharding.process_part): a a dict of numpy arrays, stacked examples of config.example;
    "images", how many the whole batch has; and "rejected", int32 [len(REASONS)]: how many records
    this process replaced while making it, by reason; with `keys` also "key", a list of str.
    `workers` processes make batches ahead; 0 uses a thread of this one. `close()` ends them.
    UserError: a batch that cannot be shared evenly, and, from the iterator, sources in which
    nothing can be used.
    """
    sources = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    if not sources:
        raise UserError("a stream needs at least one source.")
    schedule = Schedule(config, seed)
    parts = {size: part(size) for size in schedule.sizes.values()}
    local = LocalBatch(sources, config, seed, schedule, parts, keys)
    batches = grain.MapDataset.range(int(start), sys.maxsize).map(local)
    if not workers:
        return iter(batches.to_iter_dataset(grain.ReadOptions(1, prefetch_buffer_size=1)))
    worker.become_main_module()
    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own; a script may have none
        flags.FLAGS.mark_as_parsed()
    batches = batches.to_iter_dataset(grain.ReadOptions(0, prefetch_buffer_size=0))
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(workers)))


def epoch(sources):
    """How many records of each source an epoch has: `weight` times its own."""
    return [round(getattr(source, "weight", 1) * len(source)) for source in sources]


class Mixture:
    """Example -> number of the source, index of the record.

    An epoch has `weight` times a source's records: each as often as the whole part of `weight`
    says, and some once more, the next ones of an endless round through all of them.
    """

    def __init__(self, sources, seed):
        self.sizes = [len(source) for source in sources]
        counts = epoch(sources)
        if 0 in counts:
            source = sources[counts.index(0)]
            raise UserError(f"{source} has less than one record an epoch: raise its weight.")
        parts = [
            grain.MapDataset.range(count).map(lambda index, number=number: (number, index))
            for number, count in enumerate(counts)
        ]
        self.counts, self.length = counts, sum(counts)
        self.shuffled = grain.MapDataset.concatenate(parts).shuffle(seed).repeat()
        self.rounds = [grain.MapDataset.range(size).shuffle(seed) for size in self.sizes]

    def __getitem__(self, example):
        number, index = self.shuffled[example]
        size, epoch = self.sizes[number], example // self.length
        extra = self.counts[number] % size
        full = self.counts[number] - extra
        if index < full:
            return number, index % size
        return number, self.rounds[number][(epoch * extra + index - full) % size]


class LocalBatch:
    """Batch number -> this process's part of it."""

    def __init__(self, sources, config, seed, schedule, parts, keys):
        self.sources, self.config, self.seed, self.schedule = sources, config, seed, schedule
        self.parts, self.keys = parts, keys
        self.order = Mixture(sources, seed)

    def __call__(self, batch):
        resolution, images, first = self.schedule(batch)
        index, count = self.parts[images]
        size = images // count
        first += index * size
        rejected = np.zeros(len(REASONS), np.int32)
        pairs = [self.example(e, resolution, rejected) for e in range(first, first + size)]
        keys, examples = zip(*pairs, strict=True)
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        batch |= {"images": images, "rejected": rejected}
        return batch | ({"key": list(keys)} if self.keys else {})

    def example(self, e, resolution, rejected):
        """Key and arrays of example e. A record that cannot be used is counted, and replaced by
        another of its source."""
        number, index = self.order[e]
        source = self.sources[number]
        rng = np.random.default_rng((self.seed, EXAMPLE, e))
        for _ in range(MAX_REPLACEMENTS):
            try:
                with memory_errors(f"record {index} of {source}"):
                    record = source[index]
                    require_side(record["image"].shape)
                    return record["key"], self.config.example(record, resolution, rng)
            except BadRecord as bad:
                rejected[REASONS.index(bad.reason)] += 1
                logging.log_first_n(logging.WARNING, "%s: record %d: %s", 10, source, index, bad)
                index, last = int(rng.integers(len(source))), bad
        raise UserError(
            f"{MAX_REPLACEMENTS} records of {source} in a row cannot be used; check the data. "
            f"The last: {last}."
        )
