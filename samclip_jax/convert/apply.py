"""Released weights to our parameters: every tensor in its place, or an error that lists all."""

import collections

import numpy as np

from samclip_jax import families, models
from samclip_jax.convert import readers
from samclip_jax.convert.detect import detect
from samclip_jax.convert.tokenizer import tokenizer_json
from samclip_jax.errors import UserError
from samclip_jax.paths import local_path
from samclip_jax.progress import Bar

RELEASED = [family for family in families.FAMILIES.values() if family.release]
HALVES = ("float16", "bfloat16")
FLOATS = ("float64", "float32", *HALVES)


def import_weights(source, quick_gelu=None, tokenizer=None):
    """(config, {"a/b/c": array}, tokenizer's JSON or None, source) of released weights.

    Arrays are float32; those that come in half precision stay so, for memory's sake.

    source: a weight file, or a folder with one. quick_gelu: CLIP's activation, against what the
    files beside the weights say. tokenizer: CLIP's, a file or a folder, where it does not lie
    beside the weights. The returned source has "name", "sha256" and what was "assumed".
    UserError for whatever cannot be read, and for tensors that do not make up a whole model.
    """
    files = readers.weight_files(source)
    items = [item for path in files for item in readers.read(path).items()]
    family, layout = _layout(files[0], [key for key, _ in items])
    tensors, doubled = _standard(layout, items)
    shapes = {name: tensors[key].shape for name, key in layout.names(tensors).items()}
    config, assumed = detect(family.release, layout, shapes, files[0], quick_gelu)
    has_text = "text" in family.outputs
    if not has_text and (tokenizer or quick_gelu is not None):
        others = " or ".join(other.title for other in RELEASED if "text" in other.outputs)
        raise UserError(
            f"{source} is {family.title}: a tokenizer and an activation are for {others}."
        )
    text = None
    if has_text:
        text = tokenizer_json(files[0].parent, tokenizer, config.text.vocab_size)

    _, abstract = models.split(families.abstract(config))
    template = {name: np.empty(leaf.shape, np.float32) for name, leaf in abstract.items()}
    views = layout.views(template)
    if mismatches := [("doubled", key, "") for key in doubled] + _mismatches(views, tensors):
        raise UserError(
            _listed(f"{files[0]} does not match {family.release.size_name(config)}", mismatches)
        )
    params = _like(template, views, tensors)
    views = layout.views(params)
    for key, parts in Bar(views.items(), "reading", unit="tensors"):
        _fill(parts, tensors[key].read())
        if not all(np.isfinite(part).all() for part in parts):
            raise UserError(
                f"{key} in {source} has values that are not finite: download the weights again, or "
                "take an earlier checkpoint of their training."
            )
    name, digest = local_path(source).resolve().name, readers.sha256(files)
    return config, params, text, {"name": name, "sha256": digest, "assumed": assumed}


def _layout(path, keys):
    for family in RELEASED:
        for layout in family.release.LAYOUTS:
            if layout.signature in keys:
                return family, layout
    known = ", ".join(family.release.RELEASED for family in RELEASED)
    raise UserError(
        f"{path} holds no model that is known here: {known}. Its first tensors are "
        f"{', '.join(sorted(keys)[:3])}."
    )


def _standard(layout, items):
    """The tensors by the layout's own keys, and the keys that stand for different tensors."""
    tensors, doubled = {}, []
    for key, tensor in items:
        for start, stands_for in layout.aliases.items():
            if key.startswith(start):
                key = stands_for + key.removeprefix(start)
        if key in layout.ignored:
            continue
        if key in tensors and not np.array_equal(tensors[key].read(), tensor.read()):
            doubled.append(key)
        tensors[key] = tensor
    return tensors, doubled


def _like(template, views, tensors):
    """Empty arrays as in `template`, float32, or half precision where all that they take is."""
    types = collections.defaultdict(set)
    for key, parts in views.items():
        for part in parts:
            types[id(part if part.base is None else part.base)].add(tensors[key].dtype.name)

    def dtype(array):
        (first, *others) = types[id(array)]
        return first if first in HALVES and not others else np.float32

    return {name: np.empty(array.shape, dtype(array)) for name, array in template.items()}


def _fill(parts, values):
    if len(parts) == 1:
        parts[0][...] = values
        return
    for part, value in zip(parts, np.split(values, [len(parts[0])]), strict=True):
        part[...] = value


def _mismatches(views, tensors):
    """[(what is wrong, key, shapes)] between the tensors that a layout asks for and those given."""
    wrong = [("unused", key, [*tensors[key].shape]) for key in tensors.keys() - views.keys()]
    for key, parts in views.items():
        shape = parts[0].shape
        if len(parts) > 1:
            shape = (sum(map(len, parts)), *shape[1:])
        if key not in tensors:
            wrong.append(("missing", key, [*shape]))
        elif tensors[key].shape not in (shape, shape or (1,)):  # OpenCLIP has scalars of shape [1]
            wrong.append(("shape", key, f"{[*tensors[key].shape]}, expected {[*shape]}"))
        elif tensors[key].dtype.name not in FLOATS:
            wrong.append(("type", key, f"{tensors[key].dtype.name}, expected float"))
    return wrong


def _listed(what, wrong):
    """One error that names every tensor in `wrong`."""
    words = {"shape": "of another shape", "type": "of another type"}
    counts = collections.Counter(kind for kind, _, _ in wrong)
    summary = ", ".join(f"{count} {words.get(kind, kind)}" for kind, count in counts.items())
    width = max(len(key) for _, key, _ in wrong)
    wrong = sorted(wrong, key=lambda line: line[:2])
    lines = [f"\n  {kind:<8}{key:<{width}}  {shapes}".rstrip() for kind, key, shapes in wrong]
    return f"{what}: {summary}; nothing was written." + "".join(lines)
