"""What the tests share."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

# Tests compile for longer than they run. Read when jax starts, here and in the tests' processes.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

ROOT = pathlib.Path(__file__).parents[1]
LONGEST = ("install", "train", "compile_only", "train_step", "oracle_models", "sharding", "samclip")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no process is left alone with one."""
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_runtest_setup(item):
    if item.get_closest_marker("oracle"):
        pytest.importorskip("torch", reason="the PyTorch originals are not installed")


@pytest.fixture(scope="session")
def coco():
    """Folder of real photographs in COCO's formats; where it is absent the test is skipped."""
    path = pathlib.Path(os.environ.get("SAMCLIP_COCO", ROOT.parent / "shared/data/coco_cc"))
    if not (path / "instances.json").exists():
        pytest.skip(f"no photographs at {path}; SAMCLIP_COCO names their folder")
    return path


@pytest.fixture(scope="session")
def environment():
    """For processes of the tests: this checkout, on the CPU."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def start_python(environment):
    """start_python(code, *arguments, devices=1): code in a process of its own, with CPU devices."""

    def start(code, *arguments, devices=1, wrapper=()):
        return subprocess.Popen(
            [*wrapper, sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "JAX_NUM_CPU_DEVICES": str(devices)},
        )

    return start


@pytest.fixture(scope="session")
def run_python(start_python):
    """The same, run to its end: (exit code, stdout, stderr)."""

    def run(*arguments, **options):
        process = start_python(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


@pytest.fixture
def last_words(monkeypatch):
    """last_words("samclip_jax.main", *arguments): the sentence with which that command line, run
    in this process, ends in exit code 1."""
    from absl import app, flags
    from absl.testing import flagsaver

    from samclip_jax import config

    monkeypatch.setattr(app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)

    registered = flags.FLAGS._flags()
    for name in list(registered):  # those of another command, which a test imported
        if flags.FLAGS.find_module_defining_flag(name).startswith("samclip_jax"):
            monkeypatch.delitem(registered, name)

    def run(module, *arguments):
        monkeypatch.delitem(sys.modules, module, raising=False)
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:  # flags are gone afterwards
            module = importlib.import_module(module)
            monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
            module.main() if hasattr(module, "parse") else config.run(module.main, module.EXAMPLE)
        assert isinstance(end.value.code, str), "Python prints the sentence and exits with 1"
        return end.value.code

    return run


@pytest.fixture(scope="session")
def words():
    """A CLIP's tokenizer.json of 60 tokens, one for each word of the procedural world."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from samclip_jax.data import shapes

    listed = ["<unk>", *shapes.vocabulary()]
    listed += [f"<spare {i}>" for i in range(len(listed), 58)]
    listed += ["<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(listed)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def tiny_sam():
    """A SAM of 64 px with random weights, ready to run; compiled once for all tests."""
    from parity import golden

    from samclip_jax.inference.model import Model

    return Model(golden("sam").config, golden("sam").params)


@pytest.fixture(scope="session")
def tiny_clip(words):
    """A CLIP of 64 px, ready to run."""
    from parity import golden

    from samclip_jax.inference.model import Model
    from samclip_jax.tokenizer import Tokenizer

    clip = golden("openclip_16")
    return Model(clip.config, clip.params, Tokenizer(words, clip.config.text.context_length))


@pytest.fixture(scope="session")
def tiny_samclip(tiny_sam, tiny_clip):
    """The two merged, with a new CLIP head."""
    from parity import golden

    from samclip_jax.inference.model import Model
    from samclip_jax.models.config import SamClipConfig
    from samclip_jax.models.samclip import start_params

    heads = golden("clip_head").config.heads
    config = SamClipConfig(tiny_sam.config, heads, tiny_clip.config.text)
    params = start_params(config, tiny_sam.params, tiny_clip.params)
    return Model(config, params, tiny_clip.tokenizer)
