"""readers.py: what torch and safetensors write is read without torch; the rest is refused."""

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from samclip_jax.convert import readers
from samclip_jax.errors import UserError

TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}


class Storage:
    """A flat array, pickled as torch pickles its storages."""

    def __init__(self, array):
        self.array = array


class View:
    """A tensor: part of a storage, seen with a shape and strides."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = storage, offset, shape, strides, False, OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter(View):
    def __reduce__(self):
        tensor = View(*self.arguments[:4])
        return sys.modules["torch._utils"]._rebuild_parameter, (tensor, True, OrderedDict())


def whole(array):
    strides = [step // array.itemsize for step in array.strides]
    return View(Storage(array.reshape(-1)), 0, array.shape, tuple(strides))


@pytest.fixture
def save(monkeypatch):
    """save(path, content, old=False): a file as torch.save writes it, made without torch."""
    torch, rebuild = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in TYPES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *_: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(rebuild, name, function)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", rebuild)

    def save(path, content, old=False):
        storages = []

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if not isinstance(value, Storage):
                    return None
                if value not in storages:
                    storages.append(value)
                name = next(n for n, dtype in TYPES.items() if value.array.dtype == dtype)
                key = str(storages.index(value))
                identity = ("storage", getattr(torch, name), key, "cpu", value.array.size)
                return (*identity, None) if old else identity

        stream = io.BytesIO()
        Pickler(stream, 2).dump(content)
        if not old:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("any name/data.pkl", stream.getvalue())
                for i, storage in enumerate(storages):
                    archive.writestr(f"any name/data/{i}", storage.array.tobytes())
                archive.writestr("any name/version", "3\n")
            return path
        machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
        with open(path, "wb") as file:
            for part in (0x1950A86A20F9469CFC6C, 1001, machine):
                pickle.dump(part, file, 2)
            file.write(stream.getvalue())
            pickle.dump([str(i) for i in range(len(storages))], file, 2)
            for storage in storages:
                file.write(struct.pack("<q", storage.array.size) + storage.array.tobytes())
        return path

    return save


def values(path):
    return {key: tensor.read() for key, tensor in readers.read(path).items()}


@pytest.mark.parametrize("old", [False, True])
def test_every_type_is_read(save, tmp_path, old):
    arrays = {
        name: (np.random.default_rng(0).standard_normal((2, 3)) * 9).astype(dtype)
        for name, dtype in TYPES.items()
    }
    arrays |= {"scalar": np.float32(2.5), "empty": np.zeros((0, 4), np.float32)}
    content = OrderedDict((key, whole(np.asarray(array))) for key, array in arrays.items())
    tensors = readers.read(save(tmp_path / "file.pth", content, old))
    assert list(tensors) == list(arrays)
    for key, array in arrays.items():
        assert (tensors[key].shape, tensors[key].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[key].read(), array)


@pytest.mark.parametrize("old", [False, True])
def test_views_of_one_storage_are_read_where_they_lie(save, tmp_path, old):
    """Transposed, cut out, repeated and wrapped in a Parameter, as slices of a fused weight are."""
    numbers = np.arange(24, dtype=np.float32)
    storage = Storage(numbers)
    content = {
        "transposed": View(storage, 0, (6, 4), (1, 6)),
        "cut": View(storage, 7, (2, 3), (6, 1)),
        "stepped": Parameter(storage, 1, (4,), (5,)),
    }
    read = values(save(tmp_path / "file.pth", content, old))
    table = numbers.reshape(4, 6)
    np.testing.assert_array_equal(read["transposed"], table.T)
    np.testing.assert_array_equal(read["cut"], table[1:3, 1:4])
    np.testing.assert_array_equal(read["stepped"], numbers[1::5][:4])


@pytest.mark.parametrize(
    "wrapped", ["state_dict", "model", "model_state_dict", "module.model", "model.state_dict"]
)
def test_a_state_dict_is_found_in_a_training_checkpoint(save, tmp_path, wrapped):
    content = {"module.a": whole(np.ones(2, np.float32)), "module.b": whole(np.ones(1, np.float32))}
    for name in reversed(wrapped.split(".")):
        content = {"epoch": 3, name: content, "optimizer": {"state": {}}}
    assert list(readers.read(save(tmp_path / "file.pt", content))) == ["a", "b"]
    content[wrapped.split(".")[0]] = content
    with pytest.raises(UserError, match="holds no state dict"):
        readers.read(save(tmp_path / "inside_itself.pt", content))


PREFIXES = ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "model._orig_mod.module.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_keys_are_read_without_what_wraps_the_model(save, tmp_path, kind, prefix):
    """DataParallel, torch.compile, a class with the model as an attribute; compiled parts too."""
    arrays = {"visual.proj": np.ones((2, 3), np.float32), "visual.ln.bias": np.zeros(3, np.float32)}
    keys = prefix + "visual.proj", prefix + "visual._orig_mod.ln.bias"
    saved, path = dict(zip(keys, arrays.values(), strict=True)), tmp_path / "file"
    if kind == "safetensors":
        safetensors.numpy.save_file(saved, path)
    else:
        save(path, {key: whole(array) for key, array in saved.items()}, old=kind == "old")
    read = values(path)
    assert read.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(read[key], array)


def test_a_model_and_another_one_wrapped_in_one_file_are_two(tmp_path):
    arrays = {"a": np.ones(2, np.float32), "module.a": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "file")
    with pytest.raises(UserError, match="holds two models: .* second tensor a"):
        readers.read(tmp_path / "file")


def test_a_model_twice_in_one_file_is_one(save, tmp_path):
    array = np.ones(2, np.float32)
    save(tmp_path / "file", {"a": whole(array), "module.a": whole(array.copy())})
    read = values(tmp_path / "file")
    assert list(read) == ["a"]
    np.testing.assert_array_equal(read["a"], array)


def test_modules_of_a_torchscript_archive_are_state_alone(save, tmp_path, monkeypatch):
    """OpenAI's CLIP files pickle objects of classes whose code is in the file: it stays there."""
    module = types.ModuleType("__torch__")
    module.Tower = type("Tower", (), {"__module__": "__torch__", "__qualname__": "Tower"})
    monkeypatch.setitem(sys.modules, "__torch__", module)
    tower, block, wrapper = (module.Tower() for _ in range(3))
    vars(block).update({"training": False, "weight": whole(np.ones(3, np.float32))})
    vars(tower).update({"blocks": block, "scale": whole(np.zeros(2, np.float16))})
    vars(wrapper).update({"model": tower})
    for saved in (tower, wrapper):
        tensors = readers.read(save(tmp_path / "file.pt", saved))
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        assert shapes == {"blocks.weight": (3,), "scale": (2,)}


def test_safetensors_are_read(tmp_path):
    arrays = {"a": np.ones((2, 3), ml_dtypes.bfloat16), "b": np.array(0.5, np.float16)}
    safetensors.numpy.save_file(arrays, tmp_path / "file")
    tensors = readers.read(tmp_path / "file")
    for key, array in arrays.items():
        assert (tensors[key].shape, tensors[key].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[key].read(), array)


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("attack", ["os", "eval", "Popen"])
def test_a_malicious_pickle_is_named_and_never_run(save, tmp_path, old, attack):
    ran = tmp_path / "ran"
    runs, name = {
        "os": (Runs(os.system, f"touch {ran}"), r"posix\.system"),
        "eval": (Runs(eval, f"open({str(ran)!r}, 'w')"), r"__builtin__\.eval"),
        "Popen": (Runs(subprocess.Popen, ["touch", str(ran)]), r"commands\.Popen"),
    }[attack]
    path = save(tmp_path / "file.pth", {"a": whole(np.ones(2, np.float32)), "b": runs}, old)
    with pytest.raises(UserError, match=f"refused and nothing in it was run.*{name}"):
        readers.read(path)
    assert not ran.exists()
    started = pickle.loads(pickle.dumps(runs))  # the same, where nothing is refused
    getattr(started, "wait", int)()
    assert ran.exists()


@pytest.mark.parametrize(
    "offset, shape, strides",
    [(0, (5, 5), (5, 1)), (20, (2, 3), (3, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)),
     (0, (9, 9), (0, 0)), (0, (2, 2), (30, 1))],
)  # fmt: skip
def test_a_tensor_cannot_reach_outside_of_its_storage(save, tmp_path, offset, shape, strides):
    view = View(Storage(np.zeros(24, np.float32)), offset, shape, strides)
    with pytest.raises(UserError, match="damaged.*outside of its storage"):
        readers.read(save(tmp_path / "file.pth", {"a": view}))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_truncated_file_is_named(save, tmp_path, kind, part):
    path = tmp_path / "file.pth"
    array = np.random.default_rng(0).standard_normal((40, 40), np.float32)
    if kind == "safetensors":
        safetensors.numpy.save_file({"a": array, "b": array + 1}, path)
    else:
        save(path, {"a": whole(array), "b": whole(array + 1)}, old=kind == "old")
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(UserError, match=f"{path} is truncated or damaged, download it again"):
        readers.read(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\xff\xd8\xff\xe0 a photograph", "not a weight file"),
        (pickle.dumps({"a": 1}), "not a weight file"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, content, reason):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        readers.read(tmp_path / "file.pth")


def test_a_zip_file_of_other_things_is_named(save, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="not one of weights"):
        readers.read(tmp_path / "photos.zip")
    with pytest.raises(UserError, match="no state dict"):
        readers.read(save(tmp_path / "file.pt", {"losses": [1.0, 0.5]}))


def test_the_weights_of_a_folder_are_found(tmp_path):
    with pytest.raises(UserError, match="which weight file of .* Found: none"):
        readers.weight_files(tmp_path)
    for name in ("b.pth", "a.pth"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"Found: a\.pth, b\.pth\. Give the file itself"):
        readers.weight_files(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert readers.weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    with pytest.raises(UserError, match="there is no file"):
        readers.weight_files(tmp_path / "absent.pth")


def test_shards_are_found_through_their_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "1.safetensors", "y": "2.safetensors"}}))
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(UserError, match=r"needs 2\.safetensors"):
        readers.weight_files(tmp_path)
    (tmp_path / "2.safetensors").touch()
    expected = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert readers.weight_files(tmp_path) == readers.weight_files(index) == expected
    index.write_text(json.dumps({"weight_map": {"x": "../secret"}}))
    with pytest.raises(UserError, match="not an index of weight files in its own folder"):
        readers.weight_files(index)


def test_the_digest_is_of_all_files(tmp_path):
    contents = [os.urandom(5_000_000), b"end"]
    files = [tmp_path / "a", tmp_path / "b"]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    assert readers.sha256(files) == hashlib.sha256(b"".join(contents)).hexdigest()


@pytest.mark.oracle
@pytest.mark.parametrize("old", [False, True])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, old):
    import torch

    base = torch.randn(4, 6, 5)
    content = {
        "half": base.half(), "bfloat16": base.bfloat16(), "double": base.double(),
        "long": torch.arange(5), "bool": base > 0, "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3), "transposed": base.transpose(0, 2), "cut": base[1:, ::2, 3],
        "parameter": torch.nn.Parameter(base), "float": base,
    }  # fmt: skip
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "file.pt"
    for saved in (content, module.state_dict()):
        torch.save(saved, path, _use_new_zipfile_serialization=not old)
        read = readers.read(path)
        assert read.keys() == saved.keys()
        for key, expected in saved.items():
            assert read[key].dtype.name == str(expected.dtype).removeprefix("torch.")
            expected = expected.detach()
            expected = expected.float() if read[key].dtype.name == "bfloat16" else expected
            np.testing.assert_array_equal(read[key].read(), expected.numpy())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; OpenAI's files are of it
@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_parameters_of_a_torchscript_archive_are_read(tmp_path, how):
    import torch

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
            self.scale = torch.nn.Parameter(torch.tensor(0.5))
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x):
            return self.layers(self.attention(x, x, x)[0]) * self.scale

    tower = Tower().half().float().eval()
    if how == "script":
        script = torch.jit.script(tower)
    else:
        script = torch.jit.trace(tower, torch.randn(1, 3, 8), check_trace=False)
    script.save(tmp_path / "file.pt")
    read = values(tmp_path / "file.pt")
    assert read.keys() == tower.state_dict().keys()
    for key, expected in tower.state_dict().items():
        np.testing.assert_array_equal(read[key], expected.numpy())
