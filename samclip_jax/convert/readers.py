"""Reads weight files without torch: safetensors, torch's files, new and old, and TorchScript's.

A file is never trusted: the unpickler knows the few names that a state dict needs, refuses every
other one by its name, and runs nothing that the file brings.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import struct
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  registers numpy's "bfloat16"
import numpy as np
from safetensors import safe_open

from samclip_jax.errors import UserError, os_errors
from samclip_jax.paths import local_path
from samclip_jax.progress import Bar

WEIGHT_FILES = (  # in a folder, the first that is there
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SAFETENSORS |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"}
SAFETENSORS |= {"U8": "uint8", "BOOL": "bool"}
# What training scripts put around a model: dictionaries, in one another; parts of keys, of torch's
# wrappers anywhere, and at the start the attribute of a class that has the model.
DICTIONARIES, NESTED = ("state_dict", "model_state_dict", "model", "module"), 4
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
ATTRIBUTE = "model"
OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a weight file: shape and type at once, values when they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)


def weight_files(source):
    """The weight files that `source`, a file or a folder, stands for; several if it is sharded."""
    path = local_path(source)
    if path.is_dir():
        files = [path / name for name in WEIGHT_FILES if (path / name).is_file()][:1]
        files = files or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(files) != 1:
            listed = ", ".join(file.name for file in files) or "none"
            raise UserError(f"which weight file of {path}? Found: {listed}. Give the file itself.")
        (path,) = files
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    if not path.name.endswith(".index.json"):
        return [path]
    shards = sorted(set(read_json(path).get("weight_map", {}).values()))
    if not shards or any(Path(name).name != name for name in shards):
        raise UserError(f"{path} is not an index of weight files in its own folder.")
    if missing := [name for name in shards if not (path.parent / name).is_file()]:
        raise UserError(f"{path} needs {', '.join(missing)}: download what is missing beside it.")
    return [path.parent / name for name in shards]


def read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}.") from error


def sha256(files):
    """SHA-256 of the files' bytes, one file after another."""
    digest = hashlib.sha256()
    total = sum(path.stat().st_size for path in files)
    with Bar(desc="SHA-256", total=total, unit="B") as bar:
        for path in files:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()


def read(path):
    """The tensors of one weight file, {key: Tensor}; its first bytes tell the format.

    Keys are the model's own, without what DataParallel, torch.compile and the like put into them.
    """
    try:
        with os_errors(f"{path} was not read"), open(path, "rb") as file:
            head = file.read(64)
            file.seek(0)
            return _without_wrappers(path, _reader(path, head)(path, file))
    except UserError:
        raise
    except Exception as error:  # damaged bytes fail in every way
        reason = f"{path} is truncated or damaged, download it again: {error}."
        raise UserError(reason) from error


def _reader(path, head):
    if head.startswith(b"PK\x03\x04"):
        return _read_zip
    if head.startswith(OLD_MAGIC):
        return _read_old
    if head[8:9] == b"{":
        return _read_safetensors
    if not head:
        raise UserError(f"{path} is empty: download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`.")
    if head.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, not weights: download the file itself.")
    raise UserError(
        f"{path} is not a weight file: expected .safetensors, or .pth, .pt or .bin of torch."
    )


def _read_safetensors(path, file):
    def described(weights, key):
        part = weights.get_slice(key)
        dtype = np.dtype(SAFETENSORS.get(part.get_dtype(), "V1"))
        return Tensor(tuple(part.get_shape()), dtype, lambda: values(key))

    def values(key):  # opened for each, for a mapped file counts as memory while it is open
        with safe_open(path, framework="numpy") as weights:
            return weights.get_tensor(key)

    with safe_open(path, framework="numpy") as weights:
        return {key: described(weights, key) for key in weights.keys()}


class _Unpickler(pickle.Unpickler):
    """Unpickles a state dict whose tensors stay in the file; every unknown name is refused."""

    def __init__(self, file, path):
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages = {}  # key -> (type, number of values)
        self.positions = {}  # key -> position in the file, known once the storages are found
        self.known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): self.tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): self.first,
            ("torch.jit._pickle", "restore_type_tag"): self.first,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            **{("torch", name): dtype for name, dtype in STORAGES.items()},
        }

    def find_class(self, module, name):
        if module.split(".")[0] == "__torch__":  # a TorchScript module: its state, never its code
            return types.SimpleNamespace
        if (module, name) not in self.known:
            raise UserError(
                f"{self.path} is refused and nothing in it was run: besides tensors it asks for "
                f"{module}.{name}. Get the weights from their publisher, best as .safetensors."
            )
        return self.known[module, name]

    def persistent_load(self, identity):
        kind, dtype, key, _, count, *view = identity
        if kind != "storage" or dtype not in STORAGES.values():
            raise ValueError(f"unknown reference {identity}")
        storage = np.dtype(dtype), int(count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key} is of two kinds")
        return key, view[0][1] if view and view[0] else 0  # views: torch before 0.4

    def tensor(self, storage, offset, shape, strides, *_):
        key, start = storage
        dtype, count = self.storages[key]
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        start, size = int(start + offset), math.prod(shape)
        span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        span = span if size else 0
        if min(start, *shape, *strides, 0) < 0 or max(size, start + span) > count:
            raise ValueError("a tensor is outside of its storage")

        def read():
            position = self.positions[key] + start * dtype.itemsize
            flat = np.fromfile(self.path, dtype, span, offset=position)
            if flat.size != span:
                raise UserError(f"{self.path} has become shorter while it was read.")
            steps = [step * dtype.itemsize for step in strides]
            return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

        return Tensor(shape, dtype, read)

    @staticmethod
    def first(value, *_):
        return value


def _read_zip(path, file):
    """torch.save since 1.6, and torch.jit.save: a zip of data.pkl and one record a storage."""
    archive = zipfile.ZipFile(file)
    records = {record.filename: record for record in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{path} is a zip file, but not one of weights as torch saves them.")
    (root,) = roots
    if root + "byteorder" in records and archive.read(root + "byteorder") != b"little":
        raise UserError(f"{path} comes from a big-endian machine: save it again on another one.")
    unpickler = _Unpickler(io.BytesIO(archive.read(root + "data.pkl")), path)
    content = unpickler.load()
    for key, (dtype, count) in unpickler.storages.items():
        record = records[f"{root}data/{key}"]
        if record.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path} is a compressed zip file: save it again with torch.save.")
        if record.file_size < count * dtype.itemsize:
            raise ValueError(f"storage {key} is short")
        file.seek(record.header_offset + 26)  # a local header ends with two lengths, then the two
        name, extra = struct.unpack("<HH", file.read(4))
        unpickler.positions[key] = record.header_offset + 30 + name + extra
    return _state_dict(path, content)


def _read_old(path, file):
    """torch.save before 1.6: magic, protocol, machine, state dict, storage keys, storages."""
    _, protocol, machine = (_Unpickler(file, path).load() for _ in range(3))
    if protocol != 1001 or not machine["little_endian"]:
        raise UserError(f"{path} comes from a torch or a machine that is not read here.")
    unpickler = _Unpickler(file, path)
    content = unpickler.load()
    end = path.stat().st_size
    for key in _Unpickler(file, path).load():
        dtype, count = unpickler.storages[key]
        (stored,) = struct.unpack("<q", file.read(8))
        unpickler.positions[key] = file.tell()
        if stored < count or file.seek(stored * dtype.itemsize, os.SEEK_CUR) > end:
            raise ValueError(f"storage {key} is short")
    if missing := unpickler.storages.keys() - unpickler.positions.keys():
        raise ValueError(f"storages {missing} are missing")
    return _state_dict(path, content)


def _state_dict(path, content):
    if isinstance(content, types.SimpleNamespace):
        content = dict(_script_tensors(content))
    for _ in range(NESTED):
        if isinstance(content, Mapping):
            inner = (content.get(name) for name in DICTIONARIES)
            content = next((value for value in inner if isinstance(value, Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {key: v for key, v in items if isinstance(key, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no state dict, the named tensors of a model.")
    return tensors


def _without_wrappers(path, tensors):
    """The same tensors by the model's own keys; UserError where one key has two tensors."""
    unwrapped = {}
    for key, tensor in tensors.items():
        parts = [part for part in key.split(".") if part not in WRAPPERS]
        while parts[:1] == [ATTRIBUTE]:
            del parts[0]
        name = ".".join(parts) or key
        if name in unwrapped and not np.array_equal(unwrapped[name].read(), tensor.read()):
            raise UserError(f"{path} holds two models: {key} is a second tensor {name}.")
        unwrapped[name] = tensor
    return unwrapped


def _script_tensors(module, prefix=""):
    for name, value in vars(module).items():
        if isinstance(value, types.SimpleNamespace):
            yield from _script_tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield prefix + name, value
