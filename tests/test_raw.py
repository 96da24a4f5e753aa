"""Data sets as they are released: tars, folders, COCO's and those of TFDS, to records."""

import io

import msgpack
import numpy as np
import pytest
from test_prepare import photograph, run

from samclip_jax.data.sources import make_source
from samclip_jax.data.unit import Options
from samclip_jax.errors import UserError


def test_a_folder_with_classes(tmp_path):
    for name in ("cat/1.jpg", "dog/2.jpg", "dog/3.jpg"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(photograph(int(name[4])))
    run("folder", tmp_path / "source", tmp_path / "out", labels=True)
    source = make_source("prepared", path=tmp_path / "out")
    assert source.classes == ["cat", "dog"]
    assert [(source[i]["key"], source[i]["label"]) for i in range(3)] == [
        ("cat/1.jpg", 0), ("dog/2.jpg", 1), ("dog/3.jpg", 1)
    ]  # fmt: skip


def test_coco_is_prepared_as_it_is_read(tmp_path, coco):
    given = {"annotations": coco / "instances.json", "images": coco / "images"}
    options, images = Options(masks=True, max_mask_area=1.0), str(given["images"])
    run("coco", given["annotations"], tmp_path / "out", options=options, images=images)
    source = make_source("coco_instances", **given)
    read = {record["key"]: record for record in map(source.__getitem__, range(len(source)))}
    made = make_source("prepared", path=tmp_path / "out")
    assert len(made) == sum(bool(record["annotations"]) for record in read.values())
    for record in map(made.__getitem__, range(0, len(made), 7)):
        expected = read[record["key"]]
        np.testing.assert_array_equal(record["image"], expected["image"])
        for ours, theirs in zip(record["annotations"], expected["annotations"], strict=True):
            np.testing.assert_array_equal(ours["box"], theirs["box"])
            np.testing.assert_array_equal(np.asarray(ours["mask"]), np.asarray(theirs["mask"]))
            assert ours["category"] == theirs["category"]


def test_a_data_set_of_tfds(tmp_path, monkeypatch):
    """Read without decoding, from the folder that TFDS itself would take."""
    tfds = pytest.importorskip("tensorflow_datasets")
    files = [photograph(0), photograph(1), photograph(2)[:-200]]

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            names = tfds.features.ClassLabel(names=["cat", "dog"])
            features = {"image": tfds.features.Image(encoding_format="jpeg"), "label": names}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, file in enumerate(files):
                yield i, {"image": io.BytesIO(file), "label": i % 2}

    Tiny(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    found = run("tfds", "tiny", tmp_path / "out", split="test")
    assert (found["inputs"], found["records"], found["reasons"]) == (3, 2, {"truncated": 1})
    source = make_source("prepared", path=tmp_path / "out")
    stored = {source[i]["key"]: msgpack.unpackb(source.shards[i])["image"] for i in range(2)}
    assert set(stored.values()) == set(files[:2])
    assert all(key.startswith("tiny/1.0.0/test/") for key in stored)
    for i in range(2):
        number = files.index(stored[source[i]["key"]])
        assert source.classes[source[i]["label"]] == ("cat", "dog")[number % 2]


@pytest.mark.parametrize(
    "error, sentence",
    [
        (
            ValueError("File format is already set to FileFormat.TFRECORD"),
            "set TFDS_DATA_DIR to ano",
        ),
        (ModuleNotFoundError("No module named 'tensorflow'"), r"pip install -e .\[tfds\]"),
        (AssertionError("Manual directory does not exist"), "gives no 'train' of 'x': .* Manual"),
    ],
)
def test_what_tfds_cannot_give_is_one_sentence(tmp_path, monkeypatch, error, sentence):
    tfds = pytest.importorskip("tensorflow_datasets")

    def data_source(*arguments, **options):
        raise error

    monkeypatch.setattr(tfds, "data_source", data_source)
    with pytest.raises(UserError, match=sentence):
        run("tfds", "x", tmp_path / "out")
