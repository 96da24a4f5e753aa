"""Shards with labels, as DataComp's evaluation sets are released."""

import pytest
from test_evaluation_sets import CLASS_NAMES, made, write
from test_prepare import photograph, run_here, tar

from samclip_jax.data.unit import Options
from samclip_jax.errors import UserError
from samclip_jax.evals.batches import class_names


def shards(folder, labels=(b"1", b"0\n"), names="cat\ndog\n"):
    for number, label in enumerate(labels):
        tar(folder / f"test/{number}.tar", {
            f"s{number}.webp": photograph(number, "WEBP"), f"s{number}.cls": label
        } if label is not None else {f"s{number}.webp": photograph(number, "WEBP")})  # fmt: skip
    return write(folder, {} if names is None else {"classnames.txt": names})


@pytest.mark.parametrize("place", ["", "test"])
def test_the_number_beside_an_image_is_its_class(tmp_path, place):
    source, records = made("webdataset", shards(tmp_path / "in") / place, tmp_path / "out")
    assert source.classes == ["cat", "dog"]
    assert sorted(record["label"] for record in records.values()) == [0, 1]


def test_names_of_imagenet_that_occur_twice_are_told_apart(tmp_path):
    names = "\n".join(CLASS_NAMES["imagenet"].values())
    folder = shards(tmp_path / "in", [b"836", b"837"], names)
    source, records = made("webdataset", folder, tmp_path / "out")
    assert sorted(record["label"] for record in records.values()) == [836, 837]
    assert class_names(source)[837] == "sunglasses"


def test_a_label_that_is_no_class_is_a_bad_annotation(tmp_path):
    labels = [b"1", b"2", b"-1", b"", b"cat", b"1.0", None]
    options = Options(max_rejects=0.9)
    found = run_here("webdataset", shards(tmp_path / "in", labels), tmp_path / "out", options)
    assert found["records"] == 1 and found["reasons"] == {"bad_annotation": len(labels) - 1}


@pytest.mark.parametrize(
    "names, sentence",
    [
        (None, "no classnames.txt"),
        ("cat\ndog\ncat\n", "has 'cat' twice"),
        ("\ncat\ndog\n", "line 1 of .* is blank"),
    ],
)
def test_without_names_it_is_one_sentence(tmp_path, names, sentence):
    with pytest.raises(UserError, match=sentence):
        run_here("webdataset", shards(tmp_path / "in", names=names), tmp_path / "out")
