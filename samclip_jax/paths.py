"""Paths as people give them to the commands and to the library: local, or in a bucket (gs://).

Checkpoints, workdirs and reports may lie in a bucket. What other libraries read or write by the
operating system's calls (data sets, released weights) must be local, which a bucket mounted by
gcsfuse is.
"""

import importlib.util
import os
import pathlib
import re

from etils import epath

from samclip_jax.errors import UserError, os_errors

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # two letters or more: C:/ is a drive


def any_path(text):  # str, path, or a folder's number as a flag reads it -> epath.Path
    """A local path, absolute and with ~ as the home directory, or one of a bucket.

    UserError where it is none or empty, of an unknown user or of another kind, such as s3://.
    """
    if not isinstance(text, (str, os.PathLike, int, float)) or isinstance(text, bool):
        raise UserError(f"a path must be a text or a pathlib.Path, got {text!r}")
    text = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    if not text:
        raise UserError("no path is set; give that of a file or a folder.")
    if "\0" in text:
        raise UserError(f"{text!r} is no path; give one without a null character.")
    if scheme := SCHEME.match(text):
        if not text.startswith("gs://"):
            raise UserError(f"{text}: {scheme[1]}: is not read here; give a local path or gs://.")
        if not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
            raise UserError(f"{text}: to read a bucket, pip install gcsfs.")
        return epath.Path(text)
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{text}: {text.partition('/')[0]} is no user's home; give another path.")
    return epath.Path(os.path.abspath(expanded))


def local_path(text):  # str or path -> pathlib.Path
    """The same, for what can only be local. UserError where it is not, which says what to do."""
    if is_remote(text):
        raise UserError(
            f"{text}: this must be a local path; mount the bucket with gcsfuse and give the folder "
            "where it is mounted. Nothing was read or written."
        )
    return pathlib.Path(any_path(text))


def existing(text):  # str or path -> pathlib.Path
    """A local path where something lies, else a UserError."""
    path = local_path(text)
    with os_errors(f"{path} was not read"):
        exists = path.exists()
    if not exists:
        raise UserError(f"{path} does not exist; give the path where the data lie.")
    return path


def output_file(text):  # str or path -> epath.Path
    """A file to be written when the work is done; its folder is made now, before the work.

    UserError where that cannot be, and where a folder has this name.
    """
    path = any_path(text)
    with os_errors(f"{path} was not written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file in it.")
    return path


def is_remote(path):
    """Whether it lies in a bucket."""
    return str(path).startswith("gs://")
