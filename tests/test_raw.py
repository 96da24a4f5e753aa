"""Data sets as they are released: those of TFDS. The other kinds are in test_prepare.py."""

import io

import msgpack
import pytest
from test_prepare import photograph, run

from samclip_jax.data.sources import make_source


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
