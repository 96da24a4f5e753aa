"""Checkpoints on disk: whole models, and the steps of a training run. The only user of Orbax.

    DIR/model.json          {"config": the model's config, "source": {"name", "sha256"} or null}
    DIR/tokenizer.json      of a clip or samclip model, a Hugging Face `tokenizers` file
    DIR/params/             {"a/b/c": array}, float32 or as it was imported; read as float32
    DIR/checkpoints/STEP/   in a training run only: {"params": {trainable "a/b/c": array}, ...}

model.json is written last: a directory without it is no checkpoint. DIR may be local or gs://.
"""

import contextlib
import json
import logging
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from samclip_jax import families, sharding
from samclip_jax.errors import UserError, os_errors
from samclip_jax.models.samclip import LOGIT_SCALE
from samclip_jax.paths import any_path, is_remote

RENAMED = (  # of files made before a parameter had its name
    (re.compile("encoder/neck/conv2$"), "encoder/neck/conv2/kernel"),
    (re.compile("clip_head/"), "heads/clip/"),
)
STEPS = "checkpoints"


def save_model(directory, config, params, tokenizer_json=None, source=None):
    """Writes a model checkpoint; it appears whole or not at all.

    config: a SamConfig, ClipConfig or SamClipConfig. params: {"a/b/c": numpy or jax array}, not
    copied. source: {"name": ..., "sha256": ...} of the file that they came from.
    UserError where a checkpoint exists already (it is never overwritten), without permission and
    without space. All processes of a job call it together.
    """
    directory = require_new(directory)
    described = {"config": families.to_dict(config), "source": source}
    texts = {"tokenizer.json": tokenizer_json, "model.json": json.dumps(described, indent=2)}
    renames = not is_remote(directory)  # there a rename is a copy of every object
    staging = directory.parent / f"{directory.name}.incomplete" if renames else directory
    try:
        with os_errors(f"{directory} was not written"):
            _on_first_process(_empty, staging if renames else staging / "params")
            with _context(host_copies=False):
                ocp.save(staging / "params", params)
            _on_first_process(_commit, staging, directory, texts)
    except BaseException:
        if renames and jax.process_index() == 0:
            _remove(staging)
        raise


def load_model(directory, outputs=(), mesh=None, initial=False):
    """(config, {"a/b/c": jax array}, tokenizer.json's text or None) of a model checkpoint.

    A training run gives its newest step's parameters over the ones it started from, or (initial)
    the latter alone. A merged model of a time when its CLIP teacher's logit_scale was not kept gets
    ln(100). outputs: what the caller asks of the model, of Family.outputs.
    mesh: the parameters are laid out over it, see sharding.shardings; by default they lie on the
    first local device. UserError where the directory is no checkpoint, is incomplete or of another
    kind.
    """
    directory = any_path(directory)
    config = load_config(directory, outputs)
    with os_errors(f"{directory} was not read"):
        if not (directory / "params").exists():
            raise UserError(f"{directory} is incomplete: it has model.json and no params/")
        step = None if initial else newest_step(directory)
        newest = [] if step is None else [directory / STEPS / str(step)]
        sources = [directory / "params", *newest]
        origin = {
            _renamed(name): (name, leaf, path)
            for path in sources
            for name, leaf in _stored(path).items()
        }
        abstract = {name: leaf for name, (_, leaf, _) in origin.items()}
        unscaled = "text" in families.of(config).outputs and "logit_scale" not in origin
        if unscaled:
            abstract["logit_scale"] = jax.ShapeDtypeStruct((), np.float32)
        one = dict.fromkeys(abstract, _one_device())
        placed = sharding.shardings(mesh, abstract) if mesh else one
        params = {}
        for source in sources:
            names = {name: old for name, (old, _, path) in origin.items() if path == source}
            wanted = {old: _at(abstract[name], placed[name]) for name, old in names.items()}
            loaded = _load(source, wanted)
            params |= {name: loaded[old] for name, old in names.items()}
        if unscaled:
            params["logit_scale"] = jax.make_array_from_callback(
                (), placed["logit_scale"], lambda _: np.float32(LOGIT_SCALE)
            )
        tokenizer = directory / "tokenizer.json"
        return config, params, tokenizer.read_text() if tokenizer.exists() else None


def load_config(directory, outputs=()):
    """The config of a model checkpoint, without its parameters; errors as `load_model`."""
    directory = any_path(directory)
    with os_errors(f"{directory} was not read"):
        if not (directory / "model.json").exists():
            raise UserError(_not_a_checkpoint(directory))
        try:
            described = json.loads((directory / "model.json").read_text())["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{directory}/model.json is damaged: {error}") from error
    config = families.from_dict(described)
    family = families.of(config)
    if not family.outputs >= {*outputs}:
        wanted = families.titles(outputs)
        raise UserError(f"{directory} is {family.title} checkpoint; {wanted} one is needed")
    return config


def newest_step(directory):
    """The number of the newest whole step of a training run; None where there is none."""
    directory = any_path(directory)
    with os_errors(f"{directory} was not read"):
        if not (directory / STEPS).exists():
            return None
        steps = ocp.path.step.standard_name_format().find_all(directory / STEPS)
        return max((entry.step for entry in steps), default=None)


def require_new(directory):
    """The directory as a path, once it is sure that no checkpoint would be overwritten there."""
    directory = any_path(directory)
    with os_errors(f"{directory} was not written"):
        if (directory / "model.json").exists():
            raise UserError(
                f"{directory} holds a checkpoint already, which is left as it is: "
                "remove it or choose another directory"
            )
    return directory


class TrainCheckpoints:
    """The steps of a training run, in DIR/checkpoints: saved in the background, newest kept.

    State is any tree of arrays and numbers with string keys and optax states; its "params" are
    the flat trainable parameters. All processes of a job call every method together.
    """

    def __init__(self, directory, every_steps, keep):
        """Saves at multiples of every_steps and before a pre-emption; the `keep` newest stay."""
        policies = ocp.training.save_decision_policies
        self.directory = any_path(directory) / STEPS
        with os_errors(f"{self.directory} was not written"):
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                context=_context(),
                save_decision_policy=policies.AnySavePolicy(
                    [
                        policies.FixedIntervalPolicy(every_steps),
                        policies.PreemptionCheckpointingPolicy(),
                    ]
                ),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,  # of a run that was killed while it saved
            )

    @property
    def latest_step(self):
        """The newest step, saved or being saved, or None."""
        latest = self._checkpointer.latest
        return latest.step if latest else None

    def due(self, step):
        """Whether `save` would save this step. Cheap: to be asked at every one."""
        return self._checkpointer.should_save(step)

    def save(self, step, state, force=False):
        """Starts a save where step asks for one (or force does); True if it did.

        The state may be donated or changed right after. UserError if this save cannot start or the
        one before it failed; whole earlier steps are never touched by a failure.
        """
        if step == self.latest_step:
            return False
        with os_errors(f"{self.directory} was not written"):
            return self._checkpointer.save_async(step, state, force=force) is not None

    def restore(self, abstract_state):
        """The newest step as abstract_state says, or None if there is no step yet.

        abstract_state: ShapeDtypeStructs with their shardings, on any number of devices; a leaf
        without one (optax's counts) is replicated over the mesh of the others. UserError where
        names or shapes differ from what was saved.
        """
        self.wait()
        if self.latest_step is None:
            return None
        path = self.directory / str(self.latest_step)
        with _damaged(path):
            _require_fit(path, ocp.metadata(path).metadata, abstract_state)
            return self._checkpointer.load(self.latest_step, _with_shardings(abstract_state))

    def wait(self):
        """Until the save under way is whole. UserError if it failed."""
        with os_errors(f"{self.directory} was not written"):
            self._checkpointer.wait()

    def close(self):
        """Waits for the save under way. UserError if it failed."""
        with os_errors(f"{self.directory} was not written"):
            self._checkpointer.close()


def _commit(staging, directory, texts):
    """Puts the staged model in place, model.json last."""
    for name, text in texts.items():
        if text is not None:
            (staging / name).write_text(text)
    if staging == directory:
        return
    if not directory.exists():
        staging.rename(directory)
        return
    _remove(directory / "params")
    for name in ("params", *(name for name, text in texts.items() if text is not None)):
        (staging / name).replace(directory / name)
    staging.rmdir()


def _on_first_process(function, *args):
    if jax.process_index() == 0:
        function(*args)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(function.__name__)


def _empty(directory):
    _remove(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)


def _remove(directory):
    if directory.exists():
        directory.rmtree()


def _stored(path):
    """{"a/b/c": ShapeDtypeStruct, float32} of the parameters in params/ or in a training step."""
    with _damaged(path):
        tree = ocp.metadata(path).metadata
        leaves = tree["params"] if path.parent.name == STEPS else tree
        return {name: jax.ShapeDtypeStruct(x.shape, np.float32) for name, x in leaves.items()}


def _renamed(name):
    for pattern, new in RENAMED:
        name = pattern.sub(new, name) if pattern.match(name) else name
    return name


def _load(path, wanted):
    """wanted: {"a/b/c": ShapeDtypeStruct with its sharding}, some of what `_stored` found."""
    if not wanted:  # Orbax refuses to load nothing
        return {}
    nested = path.parent.name == STEPS
    with _damaged(path), _context(partial=True):
        tree = ocp.load(path, {"params": wanted} if nested else wanted)
    return tree["params"] if nested else tree


@contextlib.contextmanager
def _damaged(path):
    """A UserError for whatever Orbax raises on damaged files, bare Exceptions among it."""
    try:
        with os_errors(f"{path} was not read"):
            yield
    except (UserError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path} is damaged; restore it from a copy: {reason}") from error


def _context(host_copies=True, partial=False):
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = host_copies
    context.array.saving.use_compression = False  # 1.15 GB: 2 s and no copy; else 9 s and a copy
    context.asynchronous.create_directories_asynchronously = False  # a failure there would hang
    context.pytree.loading.partial_load = partial
    return context


def _one_device():
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _at(leaf, sharding):
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf), sharding=sharding)


def _with_shardings(abstract_state):
    """Every leaf gets a sharding: Orbax would else ask for the devices that it was saved from."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(abstract_state)]
    meshes = [one.mesh for one in shardings if hasattr(one, "mesh")]
    replicated = jax.NamedSharding(meshes[0], jax.P()) if meshes else _one_device()
    return jax.tree.map(
        lambda leaf: _at(leaf, getattr(leaf, "sharding", None) or replicated), abstract_state
    )


def _require_fit(path, stored, abstract_state):
    stored, wanted = _shapes(stored), _shapes(abstract_state)
    lines = [f"missing   {name}  {wanted[name]}" for name in wanted.keys() - stored.keys()]
    lines += [f"unknown   {name}  {stored[name]}" for name in stored.keys() - wanted.keys()]
    lines += [
        f"shape     {name}  {stored[name]}, expected {wanted[name]}"
        for name in wanted.keys() & stored.keys()
        if stored[name] != wanted[name]
    ]
    if lines:
        listed = "\n  ".join(sorted(lines)[:20])
        raise UserError(
            f"{path} is of another configuration or of an earlier version, {len(lines)} arrays "
            "differ; resume with what it was started with, or begin anew from its weights: "
            f"--config.init={path.parent.parent} and another --workdir.\n  {listed}"
        )


def _shapes(tree):
    """{"opt_state/0/mu/a/b": shape}, alike for a saved tree and a live one."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(np.shape(leaf))
        for path, leaf in leaves
    }


def _not_a_checkpoint(directory):
    """One sentence: what is there and what was expected."""
    if not directory.exists():
        return f"there is no checkpoint at {directory}: no such directory"
    if not directory.is_dir():
        return (
            f"{directory} is a file, not a checkpoint directory; released weights become one by "
            f"python -m samclip_jax.convert import {directory} OUTPUT"
        )
    names = sorted(entry.name for entry in directory.iterdir())
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    reason = f"it holds {listed}" if names else "it is empty"
    if directory.parent.name == STEPS and (directory.parent.parent / "model.json").exists():
        return f"{directory} is one step of a run; give the run, {directory.parent.parent}"
    return f"{directory} is not a checkpoint: it has no model.json, {reason}"


class _RaisedAnyway(logging.Filter):
    """Drops the stack traces that Orbax logs in its threads: each is raised to the caller too."""

    def filter(self, record):
        return not (record.exc_info and "orbax" in record.pathname)


logging.getLogger("absl").addFilter(_RaisedAnyway())
