"""Our parameters in a published layout, written as torch or safetensors files without torch."""

import contextlib
import json
import shutil
import struct
import zipfile

import numpy as np

from samclip_jax import checkpoint
from samclip_jax.convert.sam import SAM_MODEL, SEGMENT_ANYTHING
from samclip_jax.errors import UserError, os_errors
from samclip_jax.paths import local_path
from samclip_jax.progress import Bar

FORMATS = {"float32": ("F32", "FloatStorage"), "float16": ("F16", "HalfStorage")}


def export_weights(source, output, layout):
    """Writes the SAM in a checkpoint as others read it; returns what the layout has no place for.

    layout: "segment_anything" (a .pth file) or "huggingface" (a folder for SamModel). The returned
    dict holds the parameters left out: CLIP head, text tower and logit_scale of a merged model.
    UserError where the output exists or cannot be written.
    """
    output = local_path(output)
    if output.exists():
        raise UserError(f"{output} exists and is left as it is: choose another name.")
    config, params, _ = checkpoint.load_model(source, {"masks"})
    params = {name: np.asarray(array) for name, array in params.items()}
    config = config.sam
    with _complete(output) as staging:
        if layout == "segment_anything":
            write_torch(staging, released(SEGMENT_ANYTHING, params))
        else:
            staging.mkdir()
            for name, described in _hugging_face(config).items():
                (staging / name).write_text(json.dumps(described, indent=2))
            write_safetensors(staging / "model.safetensors", released(SAM_MODEL, params))
    parts = ("encoder", "prompt_encoder", "mask_decoder")
    return {name: array for name, array in params.items() if name.split("/")[0] not in parts}


def released(layout, params):
    """{key: array} of our float32 parameters as a layout has them; views where that can be."""
    tensors = {}
    for key, parts in layout.views(params).items():
        tensors[key] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    for start, stands_for in layout.aliases.items():
        for key in [key for key in tensors if stands_for and key.startswith(stands_for)]:
            tensors[start + key.removeprefix(stands_for)] = tensors[key]
    return tensors


def write_torch(path, tensors, dtype="float32"):
    """A state dict as torch.save writes it; torch.load(weights_only=True) reads it. dtype: one of
    FORMATS, for all of it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _state_dict(tensors, dtype))
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(_written(tensors, dtype)):
            archive.writestr(f"archive/data/{i}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_safetensors(path, tensors, dtype="float32"):
    """The safetensors format, one tensor at a time: its library copies all of them first. dtype:
    one of FORMATS, for all of it."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, array in tensors.items():
        offsets = [end, end := end + array.size * np.dtype(dtype).itemsize]
        header[key] = {"dtype": FORMATS[dtype][0], "shape": array.shape, "data_offsets": offsets}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for array in _written(tensors, dtype):
            file.write(array.tobytes())


def _written(tensors, dtype):
    for array in Bar(tensors.values(), "writing", unit="tensors"):
        yield np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<"))


def _state_dict(tensors, dtype):
    """The pickle of an OrderedDict of tensors, as opcodes: pickle itself would import torch."""

    def text(value):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def integers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    empty = b"ccollections\nOrderedDict\n)R"
    kind = f"ctorch\n{FORMATS[dtype][1]}\n".encode()
    stream = b"\x80\x02" + empty + b"("
    for i, (key, array) in enumerate(tensors.items()):
        strides = np.cumprod([1, *array.shape[:0:-1]])[::-1] if array.ndim else ()
        storage = text("storage") + kind + text(str(i)) + text("cpu")
        stream += text(key) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        stream += b"(" + storage + b"\x8a\x08" + struct.pack("<q", array.size) + b"tQ"
        stream += b"K\x00" + integers(array.shape) + integers(strides) + b"\x89" + empty + b"tR"
    return stream + b"u."


def _hugging_face(config):
    """The JSON files of a SamModel folder, so that SamModel and SamProcessor load from it."""
    encoder, decoder = config.encoder, config.mask_decoder
    every = encoder.depth // encoder.groups
    grid = encoder.image_size // encoder.patch
    square = {"image_size": encoder.image_size, "patch_size": encoder.patch}
    model = {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "mlp_dim": encoder.mlp_width,
            "output_channels": encoder.out_channels,
            "num_pos_feats": encoder.out_channels // 2,
            "window_size": encoder.window,
            "global_attn_indexes": list(range(every - 1, encoder.depth, every)),
            **square,
        },
        "prompt_encoder_config": {
            "hidden_size": encoder.out_channels,
            "mask_input_channels": decoder.mask_channels,
            **square,
        },
        "mask_decoder_config": {
            "hidden_size": encoder.out_channels,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "mlp_dim": decoder.mlp_width,
            "num_multimask_outputs": decoder.multimask_outputs,
            "iou_head_depth": decoder.iou_depth,
            "iou_head_hidden_dim": decoder.iou_width,
            "layer_norm_eps": 1e-5,  # as in segment_anything; SamModel's default is 1e-6
        },
    }
    processor = {
        "processor_class": "SamProcessor",
        "image_processor_type": "SamImageProcessor",
        "size": {"longest_edge": encoder.image_size},
        "pad_size": {"height": encoder.image_size, "width": encoder.image_size},
        "mask_size": {"longest_edge": 4 * grid},
        "mask_pad_size": {"height": 4 * grid, "width": 4 * grid},
        "image_mean": [value / 255 for value in encoder.mean],
        "image_std": [value / 255 for value in encoder.std],
    }
    return {"config.json": model, "preprocessor_config.json": processor}


@contextlib.contextmanager
def _complete(output):
    """A name to write to, which becomes `output` once everything is there; else nothing stays."""
    staging = output.with_name(f"{output.name}.incomplete")
    try:
        with os_errors(f"{output} was not written"):
            output.parent.mkdir(parents=True, exist_ok=True)
            _remove(staging)
            yield staging
            staging.rename(output)
    finally:
        with contextlib.suppress(OSError):
            _remove(staging)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
