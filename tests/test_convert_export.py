"""export.py: layouts of SAM that others read, bit for bit what was imported."""

import errno
import os

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

from samclip_jax import checkpoint, models
from samclip_jax.convert import export, readers, sam
from samclip_jax.convert.apply import import_weights
from samclip_jax.models.config import ClipHeadConfig, SamClipConfig


@pytest.mark.parametrize("layout", ["segment_anything", "huggingface"])
def test_export_and_import_give_the_same_bits(layout, tmp_path):
    sam_file = save_sam(tmp_path / "sam.pth")
    assert run("import", sam_file, tmp_path / "sam") is None
    output = tmp_path / "exported"
    assert run("export", tmp_path / "sam", output, "--layout", layout) is None
    config, params, _, _ = import_weights(output)
    assert config == SAM
    assert_same(params, SAM)
    if layout == "segment_anything":
        tensors = released(sam.SEGMENT_ANYTHING, SAM)
        read = {key: x.read() for key, x in readers.read(output).items()}
        assert read.keys() == tensors.keys()
        assert all((read[key] == tensors[key]).all() for key in tensors)
    assert "is left as it is" in run("export", tmp_path / "sam", output, "--layout", layout)


def test_a_merged_model_exports_its_sam_and_says_what_is_left_out(tmp_path, capsys):
    config = SamClipConfig(SAM, {"clip": ClipHeadConfig(1, 8, embed_dim=20)}, CLIP.text)
    params = random_params(config)
    checkpoint.save_model(tmp_path / "merged", config, params, vocabulary(WORDS))
    output = tmp_path / "sam.pth"
    assert run("export", tmp_path / "merged", output, "--layout", "segment_anything") is None
    found, exported, _, _ = import_weights(output)
    assert found == SAM
    assert all((exported[name] == params[name]).all() for name in exported)
    left_out = models.count(params) - models.count(exported)
    said = f"Not in that layout: heads, logit_scale, text; {left_out:,} parameters."
    assert said in capsys.readouterr().out


def test_export_of_a_clip_is_refused(tmp_path):
    clip_folder = save_clip(tmp_path / "clip")
    assert run("import", clip_folder, tmp_path / "checkpoint") is None
    said = run("export", tmp_path / "checkpoint", tmp_path / "x", "--layout", "huggingface")
    assert "is a CLIP checkpoint; a SAM or a merged SAM-CLIP one is needed" in said


@pytest.mark.parametrize("layout", ["segment_anything", "huggingface"])
def test_no_space_leaves_nothing_of_an_export(layout, tmp_path, monkeypatch):
    sam_file = save_sam(tmp_path / "sam.pth")
    assert run("import", sam_file, tmp_path / "sam") is None

    def full(tensors, dtype):
        yield from list(tensors.values())[:5]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "_written", full)
    said = run("export", tmp_path / "sam", tmp_path / "exported", "--layout", layout)
    assert "exported was not written: No space left on device" in said
    assert sorted(os.listdir(tmp_path)) == ["sam", "sam.pth"]


@pytest.mark.oracle
def test_exports_load_strictly_in_the_originals_and_answer_the_same(tmp_path):
    import originals
    import torch
    import transformers

    theirs = originals.randomise(originals.sam(SAM))
    torch.save(theirs.state_dict(), tmp_path / "sam.pth")
    assert run("import", tmp_path / "sam.pth", tmp_path / "sam") is None
    for output, layout in (("x.pth", "segment_anything"), ("x", "huggingface")):
        arguments = tmp_path / "sam", tmp_path / output, "--layout", layout
        assert run("export", *arguments) is None

    ours = originals.sam(SAM)
    ours.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    hugging_face, loaded = transformers.SamModel.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    assert not any(loaded.values())
    tensors = safetensors.torch.load_file(tmp_path / "x/model.safetensors")
    hugging_face.load_state_dict(tensors, strict=True)
    size = transformers.SamProcessor.from_pretrained(tmp_path / "x").image_processor.size
    assert size["longest_edge"] == 96

    image, points = torch.randn(1, 3, 96, 96), torch.tensor([[[30.0, 40.0]]])
    with torch.no_grad():
        embedding, expected = (sam.image_encoder(image) for sam in (ours, theirs))
        assert torch.equal(embedding, expected)
        sparse, dense = theirs.prompt_encoder((points, torch.ones(1, 1)), None, None)
        masks, iou = theirs.mask_decoder(
            embedding, theirs.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
        answer = hugging_face.eval()(
            pixel_values=image, input_points=points[None], input_labels=torch.ones(1, 1, 1)
        )
    torch.testing.assert_close(answer.iou_scores[0], iou, rtol=0, atol=1e-5 * iou.abs().max())
    torch.testing.assert_close(answer.pred_masks[0], masks, rtol=0, atol=1e-5 * masks.abs().max())
