"""The parts that units became -> shards of about 1 GB, whatever the units were.

Neighbouring parts are copied into one shard as long as they fit; a part that fits with none, as
those of large units, is only renamed. Two shards one after the other have more than 1 GB together.
A large set thus costs no second copy, and one of 22,000 small tars no 22,000 files.
"""

import collections
import functools
import hashlib
import json

import numpy as np

from samclip_jax.data import records
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.unit import write_atomically
from samclip_jax.errors import UserError


def plan_shards(units, duplicates):
    """[(name of a shard, [(entry of a part, places of its records that are left out)])].

    units: what became of each, in order. duplicates: {(unit, split): places in all its parts}.
    """
    shards = []
    for split in records.SPLITS:
        groups, size = [], np.inf  # bytes of the last group: there is none
        for number, unit in enumerate(units):
            places, first = np.array(sorted(duplicates.get((number, split), ())), int), 0
            for part in unit["parts"][split]:
                end = first + part["records"]
                left_out = (places[(first <= places) & (places < end)] - first).tolist()
                first = end
                used = part["bytes"] * (1 - len(left_out) / part["records"])
                if not used:
                    continue
                if size + used > records.SHARD_BYTES:
                    groups.append([])
                    size = 0
                groups[-1].append((part, left_out))
                size += used
        shards += [(f"{split}-{i:05d}.array_record", group) for i, group in enumerate(groups)]
    return shards


def write_shard(output, name, parts, tick=lambda: None):
    """Makes a shard of its parts, and progress/NAME.json, its entry in the manifest.

    Killed at any moment it can be called again. tick() is called for every record.
    """
    progress, path = output / "progress", output / records.SHARDS / name
    if (progress / f"{name}.json").exists():  # Beam may do it twice
        return 0, {}, {}
    files = [progress / part["name"] for part, _ in parts]
    if len(parts) == 1 and not parts[0][1]:
        if files[0].exists():
            files[0].replace(path)
        entry = parts[0][0] | {"name": name}
    else:
        entry = copy(progress, path, parts, tick)
    write_atomically(progress / f"{name}.json", json.dumps(entry))
    for file in files:
        file.unlink(missing_ok=True)
    return 0, {}, {}


def copy(folder, path, parts, tick):
    """The entry of a new shard at `path`: the records of the parts without those left out."""
    shard = records.ShardWriter(path)
    try:
        for part, left_out in parts:
            data = records.Shards(folder, [part])
            for place in sorted(set(range(len(data))) - set(left_out)):
                shard.write(data[place])
                tick()
    except BadRecord as bad:
        raise UserError(f"{bad.detail}; delete {folder.parent} and begin again") from None
    return shard.close()


def find_duplicates(units, read_contents, same_images):
    """{(unit, split): places} of the records whose key is an earlier one's, in the order of the
    units; with `same_images` also of those whose image file is. They are added to their unit's
    rejects.

    read_contents(unit number) -> {split: {"keys": list, "digests": list of hexadecimal str}}
    """
    parts = [(number, split) for number in range(len(units)) for split in records.SPLITS]

    of_unit = functools.lru_cache(8)(read_contents)

    def contents(part):
        number, split = parts[part]
        return of_unit(number)[split]

    def located(index):  # of all records -> part, place in it, key
        part = int(np.searchsorted(starts, index, "right")) - 1
        place = int(index - starts[part])
        return part, place, contents(part)["keys"][place]

    def digests(read):  # of all records, from those that read(contents of a part) gives
        joined = (b"".join(read(contents(part))) for part in range(len(parts)))
        return [np.frombuffer(each, "V16") for each in joined]

    keys = digests(_digests_of_keys)
    starts = np.cumsum([0, *map(len, keys)])
    alike = [("its key is an earlier record's", keys)]
    if same_images:
        alike.append(("of {}", digests(lambda part: map(bytes.fromhex, part["digests"]))))
    kept, places = np.arange(starts[-1]), collections.defaultdict(set)
    for detail, hashes in alike:
        values = np.concatenate(hashes)[kept]
        _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
        originals = kept[first[inverse]]
        repeated = kept != originals
        for index, original in zip(kept[repeated], originals[repeated], strict=True):
            part, place, key = located(index)
            places[parts[part]].add(place)
            reject = [key, "duplicate", detail.format(located(original)[-1])]
            units[parts[part][0]]["rejects"].append(reject)
        kept = kept[~repeated]
    return places


def _digests_of_keys(part):  # contents of a part -> 16 bytes each
    for key in part["keys"]:
        yield hashlib.blake2b(key.encode(errors=records.NAMES), digest_size=16).digest()
