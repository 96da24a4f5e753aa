"""From `--config=FILE --config.key=value` to frozen dataclasses; an unknown key is an error."""

import ast
import contextlib
import dataclasses
import difflib
import os
import re
import typing
from typing import Annotated, Literal

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from samclip_jax import compilation
from samclip_jax.errors import UserError, command, under
from samclip_jax.validation import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Seed,
    Share,
    Validated,
    as_tuple,
    check,
)

Dtype = Literal["float32", "bfloat16"]  # that models compute in
Decay = Annotated[float, Range(ge=0, lt=1)]  # of a moving average
TARGETS = {  # loss, kind of stream
    "summary": ("cosine", "clip"),
    "patches": ("cosine", "clip"),
    "masks": ("masks", "sam"),
}
MASKS = "mask_decoder"  # the head of every SAM
TEXT_HEAD = "clip"  # the head of every merged model, whose embeddings meet the texts
STREAM = {  # other keys are its kind's
    "kind": str,
    "workers": NonNegativeInt,
    "micro_batches": PositiveInt,  # equal parts of a batch, one after the other, gradients averaged
    "sources": dict,
}


@dataclasses.dataclass(frozen=True)
class TermConfig(Validated):
    """One distillation term: weight times the loss between the student's output and a teacher's."""

    stream: str  # the data it is computed on
    teacher: str  # the frozen model it is distilled from
    target: Literal["summary", "patches", "masks"]  # what is compared, see families/family.py
    head: str  # the student's, that learns it: a name of `heads`, or MASKS
    loss: Literal["cosine", "masks"]  # of train.LOSSES
    weight: NonNegativeFloat

    def __post_init__(self):
        super().__post_init__()
        loss, _ = TARGETS[self.target]
        if self.loss != loss:
            raise UserError(f"loss must be {loss} for target {self.target}, got {self.loss!r}")
        if (self.target == "masks") != (self.head == MASKS):
            raise UserError(
                f"head must be {MASKS} for target masks and for no other, got {self.head!r} for "
                f"{self.target}"
            )


@dataclasses.dataclass(frozen=True)
class MaskLossConfig(Validated):
    """L_FD of eq. 2; see losses.mask_distillation."""

    focal: NonNegativeFloat
    dice: NonNegativeFloat
    iou: NonNegativeFloat
    focal_alpha: Share
    focal_gamma: NonNegativeFloat
    targets: Literal["soft", "binary"]  # the teacher's probabilities, or its masks at logit 0
    padding: bool  # focal and dice count what lies beside the photograph too
    tokens: tuple[NonNegativeFloat, ...]  # weights of the mask tokens, the single mask's first

    def __post_init__(self):
        super().__post_init__()
        if not sum(self.tokens):
            raise UserError(f"tokens must have a weight that is not 0, got {self.tokens}")


@dataclasses.dataclass(frozen=True)
class HeadConfig(Validated):
    """A head that a run adds to what it starts from; the paper's CLIP head."""

    depth: PositiveInt = 3  # appendix A
    mlp_hidden: PositiveInt = 768  # of two layers; the width that gives "about 25 %" (appendix E)
    pooling: Literal["max", "mean"] = "max"  # better than mean (appendix A)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Validated):
    learning_rate: NonNegativeFloat  # at the end of the warm-up
    end_learning_rate: NonNegativeFloat
    warmup_steps: NonNegativeInt
    schedule_steps: NonNegativeInt  # length of the cosine; a run may stop before its end
    weight_decay: NonNegativeFloat  # on kernels only
    b1: Decay
    b2: Decay
    eps: PositiveFloat
    clip_norm: NonNegativeFloat  # of the whole gradient; 0: none


@dataclasses.dataclass(frozen=True)
class TrainConfig(Validated):
    """Everything a run depends on; recipe.py says what each value is and where from."""

    init: str
    teachers: dict[str, str]
    heads: dict[str, HeadConfig]  # by name; those that the start has must be as here
    terms: dict[str, TermConfig]
    mask_loss: MaskLossConfig
    streams: dict[str, dict]
    lr_factors: tuple[tuple[str, NonNegativeFloat | None], ...]
    optimizer: OptimizerConfig
    steps: PositiveInt
    max_bad_steps: PositiveInt
    gradient_dtype: Dtype
    dtype: Dtype
    remat: bool
    fsdp: PositiveInt
    seed: Seed
    log_every: PositiveInt
    checkpoint_every: PositiveInt
    checkpoints_kept: PositiveInt
    evals: dict[str, dict]
    eval_every: NonNegativeInt

    def __post_init__(self):
        super().__post_init__()
        for name, stream in self.streams.items():
            for key, hint in STREAM.items():
                if key not in stream:
                    raise UserError(f"streams.{name} lacks the key {key!r}")
                check(f"streams.{name}.{key}", stream[key], hint)
            for source, options in stream["sources"].items():
                require_named(f"streams.{name}.sources.{source}", options)
        if MASKS in self.heads:
            raise UserError(f"heads: {MASKS} is SAM's own, choose another name")
        if not self.terms:
            raise UserError("terms is empty: nothing to train")
        for name, term in self.terms.items():
            if term.head not in (*self.heads, MASKS):
                known = ", ".join((*self.heads, MASKS))
                raise UserError(
                    f"terms.{name}.head must be one of {known}, got {term.head!r}; name a further "
                    "one in config.heads of the config file"
                )
            _, kind = TARGETS[term.target]
            stream = self.streams.get(term.stream)
            if stream is None:
                raise UserError(
                    f"streams has no {term.stream!r}, the stream of terms.{name}; it has "
                    f"{', '.join(self.streams)}"
                )
            if stream["kind"] != kind:
                raise UserError(
                    f"terms.{name}.stream must be of kind {kind} for target {term.target}, "
                    f"{term.stream!r} is of kind {stream['kind']!r}"
                )


def require_named(where, options):
    """UserError unless these are the options of a source with its name; `where` sets them."""
    check(where, options, dict)
    if "name" not in options:
        raise UserError(f"{where} lacks the key 'name'")


def build(hint, value, where):
    """The value as its type hint has it: a dataclass from a mapping, a tuple from a list.

    where: the flag that sets it, "--config.optimizer" say. UserError on an unknown key, with the
    nearest known one, on a missing one, and on a value that is not what its hint says.
    """
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where)
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
        check(where, value, dict)
        item = typing.get_args(hint)[1]
        return {key: build(item, part, f"{where}.{key}") for key, part in value.items()}
    value = as_tuple(value)
    check(where, value, hint)
    return value


def _dataclass(cls, values, where):
    check(where, values, dict)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(fields)}"
            raise UserError(f"{where} has no key {key!r}{hint}")
    for name, field in fields.items():
        defaults = (field.default, field.default_factory)
        if name not in values and all(value is dataclasses.MISSING for value in defaults):
            raise UserError(f"{where} lacks the key {name!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {key: build(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    with under(f"{where}."):
        return cls(**values)


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
        except (ImportError, OSError, SyntaxError, UnicodeError) as error:
            raise UserError(_not_read(error, example)) from error
        except (AttributeError, KeyError) as error:
            raise UserError(f"--config has no such key: {_one_line(error)}") from error
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; options are --name=value")
        if flag.value is None:
            raise UserError(f"set --config to an experiment, --config={example} say")
        if not isinstance(flag.value, ConfigDict):
            reason = getattr(flag.value, "_error", "get_config() must return a ConfigDict")
            raise UserError(_not_read(reason, example))
        return rest

    def quiet_main(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every step at INFO
        compilation.use_cache()
        main(flag.value)

    app.run(command(quiet_main), flags_parser=command(parse))


def _expanded(path):  # a match -> str
    return os.path.expanduser(path[0])


def _not_read(error, example):
    if absent := re.search(r"Attempted \[.*\]:\s+(.+)\n", str(error)):  # ml_collections
        return f"--config: there is no file {absent[1]}; name an experiment, {example} say"
    return f"--config: {_one_line(error)}"


def _one_line(error):
    text = str(error)
    with contextlib.suppress(SyntaxError, ValueError):  # of a KeyError it is its message's repr
        text = ast.literal_eval(text)
    return " ".join(str(text).split())
