"""What is kept in ~/.cache/samclip_jax between runs, because to make it again takes long.

XDG_CACHE_HOME names another folder in place of ~/.cache. All of it may be deleted at any time, and
a folder that cannot be written keeps nothing.
"""

import hashlib
import os

import numpy as np
from absl import logging

from samclip_jax.errors import UserError
from samclip_jax.paths import local_path


def folder(name):
    """The folder of this name in it, made; None where it cannot be."""
    try:
        path = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "samclip_jax" / name
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError) as error:
        logging.warning("the cache %r keeps nothing: %s", name, error)
        return None
    return path


def digest(*parts):
    """A text that differs where a part does: bytes, text, or {name: array}."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        arrays = sorted(part.items()) if isinstance(part, dict) else [("", part)]
        for name, value in arrays:
            value = value.encode() if isinstance(value, str) else value
            array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
            array = np.asarray(array)
            total.update(f"{name} {array.dtype} {array.shape} ".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def kept_array(name, key, make):
    """The array that make() gives, from folder(name) where it was kept under this key."""
    there = folder(name)
    if there is None:
        return make()
    path = there / f"{key}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none, or one that was cut
        array = make()
    part = there / f"{key}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            np.save(file, array)
        os.replace(part, path)
    except OSError as error:
        logging.warning("%s was not kept: %s", path, error)
    finally:
        part.unlink(missing_ok=True)
    return array
