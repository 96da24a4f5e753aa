"""Prepared records: as many shards as there are, few files open, and errors that name the shard."""

import concurrent.futures
import os
import pickle
import random
import resource

import pytest

from samclip_jax.data import records, storage
from samclip_jax.data.decode import BadRecord
from samclip_jax.errors import UserError


def write_shards(folder, count, size=2, name="train-{:05d}.array_record"):
    """`count` shards of `size` records, "record 0", "record 1" and so on; and their entries."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number in range(count):
        shard = records.ShardWriter(folder / name.format(number))
        for i in range(size):
            shard.write(b"record %d" % (number * size + i))
        entries.append(shard.close())
    return entries


@pytest.fixture
def limit_files():
    """limit_files(count): so many more files may be opened, as `ulimit -n` has it; None: as many as
    before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(count):
        listed = sorted(map(int, os.listdir("/proc/self/fd"))) if count is not None else ()
        for descriptor in listed:
            is_open = os.path.exists(f"/proc/self/fd/{descriptor}")  # the listing's own no more
            count += is_open and descriptor <= count  # each takes a place, wherever it lies
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft if count is None else count, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_number_of_shards_is_read_with_few_files_open(tmp_path, limit_files, monkeypatch):
    """By threads, in any order, and by a copy as a worker gets it; none is opened in vain."""
    monkeypatch.setattr(storage.time, "sleep", None)
    entries = write_shards(tmp_path, records.READERS + 40)
    data = pickle.loads(pickle.dumps(records.Shards(tmp_path, entries)))
    limit_files(records.READERS + 10)
    places = random.Random(0).choices(range(len(data)), k=1000)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(data.__getitem__, places)) == [b"record %d" % i for i in places]
    assert list(data) == [b"record %d" % i for i in range(len(data))]
    with pytest.raises(IndexError):
        data[-1]


def test_counts_are_the_manifests_and_no_file_is_opened_before_it_is_read(tmp_path):
    entries = [{"name": "nowhere", "records": 3, "sha256": ""}] + write_shards(tmp_path, 1)
    data = records.Shards(tmp_path, entries)
    assert len(data) == 5 and data[3] == b"record 0"
    with pytest.raises(UserError, match="nowhere is not as it was prepared.*No such file"):
        data[0]


def test_a_shard_prepared_anew_is_not_read_from_the_old_file(tmp_path):
    (entry,) = write_shards(tmp_path, 1)
    assert records.Shards(tmp_path, [entry])[1] == b"record 1"
    (tmp_path / entry["name"]).unlink()
    (entry,) = write_shards(tmp_path, 1, size=3)
    assert records.Shards(tmp_path, [entry])[2] == b"record 2"


def test_storage_that_fails_now_and_then_is_read_again(tmp_path, limit_files, monkeypatch):
    """Here by too many open files: first until the second try, then for ever."""
    data = records.Shards(tmp_path, write_shards(tmp_path, 2))
    records._reader.cache_clear()
    limit_files(0)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: limit_files(None))
    assert data[0] == b"record 0"
    records._reader.cache_clear()
    limit_files(0)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="train-00001.* after 5 tries: .*Too many open files"):
        data[2]


def test_damage_of_a_record_is_its_own_and_that_of_a_shard_ends_the_run(tmp_path):
    entries = write_shards(tmp_path, 3)
    paths = [tmp_path / each["name"] for each in entries]
    paths[0].write_bytes(paths[0].read_bytes().replace(b"record 1", b"record 7"))
    paths[1].write_bytes(paths[1].read_bytes()[:70000])
    entries[2]["records"] = 9
    data = records.Shards(tmp_path, entries)
    assert data[0] == b"record 0"
    with pytest.raises(BadRecord, match="truncated: record 1 of .*train-00000"):
        data[1]
    with pytest.raises(UserError, match="train-00001.* copy it again"):
        data[2]
    with pytest.raises(UserError, match="train-00002.* holds 2 records, the manifest says 9"):
        data[4]
