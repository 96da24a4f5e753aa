"""The parts that units became -> shards of about 1 GB, whatever the units were.

Neighbouring parts are copied into one shard as long as they fit; a part that fits with none, as
those of large units, is only renamed. Two shards one after the other have more than 1 GB together.
A large set thus costs no second copy, and one of 22,000 small tars no 22,000 files.
"""

import collections
import functools
import json

import numpy as np

from samclip_jax.data import records
from samclip_jax.data.decode import BadRecord
from samclip_jax.data.unit import write_whole
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
    write_whole(progress / f"{name}.json", json.dumps(entry))
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


def find_duplicates(units, read_contents):
    """{(unit, split): places} of all images but the first one of each, in the order of the units,
    which are added to their unit's rejects.

    read_contents(unit number) -> {split: {"keys": list, "digests": list of hexadecimal str}}
    """
    parts = [(number, split) for number in range(len(units)) for split in records.SPLITS]

    @functools.lru_cache(8)
    def contents(part):
        number, split = parts[part]
        return read_contents(number)[split]

    def located(index):  # of all images -> part, place in it, key
        part = int(np.searchsorted(starts, index, "right")) - 1
        place = int(index - starts[part])
        return part, place, contents(part)["keys"][place]

    texts = ("".join(contents(part)["digests"]) for part in range(len(parts)))
    digests = [np.frombuffer(bytes.fromhex(text), "V16") for text in texts]
    starts = np.cumsum([0, *map(len, digests)])
    _, first, inverse = np.unique(np.concatenate(digests), return_index=True, return_inverse=True)
    originals, places = first[inverse], collections.defaultdict(set)
    for index in np.flatnonzero(originals != np.arange(len(originals))):
        part, place, key = located(index)
        *_, original = located(originals[index])
        places[parts[part]].add(place)
        units[parts[part][0]]["rejects"].append([key, "duplicate", f"of {original}"])
    return places
