"""Texts, class names and templates as a user gives them, checked before they are used."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path

from samclip_jax.errors import UserError

TEMPLATES = json.loads((Path(__file__).parent / "templates.json").read_text())
PHOTO = ("a photo of a {}.",)


def text_list(name, texts, what="texts"):
    """A list of str from any iterable but a single text, a dict or a set, which has no order.

    Blank texts are texts. UserError names the argument `name` and what cannot be a text: an empty
    list, an item that is no str, half of a surrogate pair.
    """
    texts = _items(name, texts, f"a list of {what}")
    for i, text in enumerate(texts):
        _check_text(f"{name}[{i}]", text)
    return texts


def class_names(name, names):
    """The same for class names, of which none is blank: a file's last line often is."""
    names = text_list(name, names, "class names")
    blank = [i for i, text in enumerate(names) if not text.strip()]
    if blank:
        raise UserError(f"{name}[{blank[0]}] is blank: give every class a name, or leave it out")
    return names


def class_texts(names, templates):
    """Every name in every template: [N * T] str, the templates of a name side by side, and T.

    templates: texts with {} for the name; functions of the name, as open_clip's; or the name of a
    set of templates.json. UserError if one cannot be used or does not depend on the name.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise UserError(
                f"no templates {templates!r}; there are {', '.join(TEMPLATES)}, "
                "or give a list of texts with {} for the name"
            )
        templates = TEMPLATES[templates]["templates"]
    templates = _items("templates", templates, "a list of texts with {} for the name")
    columns = [_filled(f"templates[{i}]", each, names) for i, each in enumerate(templates)]
    return [text for row in zip(*columns, strict=True) for text in row], len(templates)


def _filled(name, template, names):  # -> list of str, one a name
    if callable(template):
        try:
            texts = [template(each) for each in names]
        except TypeError as error:
            raise UserError(f"{name} must take a name and give a text: {error}") from error
        for text in texts:
            _check_text(f"{name}(name)", text)
        if len(set(texts)) == 1 < len(set(names)):
            raise UserError(f"{name} gives the same text, {texts[0]!r}, for every name")
        return texts
    _check_text(name, template)
    if "{}" not in template:
        raise UserError(
            f"{name} has no {{}} for the name: {template!r}; write 'a photo of a {{}}.'"
        )
    return [template.replace("{}", each) for each in names]


def _items(name, values, wanted):
    problem = UserError(f"{name} must be {wanted}, got {reprlib.repr(values)}")
    if isinstance(values, (str, bytes, Mapping, set, frozenset)):
        raise problem
    try:
        values = list(values)
    except TypeError as error:  # nothing to iterate over
        raise problem from error
    if not values:
        raise problem
    return values


def _check_text(name, text):
    if not isinstance(text, str):
        raise UserError(f"{name} must be a text, got {reprlib.repr(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} has half of a surrogate pair, which is no character: {reprlib.repr(text)}; "
            "decode the bytes that it comes from with errors='replace'"
        ) from error
