"""The streams: exact, resumable, the same for any number of processes and workers, no crash."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from PIL import Image

from samclip_jax.data import transforms
from samclip_jax.data.decode import REASONS, BadRecord
from samclip_jax.data.pipeline import ClipStream, Mixture, SamStream, Schedule, stream
from samclip_jax.data.prompts import PromptConfig
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError

CLIP = ClipStream(batch_size=8, resolutions=(16, 32), base_resolution=16)
SAM = SamStream(batch_size=4, image_size=48, prompts=PromptConfig(per_image=5))


class Numbers:
    """A source of `size` plain images; the records in `bad` cannot be used."""

    def __init__(self, size, bad=(), name=""):
        self.size, self.bad, self.name = size, bad, name

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"Numbers({self.size})"

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRecord("truncated", index)
        return {"key": f"{self.name}{index}", "image": np.full((20, 24, 3), index, np.uint8)}


def take(count, sources, config, **options):
    with contextlib.closing(stream(sources, config, seed=1, keys=True, **options)) as batches:
        return [next(batches) for _ in range(count)]


def keys(batches):
    return [batch["key"] for batch in batches]


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def test_batches_have_constant_pixels_and_every_resolution_a_round():
    batches = take(8, Numbers(10), CLIP)
    shapes = [batch["image"].shape for batch in batches]
    assert all(batch["image"].dtype == np.uint8 for batch in batches)
    assert {shape[0] * shape[1] * shape[2] for shape in shapes} == {8 * 16 * 16}
    for turn in range(4):
        assert {shape[1] for shape in shapes[2 * turn : 2 * turn + 2]} == {16, 32}


@pytest.mark.parametrize("resolutions", [(224, 448), (224, 448, 1024), (1024,)])
def test_the_schedule_is_what_counting_gives(resolutions):
    """First examples are the running sum of the sizes; another seed has another order."""
    config = ClipStream(2048, resolutions)
    schedule = Schedule(config, seed=3)
    plan = [schedule(batch) for batch in range(60)]
    sizes = [size for _, size, _ in plan]
    assert [first for *_, first in plan] == [sum(sizes[:batch]) for batch in range(60)]
    assert {(r, size) for r, size, _ in plan} <= {(224, 2048), (448, 512), (1024, 98)} or (
        len(resolutions) == 1 and set(sizes) == {98}
    )
    far = schedule(10**9)
    assert far[2] == 10**9 // len(resolutions) * sum(schedule.sizes.values()) + sum(
        schedule(10**9 - i - 1)[1] for i in range(10**9 % len(resolutions))
    )
    other = [Schedule(config, seed=4)(batch) for batch in range(60)]
    assert (other != plan) == (len(resolutions) > 1)


@pytest.mark.parametrize("weight, size", [(2.5, 4), (0.5, 6), (0.7, 10), (2.7, 10)])
def test_weights_mix_sources(weight, size):
    """Beside 3 other records, so many an epoch; none twice as often as another, in the end even."""
    weighted, other = Numbers(size), Numbers(3)
    weighted.weight = weight
    mixture, count = Mixture([weighted, other], seed=0), round(weight * size)
    seen, total = [], collections.Counter()
    for epoch in range(10):
        epoch = [mixture[(count + 3) * epoch + e] for e in range(count + 3)]
        seen.append(collections.Counter(index for number, index in epoch if number == 0))
        assert sorted(index for number, index in epoch if number == 1) == [0, 1, 2]
    for each in seen:
        assert each.total() == count
        assert all(int(weight) <= each[index] <= int(weight) + 1 for index in range(size))
        total += each
    assert {total[index] for index in range(size)} == {10 * count / size}


def test_a_weight_that_leaves_nothing_is_refused():
    few = Numbers(4)
    few.weight = 0.1
    with pytest.raises(UserError, match="less than one record an epoch"):
        Mixture([few], seed=0)


def test_each_epoch_sees_each_image_once_in_another_order():
    sources = [Numbers(7, name="a"), Numbers(6, name="b")]
    seen = sum(keys(take(30, sources, CLIP)), [])
    epochs = [seen[i : i + 13] for i in range(0, len(seen) - 12, 13)]
    expected = sorted([f"a{i}" for i in range(7)] + [f"b{i}" for i in range(6)])
    assert len(epochs) > 9 and all(sorted(epoch) == expected for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_every_pass_draws_another_crop_of_an_image():
    ramp = np.mgrid[0:200, 0:240][[0, 1, 1]].transpose(1, 2, 0).astype(np.uint8)

    class One(Numbers):
        def __getitem__(self, index):
            return {"key": "0", "image": ramp}

    batches = [batch["image"] for batch in take(4, One(1), CLIP)]
    crops = np.concatenate([images for images in batches if images.shape[1] == 16])
    assert len(np.unique(crops, axis=0)) > 0.7 * len(crops)  # where no crop fits it is the whole
    flipped = crops[:, 8, 0, 1] > crops[:, 8, -1, 1]
    assert 0 < flipped.sum() < len(flipped)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("config", [dataclasses.replace(CLIP, batch_size=16), SAM])
def test_resume_is_exact_on_any_number_of_hosts(config, hosts):
    """Stopped after any batch and restarted on other hosts: the same global batches, in order."""
    if config is SAM:
        source = make_source("shape_scenes", split="train", size=30, image_size=32)
    else:
        source = Numbers(30, bad=(3, 4, 5))
    whole = take(6, source, config)
    for start in (0, 1, 4):
        shares = [lambda images, i=i: (i, hosts) for i in range(hosts)]
        parts = [take(6 - start, source, config, start=start, part=part) for part in shares]
        for number, (batch, *made) in enumerate(zip(whole[start:], *parts, strict=True), start):
            joined = {key: np.concatenate([part[key] for part in made]) for key in config.shapes(1)}
            joined["key"] = sum((part["key"] for part in made), [])
            joined["rejected"] = sum(part["rejected"] for part in made)
            joined["images"] = batch["images"]
            print(f"from {start}, batch {number}:", *(" ".join(part["key"]) for part in made))
            assert same(batch, joined)


def test_bad_records_are_replaced_by_others_of_their_source_and_counted():
    sources = [Numbers(20, bad=range(5), name="a"), Numbers(20, name="b")]
    batches = take(20, sources, CLIP)
    assert same(batches[7], take(8, sources, CLIP)[7])
    first = collections.Counter(sum(keys(batches), [])[:40])
    assert not {f"a{i}" for i in range(5)} & set(first)
    assert all(first[f"b{i}"] == 1 for i in range(20))  # replacements come from the other source
    assert sum(count for key, count in first.items() if key[0] == "a") == 20
    rejected = sum(batch["rejected"] for batch in batches)
    assert rejected.dtype == np.int32 and rejected.shape == (len(REASONS),)
    assert rejected[REASONS.index("truncated")] == rejected.sum() > 0


def test_where_everything_is_bad_the_run_stops_and_says_so(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=f"100 records of ImageFolder.{tmp_path}.*not_an_image"):
        take(1, make_source("folder", path=tmp_path), CLIP)


def test_images_without_annotations_cannot_feed_the_sam_stream():
    with pytest.raises(UserError, match="no_annotation: the source has images only"):
        take(1, Numbers(4), SAM)


def test_the_sam_stream_has_padded_photographs_with_prompts(tmp_path):
    source = make_source("shape_scenes", split="train", size=9, image_size=32)

    class Wide:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            record = source[index]
            return {**record, "image": np.concatenate([record["image"]] * 2, 1)}

    (batch,) = take(1, Wide(), SAM)
    first = Wide()[int(batch["key"][0].split("-")[-1])]["image"]
    np.testing.assert_array_equal(batch["image"][0, :24], transforms.resize_longest(first, 48))
    assert batch["image"].shape == (4, 48, 48, 3) and batch["image"].dtype == np.uint8
    assert batch["size"].dtype == np.int32 and batch["size"].tolist() == [[24, 48]] * 4
    assert batch["points"].shape == (4, 5, 4, 2) and batch["points"].dtype == np.float32
    assert batch["labels"].shape == (4, 5, 4) and batch["labels"].dtype == np.int32
    assert batch["image"][:, 24:].sum() == 0 and batch["image"][:, 23].min(-1).max() > 0
    assert (batch["points"] <= (48, 24)).all()  # px of the resized photograph


def test_only_arrays_go_to_the_device():
    batch = next(stream(Numbers(4), CLIP, seed=0))
    assert set(batch) == {"image", "images", "rejected"}


@pytest.mark.parametrize("config", [CLIP, SAM])
def test_examples_have_the_shapes_that_the_stream_tells(config):
    source = make_source("shape_scenes", split="train", size=30, image_size=32)
    for batch in take(3, source, config):
        expected = config.shapes(batch["image"].shape[1])
        for name, (shape, dtype) in expected.items():
            assert batch[name].shape == (batch["images"], *shape) and batch[name].dtype == dtype


def test_batch_multiple_makes_every_batch_divisible():
    sizes = Schedule(ClipStream(2048, (224, 448, 1024), batch_multiple=16), 0).sizes
    assert sizes == {224: 2048, 448: 512, 1024: 96}
    assert Schedule(ClipStream(8, (16, 1024), 16), 0).sizes[1024] == 1
    with pytest.raises(UserError, match="1 images at 1024 px, fewer than"):
        Schedule(ClipStream(8, (16, 1024), 16, batch_multiple=4), 0)


def test_a_position_from_a_checkpoint_counts_past_its_own_type():
    """Positions are saved as int32; the examples of a long run are more."""
    with contextlib.closing(stream(Numbers(4), CLIP, seed=0, start=np.int32(2**31 - 9))) as batches:
        with warnings.catch_warnings(action="error"):
            assert all(next(batches)["image"].any() for _ in range(12))


def test_a_stream_needs_a_source():
    with pytest.raises(UserError, match="at least one source"):
        stream([], CLIP, seed=0)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"resolutions": ()}, "resolutions must be a tuple of one or more"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be a tuple of 2, each a number above 0"),
        ({"crop_scale": (1.0, 0.9)}, "crop_scale must be the least and the greatest area"),
        ({"flip": 2}, "flip must be a number of at least 0 and at most 1, got 2"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ClipStream(**options)


def run(folder, program):
    """The program, as a file and with `folder` as its argument; it imports jax as training does."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, path, folder],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_workers_make_the_same_batches_and_never_import_jax(tmp_path):
    """Even those of a program without a main guard, whose source is a class of its own. A source's
    error comes back as it is."""
    Image.fromarray(np.full((20, 24, 3), 9, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("<html>")
    done = run(
        tmp_path,
        """
        import os, sys
        import jax, numpy as np
        from samclip_jax.data.pipeline import ClipStream, stream
        from samclip_jax.data.sources import ImageFolder
        from samclip_jax.errors import UserError

        class Telling(ImageFolder):
            def __getitem__(self, index):
                loaded = [name for name in ("jax", "jaxlib", "torch") if name in sys.modules]
                main = sys.modules["__main__"].__name__
                return super().__getitem__(index) | {"key": [os.getpid(), main, *loaded]}

        config = ClipStream(4, (16, 32), 16)
        source = Telling(sys.argv[1])
        alone = stream(source, config, seed=1, start=5)
        batches = stream(source, config, seed=1, start=5, workers=2, keys=True)
        pids = set()
        for _ in range(5):
            batch, expected = next(batches), next(alone)
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)
            for pid, *seen in batch["key"]:
                assert seen == ["__mp_main__"], seen
                pids.add(pid)
        assert len(pids) == 2 and os.getpid() not in pids
        batches.close()
        os.unlink(sys.argv[1] + "/a.png")
        try:
            next(stream(source, config, seed=1, workers=1))
        except UserError as error:
            assert "in a row cannot be used" in str(error)
            print("workers are well")
        """,
    )
    assert done.stdout == "workers are well\n", done.stderr


def test_workers_end_with_a_program_that_is_killed(tmp_path):
    """Its output ends only when the workers, who inherited it, have ended too."""
    Image.fromarray(np.full((20, 24, 3), 9, np.uint8)).save(tmp_path / "a.png")
    done = run(
        tmp_path,
        """
        import os, signal, sys
        from samclip_jax.data.pipeline import ClipStream, stream
        from samclip_jax.data.sources import ImageFolder

        batches = stream(ImageFolder(sys.argv[1]), ClipStream(4, (16,), 16), seed=1, workers=2)
        next(batches), next(batches)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_real_photographs_feed_both_streams(coco):
    folder = make_source("folder", path=coco / "images")
    (clip,) = take(1, folder, ClipStream(16, (224,)))
    assert clip["image"].shape == (16, 224, 224, 3) and not clip["rejected"].any()
    instances = make_source(
        "coco_instances", annotations=coco / "instances.json", images=coco / "images"
    )
    (sam,) = take(1, instances, SamStream(batch_size=4, image_size=256))
    assert (sam["size"].max(1) == 256).all() and sam["points"].shape == (4, 32, 4, 2)
    assert sam["image"].any((1, 2, 3)).all()
