"""Shards of about one size, whatever the units were; nothing lost, nothing doubled."""

import itertools
import json

import msgpack
import pytest
from test_prepare import keys, objects, photograph, rejects, tar

from samclip_jax.data import packing, prepare, records
from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options


class Killed(Exception):
    pass


def run(source, output, lives=None, kind="tar", **options):
    """data.prepare in this process; it is killed before item number `lives`, if that is reached."""
    numbers = itertools.count()

    def runner(work, items, check):
        for item in items:
            if next(numbers) == lives:
                raise Killed
            work(*item)

    return prepare.prepare(kind, source, output, Options(**options), runner)


def shards(manifest, split="train"):
    return [each for each in manifest["shards"] if each["split"] == split]


@pytest.fixture
def source(tmp_path):
    """Five small tars of photographs, each photograph in two of them."""
    for number in range(5):
        files = {f"{i}.jpg": photograph((3 * number + i) % 10) for i in range(4)}
        tar(tmp_path / f"source/{number}.tar", files)
    return tmp_path / "source"


def test_many_small_units_are_one_shard(tmp_path, source):
    found = run(source, tmp_path / "out", validation=0.4)
    assert [each["name"] for each in found["shards"]] == [
        "train-00000.array_record",
        "validation-00000.array_record",
    ]
    prepared = keys(tmp_path / "out") + keys(tmp_path / "out", "validation")
    assert sorted(prepared) == [f"{number}/{i}.jpg" for number in range(5) for i in range(4)]


def test_a_large_unit_is_many_shards_which_are_not_copied(tmp_path, source, monkeypatch):
    monkeypatch.setattr(records, "SHARD_BYTES", 1)
    monkeypatch.setattr(packing, "copy", None)
    found = run(source, tmp_path / "out")
    assert [each["records"] for each in shards(found)] == [1] * 20
    assert keys(tmp_path / "out") == [f"{number}/{i}.jpg" for number in range(5) for i in range(4)]


def test_neighbours_are_packed_as_long_as_they_fit(monkeypatch):
    """No shard over the size; two one after the other are over it together."""
    monkeypatch.setattr(records, "SHARD_BYTES", 100)
    sizes = [30, 30, 30, 30, 100, 80, 10, 10, 60]
    parts = [{"name": str(i), "bytes": size, "records": 10} for i, size in enumerate(sizes)]
    units = [{"parts": {"train": parts[i : i + 3], "validation": []}} for i in (0, 3, 6)]
    duplicates = {(1, "train"): {11, 13, *range(20, 30)}}  # of parts 4 and 5
    planned = packing.plan_shards(units, duplicates)
    assert [[part["name"] for part, _ in group] for _, group in planned] == [
        ["0", "1", "2"], ["3"], ["4", "6", "7"], ["8"]
    ]  # fmt: skip
    assert planned[2][1][0] == (parts[4], [1, 3])


@pytest.mark.parametrize("shard_bytes", [1, 5 * 10**5, 10**9])
def test_killed_before_any_step_it_goes_on(tmp_path, source, monkeypatch, shard_bytes):
    """Copies, renames and both; duplicates are left out in each."""
    monkeypatch.setattr(records, "SHARD_BYTES", shard_bytes)
    options = {"deduplicate": True, "validation": 0.3}
    whole = run(source, tmp_path / "whole", **options)
    assert whole["records"] == 10 and whole["reasons"] == {"duplicate": 10}
    for lives in range(3, 30, 4):
        try:
            run(source, tmp_path / "out", lives, **options)
        except Killed:
            continue
        break
    assert run(source, tmp_path / "out", **options) == whole
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {each["name"] for each in whole["shards"]} | {"manifest.json", "rejects.jsonl"}
    assert len({*keys(tmp_path / "out"), *keys(tmp_path / "out", "validation")}) == 10


@pytest.mark.parametrize("deduplicate", [False, True])
def test_a_key_is_that_of_one_record(tmp_path, deduplicate):
    """Two of SA-1B's tars with a name in common: the first record stays, the other is counted."""
    for number in range(2):
        files = {}
        for seed, name in enumerate(("sa_1", f"sa_{2 + number}"), start=2 * number):
            files |= {f"{name}.jpg": photograph(seed), f"{name}.json": objects()}
        tar(tmp_path / f"source/sa_{number:06d}.tar", files)
    given = (tmp_path / "source", tmp_path / "out")
    found = run(*given, kind="sa1b", deduplicate=deduplicate)
    assert (found["inputs"], found["records"], found["reasons"]) == (4, 3, {"duplicate": 1})
    assert keys(tmp_path / "out") == ["sa_1.jpg", "sa_2.jpg", "sa_3.jpg"]
    assert rejects(tmp_path / "out") == {"sa_1.jpg": "duplicate"}
    source = make_source("prepared", path=tmp_path / "out")
    assert msgpack.unpackb(source.shards[0])["image"] == photograph(0)


@pytest.mark.parametrize("shard_bytes", [1, 10**9])
def test_a_shard_is_finished_after_a_kill_within(tmp_path, source, monkeypatch, shard_bytes):
    """Before its entry is written, and before its parts are removed."""
    monkeypatch.setattr(records, "SHARD_BYTES", shard_bytes)
    whole = run(source, tmp_path / "whole")

    def killed(*_, **options):
        raise Killed

    for place in ("samclip_jax.data.packing.write_atomically", "pathlib.Path.unlink"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(place, killed)
            run(source, tmp_path / "out")
        assert (tmp_path / "out/progress").exists()
    assert run(source, tmp_path / "out") == whole


def test_a_set_of_a_shard_a_tar_is_read_as_before(tmp_path, source):
    """As they were made before shards were packed: named after their tars, one for each."""
    found = run(source, tmp_path / "out")
    data = records.Shards(tmp_path / "out/shards", found["shards"])
    entries = []
    for number in range(5):
        shard = records.ShardWriter(tmp_path / f"out/shards/train-{number}.array_record")
        for i in range(4):
            shard.write(data[4 * number + i])
        entries.append(shard.close())
    expected = keys(tmp_path / "out")
    manifest = tmp_path / "out/manifest.json"
    manifest.write_text(json.dumps(found | {"shards": entries}))
    assert len(make_source("prepared", path=tmp_path / "out").shards.files) == 5
    assert keys(tmp_path / "out") == expected
