"""One unit of a data set as it is released -> the shards of its records."""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import math
import uuid

import numpy as np
from PIL import Image

from samclip_jax.data import records, transforms
from samclip_jax.data.annotations import BadAnnotation, annotation, usable
from samclip_jax.data.captions import require_captions
from samclip_jax.data.decode import BadRecord, is_upright_jpeg, open_image, require_side
from samclip_jax.errors import UserError, memory_errors


def _option(default, says):
    return dataclasses.field(default=default, metadata={"help": says})


@dataclasses.dataclass(frozen=True)
class Options:
    """What may be chosen; it belongs to the manifest. UserError where a number is out of range."""

    longest: int | None = _option(None, "px; images whose longest side is over it are made smaller")
    shortest: int | None = _option(None, "px; the same of the shortest side")
    quality: int = _option(90, "of the JPEG of images that change; others keep their bytes")
    min_side: int = _option(32, "px; smaller images are rejected")
    masks: bool = _option(False, "keep masks, as run lengths, not only boxes and points")
    max_mask_area: float = _option(0.9, "of the image; masks over it are dropped (SAM 4)")
    deduplicate: bool = _option(False, "leave out images whose file is an earlier one's")
    fraction: float = _option(1.0, "of the inputs, by a hash of their keys")
    validation: float = _option(0.0, "of the records, by another hash")
    max_rejects: float = _option(0.5, "of the inputs, past which the run stops")

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            most = 1 if isinstance(value, float) else 100 if name == "quality" else math.inf
            least = 0 if isinstance(value, float) else 1
            if not (value is None or isinstance(value, bool) or least <= value <= most):
                raise UserError(f"--{name} must be from {least} to {most}, got {value}")


def chosen(key, share, salt):
    """Whether `key` is among a share of all keys: the same ones in every run and order, and those
    of a smaller share are among those of a larger one."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8, salt=salt)
    return int.from_bytes(digest.digest()) < share * 2**64


def make_record(entry, options, dropped):
    """Input -> bytes of a record. BadRecord if it cannot be used. Appends the annotations that it
    leaves out to `dropped`, as annotations.usable has them."""
    if entry.error:
        raise entry.error
    if entry.captions is not None:
        require_captions(entry.captions)
    image = open_image(entry.image, entry.size, entry.key)
    size = image.shape[:2]
    require_side(size, options.min_side)
    shape = smaller(size, options)
    same = shape == size
    pixels = np.asarray(image) if same else transforms.resize(image, *shape, transforms.BICUBIC)
    record = {"key": entry.key, "image": entry.image}
    if not (same and is_upright_jpeg(entry.image)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=options.quality)
        record["image"] = file.getvalue()
    for name in ("label", "captions", "semantic"):
        if getattr(entry, name) is not None:
            record[name] = getattr(entry, name)
    dropped += entry.dropped
    if entry.annotations is not None:
        read = functools.partial(keep, entry.categories, size, shape, options)
        record["annotations"], left_out = usable(entry.annotations, read)
        record["size"] = size
        dropped += left_out
        if not record["annotations"]:
            detail = f"none of {len(entry.annotations)} can be used"
            raise BadRecord("no_annotation", detail)
    return records.encode(record)


def smaller(size, options):
    """(height, width) after --longest and --shortest."""
    limits = (options.longest, max(size)), (options.shortest, min(size))
    scale = min([1, *(limit / side for limit, side in limits if limit)])
    return size if scale == 1 else tuple(max(1, round(side * scale)) for side in size)


def keep(categories, size, shape, options, entry):
    """One annotation as it is stored, None of a crowd. BadAnnotation if it cannot be used."""
    read = annotation(entry, size, categories)
    if read is None:
        return None
    mask, area, lengths = read["mask"], read["area"], None
    if mask is not None:
        lengths, area = mask.lengths, float(mask.area)
    if area > options.max_mask_area * size[0] * size[1]:
        raise BadAnnotation("large_mask", f"{area:.0f} px of {size[1]} x {size[0]} px")
    scale = np.float32([shape[1] / size[1], shape[0] / size[0]])
    point = read["point"]
    return {
        "box": (read["box"] * np.tile(scale, 2)).tolist(),
        "point": None if point is None else (point * scale).tolist(),
        "area": area * float(scale.prod()),
        "category": read["category"],
        "mask": lengths.tolist() if options.masks and mask is not None else None,
    }


def prepare_unit(kind, options, output, name, what, tick=lambda: None):
    """Writes the records of a unit to parts in progress/ and, after them, progress/NAME.json: what
    has become of it. Returns the number of inputs, {reason: rejects} and {reason: detail of one}.

    tick() is called for every input.
    """
    folder, parts = output / "progress", {split: [] for split in records.SPLITS}
    writers, contents = {}, {split: {"keys": [], "digests": []} for split in records.SPLITS}
    done = {"inputs": 0, "damaged": [], "rejects": [], "dropped_annotations": []}
    dropped, labels = collections.Counter(), set()
    wanted = functools.partial(chosen, share=options.fraction, salt=b"fraction")
    for entry in kind.read(what, done["damaged"], wanted):
        done["inputs"] += 1
        tick()
        left_out = []
        try:
            with memory_errors(entry.key):
                record = make_record(entry, options, left_out)
        except BadRecord as bad:
            done["rejects"].append([entry.key, bad.reason, str(bad.detail)])
            continue
        finally:
            dropped.update(reason for _, reason, _ in left_out)
            mistakes = [each for each in left_out if each[1] != "large_mask"]
            done["dropped_annotations"] += [[entry.key, *each] for each in mistakes]
        split = "validation" if chosen(entry.key, options.validation, b"validation") else "train"
        if split not in writers:
            part = folder / f"{split}-{name}-{len(parts[split])}.array_record"
            writers[split] = records.ShardWriter(part)
        writers[split].write(record)
        if writers[split].bytes >= records.SHARD_BYTES:
            parts[split].append(writers.pop(split).close())
        labels.add(entry.label)
        contents[split]["keys"].append(entry.key)
        contents[split]["digests"].append(hashlib.blake2b(entry.image, digest_size=16).hexdigest())
    for split in writers:
        parts[split].append(writers[split].close())
    done |= {"dropped": dropped, "labels": sorted(labels - {None}), "contents": contents}
    write_atomically(folder / f"{name}.json", json.dumps(done | {"parts": parts}))
    rejects = done["rejects"]
    reasons = collections.Counter(reason for _, reason, _ in rejects)
    return done["inputs"], reasons, examples_of(rejects)


def examples_of(rejects):
    """{reason: the detail of the first} of rejects, [(key, reason, detail)]."""
    return {reason: detail for _, reason, detail in reversed(rejects)}


def write_atomically(path, text):
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # others may write the same
    part.write_text(text)
    part.replace(path)
