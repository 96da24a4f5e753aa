"""From `--config=FILE --config.key=value` to frozen dataclasses; an unknown key is an error."""

import dataclasses
import difflib
import os
import re
import typing

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from samclip_jax import compilation
from samclip_jax.errors import UserError, command, under

DTYPES = ("float32", "bfloat16")  # that models compute in


@dataclasses.dataclass(frozen=True)
class TermConfig:
    """One distillation term of the loss; see the registry TERMS in train.py."""

    loss: str  # clip: cosine distance to the CLIP teacher; sam: masks of the SAM teacher
    stream: str  # the data it is computed on
    teacher: str  # the frozen model it is distilled from
    weight: float
    micro_batches: int  # the batch is taken in so many equal parts, gradients averaged

    def __post_init__(self):
        at_least_one(self, "micro_batches")


@dataclasses.dataclass(frozen=True)
class MaskLossConfig:
    """L_FD of eq. 2; see losses.mask_distillation."""

    focal: float
    dice: float
    iou: float
    focal_alpha: float
    focal_gamma: float
    targets: str  # soft: the teacher's probabilities; binary: its masks at logit 0

    def __post_init__(self):
        one_of("targets", self.targets, ("soft", "binary"))


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The CLIP head that a run from a plain SAM begins with."""

    depth: int
    mlp_hidden: int
    pooling: str

    def __post_init__(self):
        one_of("pooling", self.pooling, ("max", "mean"))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float  # at the end of the warm-up
    end_learning_rate: float
    warmup_steps: int
    schedule_steps: int  # length of the cosine; a run may stop before its end
    weight_decay: float  # on kernels only
    b1: float
    b2: float
    eps: float
    clip_norm: float  # of the whole gradient; 0: none


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on; recipe.py says what each value is and where from."""

    init: str
    teachers: dict[str, str]
    head: HeadConfig
    terms: dict[str, TermConfig]
    mask_loss: MaskLossConfig
    streams: dict[str, dict]
    lr_factors: tuple
    optimizer: OptimizerConfig
    steps: int
    dtype: str
    remat: bool
    fsdp: int
    seed: int
    log_every: int
    checkpoint_every: int
    checkpoints_kept: int
    evals: dict[str, dict]
    eval_every: int

    def __post_init__(self):
        one_of("dtype", self.dtype, DTYPES)
        at_least_one(self, "steps", "log_every", "checkpoint_every", "checkpoints_kept", "fsdp")


def one_of(name, value, known):
    """UserError unless the value is one of those known. `build` puts the flag before the name."""
    if value not in known:
        raise UserError(f"{name} must be {' or '.join(known)}, got {value!r}")


def at_least_one(config, *names):
    """UserError unless these fields are 1 or more."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be 1 or more, got {getattr(config, name)}")


def build(cls, values, where):
    """The dataclass `cls` from a mapping, nested ones and dicts of them included.

    where: the flag that sets it, "--config.optimizer" say. UserError on an unknown key, with the
    nearest known one, on a missing one, and on a value that `cls` refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(fields)}"
            raise UserError(f"{where} has no key {key!r}{hint}")
    for name, field in fields.items():
        defaults = (field.default, field.default_factory)
        if name not in values and all(value is dataclasses.MISSING for value in defaults):
            raise UserError(f"{where} lacks the key {name!r}")
    values = {key: _value(kinds[key], v, f"{where}.{key}") for key, v in values.items()}
    with under(f"{where}."):
        return cls(**values)


def _value(kind, value, where):
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
        item = typing.get_args(kind)[1]
        return {key: build(item, part, f"{where}.{key}") for key, part in value.items()}
    return tuple(value) if isinstance(value, list) else value


def run(main, example):
    """Runs main(ConfigDict) with --config=FILE and its overrides; mistakes there are one line.

    example: a FILE to name where none is given.
    """
    flag = config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True)

    def parse(argv):
        try:
            rest = flags.FLAGS([re.sub("(?<=^--config=)~/.*", _expanded, text) for text in argv])
        except flags.Error as error:
            raise UserError(_one_line(error)) from error
        except (OSError, SyntaxError, UnicodeError) as error:
            raise UserError(f"--config: {_one_line(error)}") from error
        except (AttributeError, KeyError) as error:
            raise UserError(f"--config has no such key: {_one_line(error)}") from error
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; options are --name=value")
        if flag.value is None:
            raise UserError(f"set --config to an experiment, --config={example} say")
        if not isinstance(flag.value, ConfigDict):
            reason = getattr(flag.value, "_error", "get_config() must return a ConfigDict")
            raise UserError(f"--config: {_one_line(reason)}")
        return rest

    def quiet_main(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every step at INFO
        compilation.use_cache()
        main(flag.value)

    app.run(command(quiet_main), flags_parser=command(parse))


def _expanded(path):  # a match -> str
    return os.path.expanduser(path[0])


def _one_line(error):
    return " ".join(str(error).strip("'\"").replace("\\'", "'").replace("\\n", " ").split())
