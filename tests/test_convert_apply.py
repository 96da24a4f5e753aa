"""apply.py and the import command: every tensor in its place, or one error that lists all."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from releases import (
    CLIP,
    SAM,
    WORDS,
    assert_same,
    random_params,
    released,
    run,
    save_clip,
    save_sam,
    vocabulary,
)

from benchmarks.process import measured
from samclip_jax import checkpoint, models
from samclip_jax.convert import clip, export, readers, sam
from samclip_jax.convert.apply import import_weights
from samclip_jax.errors import UserError
from samclip_jax.inference.model import load
from samclip_jax.models.config import ClipConfig, SamConfig


def test_half_precision_and_shards_become_the_same_float32(tmp_path):
    clip_folder = save_clip(tmp_path / "clip")
    tensors = released(clip.OPEN_CLIP, CLIP)
    halves = {key: array.astype(np.float16) for key, array in tensors.items()}
    keys, weight_map = sorted(halves), {}
    for name, part in (("1.safetensors", keys[::2]), ("2.safetensors", keys[1::2])):
        saved = {f"module.{key}": np.array(halves[key], order="C") for key in part}
        safetensors.numpy.save_file(saved, clip_folder / name)
        weight_map |= dict.fromkeys(saved, name)
    (clip_folder / "open_clip_model.safetensors").unlink()
    index = clip_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert run("import", clip_folder, tmp_path / "made") is None
    _, params, _ = checkpoint.load_model(tmp_path / "made")
    at_once = load(clip_folder).params
    for name, array in random_params(CLIP).items():
        assert params[name].dtype == at_once[name].dtype == np.float32
        np.testing.assert_array_equal(params[name], array.astype(np.float16))


def test_what_is_written_in_half_precision_is_read_as_such(tmp_path):
    tensors = released(clip.OPEN_CLIP, CLIP)
    export.write_torch(tmp_path / "a.pt", tensors, "float16")
    export.write_safetensors(tmp_path / "a.safetensors", tensors, "float16")
    by_library = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    by_ours = {key: x.read() for key, x in readers.read(tmp_path / "a.pt").items()}
    for read in (by_ours, by_library):
        for key, array in tensors.items():
            np.testing.assert_array_equal(read[key], array.astype(np.float16))
            assert read[key].dtype == np.float16


def test_other_spellings_of_a_layout_are_read(tmp_path):
    """CustomTextCLIP's prefix, a logit_scale of shape [1], buffers that older versions saved, a
    tensor saved under two keys."""
    clip_folder = save_clip(tmp_path / "clip")
    tensors = released(clip.OPEN_CLIP, CLIP)
    spelt = {key if key.startswith("visual") else f"text.{key}": x for key, x in tensors.items()}
    spelt["logit_scale"] = spelt.pop("text.logit_scale")[None]
    spelt["text.attn_mask"] = np.zeros((16, 16), np.float32)
    export.write_safetensors(clip_folder / "open_clip_model.safetensors", spelt)
    assert_same(import_weights(clip_folder)[1], CLIP)

    tensors = released(sam.SAM_MODEL, SAM)
    copy = "prompt_encoder.shared_embedding.positional_embedding"
    own = "shared_image_embedding.positional_embedding"
    assert copy in tensors
    for left_out in (copy, own):
        kept = {key: array for key, array in tensors.items() if key != left_out}
        export.write_torch(tmp_path / "sam.bin", kept)
        assert_same(import_weights(tmp_path / "sam.bin")[1], SAM)
    export.write_torch(tmp_path / "sam.bin", tensors | {copy: tensors[own] + 1})
    with pytest.raises(UserError, match=f"1 doubled; nothing was written.\n  doubled *{own}"):
        import_weights(tmp_path / "sam.bin")


def test_every_mismatch_is_in_one_error(tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    tensors = released(sam.SEGMENT_ANYTHING, SAM)
    neck = tensors.pop("image_encoder.neck.1.weight")
    del tensors["mask_decoder.iou_token.weight"]
    tensors["image_encoder.pos_embed"] = np.zeros((1, 4, 4, 24), np.float32)
    tensors["optimizer.decay"] = np.zeros((), np.float32)
    export.write_torch(sam_file, tensors)
    with pytest.raises(UserError) as error:
        import_weights(sam_file)
    summary, *lines = str(error.value).splitlines()
    assert summary == (
        f"{sam_file} does not match SAM ViT-24x6: 1 unused, 1 of another shape, 2 missing; "
        "nothing was written."
    )
    assert [line.split(None, 2) for line in lines] == [
        ["missing", "image_encoder.neck.1.weight", str([*neck.shape])],
        ["missing", "mask_decoder.iou_token.weight", "[1, 32]"],
        ["shape", "image_encoder.pos_embed", "[1, 4, 4, 24], expected [1, 8, 8, 24]"],
        ["unused", "optimizer.decay", "[]"],
    ]


def test_integers_are_no_weights(tmp_path):
    tensors = {key: np.array(x, order="C") for key, x in released(sam.SAM_MODEL, SAM).items()}
    tensors["vision_encoder.neck.layer_norm1.bias"] = np.zeros(32, np.int8)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="1 of another type.*\n *type *.*int8, expected float"):
        import_weights(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["image_encoder.blocks.1.attn.qkv.weight", "no_mask_embed.weight"])
def test_values_that_are_not_finite_are_refused(key, value, tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    tensors = {k: np.array(x) for k, x in released(sam.SEGMENT_ANYTHING, SAM).items()}
    (key,) = [each for each in tensors if each.endswith(key)]
    tensors[key].flat[-1] = value
    export.write_torch(sam_file, tensors)
    with pytest.raises(UserError, match=f"{key} in .*sam.pth has values that are not finite"):
        import_weights(sam_file)


def test_a_model_of_another_kind_is_named(tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    export.write_torch(tmp_path / "resnet.pth", {"fc.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match="holds no model that is known here.*fc.weight"):
        import_weights(tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="is a SAM: a tokenizer and an activation are for a CLIP"):
        import_weights(sam_file, quick_gelu=True)


@pytest.mark.parametrize("missing", ["image_encoder.blocks.5", "prompt_encoder.mask_downscaling.3"])
def test_a_size_that_cannot_be_told_is_one_sentence(missing, tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    tensors = released(sam.SEGMENT_ANYTHING, SAM)
    kept = {key: array for key, array in tensors.items() if not key.startswith(missing)}
    export.write_torch(sam_file, kept)
    with pytest.raises(UserError, match="global attention is in blocks|mask_downscaling.3.weight"):
        import_weights(sam_file)


def test_import_writes_a_checkpoint_and_says_what(tmp_path, capsys):
    sam_file = save_sam(tmp_path / "sam.pth")
    assert run("import", sam_file, tmp_path / "sam") is None
    config, params, tokenizer = checkpoint.load_model(tmp_path / "sam")
    assert (config, tokenizer) == (SAM, None)
    assert_same(params, SAM)
    source = json.loads((tmp_path / "sam/model.json").read_text())["source"]
    digest = subprocess.run(["sha256sum", sam_file], capture_output=True, text=True).stdout.split()
    assert source == {"name": "sam.pth", "sha256": digest[0], "assumed": []}
    out = capsys.readouterr().out
    count = models.count(random_params(SAM))
    for expected in ("SAM ViT-24x6", f"{count:,}", "sam.pth", digest[0], f"{tmp_path}/sam"):
        assert expected in out


def test_import_leaves_what_is_there(tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    for output in ("photos", "sam.pth"):
        assert "exists and is not a checkpoint" in run("import", sam_file, tmp_path / output)
    assert run("import", sam_file, tmp_path / "sam") is None
    assert "holds a checkpoint already" in run("import", sam_file, tmp_path / "sam")
    assert sorted(os.listdir(tmp_path)) == ["photos", "sam", "sam.pth"]


def test_an_error_writes_nothing_and_exits_with_one(tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    os.truncate(sam_file, 1000)
    result = subprocess.run(
        [sys.executable, "-m", "tools.convert_weights", "import", sam_file, tmp_path / "sam"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"convert_weights: {sam_file} is truncated or damaged")
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["sam.pth"]


WITHOUT_PERMISSION = """
import os, sys
from samclip_jax.convert.__main__ import main

_, source, forbidden, allowed = sys.argv
main(["import", source, allowed])  # loads what is loaded on first use, which only root may
os.setegid(65534)
os.seteuid(65534)
main(["import", source, forbidden])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permission")
def test_no_permission_is_one_sentence(run_python):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        folder = Path(folder)
        folder.chmod(0o755)
        sam_file = save_sam(folder / "sam.pth")
        arguments = WITHOUT_PERMISSION, sam_file, folder / "sam", folder / "first"
        code, _, said = run_python(*arguments)
        assert code == 1 and f"{folder}/sam was not written: Permission denied" in said
        assert len(said.splitlines()) == 1
        assert sorted(os.listdir(folder)) == ["first", "sam.pth"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam.pth", "sam.safetensors", "half.safetensors"])
def test_memory_is_at_most_2_2_times_the_file(name, tmp_path):
    """SAM ViT-B, 375 MB; CLIP ViT-L/14 in half precision, 855 MB."""
    path = tmp_path / name
    more = []
    if name == "sam.pth":
        export.write_torch(path, released(sam.SEGMENT_ANYTHING, SamConfig()))
    elif name == "sam.safetensors":
        export.write_safetensors(path, released(sam.SAM_MODEL, SamConfig()))
    else:
        tensors = released(clip.OPEN_CLIP, ClipConfig()).items()
        halves = {key: np.asarray(array, np.float16, order="C") for key, array in tensors}
        safetensors.numpy.save_file(halves, path)
        more_words = [f"<{i}>" for i in range(ClipConfig().text.vocab_size - len(WORDS))]
        (tmp_path / "words.json").write_text(vocabulary([*more_words, *WORDS]))
        more = ["--tokenizer", tmp_path / "words.json"]
    arguments = [sys.executable, "-m", "samclip_jax.convert", "import", path, tmp_path / "made"]
    assert measured([*arguments, *more])["peak_gb"] < 2.2e-9 * path.stat().st_size
