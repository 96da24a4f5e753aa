"""Errors a user can mend: one sentence, exit code 1, no stack trace."""

import contextlib
import errno
import functools
import os
import re
import sys
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "; free some space or choose another directory",
    errno.EDQUOT: "; free some space or choose another directory",
    errno.EACCES: "; choose a directory that you may use",
    errno.EROFS: "; choose another directory",
}


class UserError(Exception):
    """A mistake in what the user gave. Its message says what failed and what to do next."""


def command(main):
    """Wraps a command line's main: a UserError becomes one line on stderr and exit code 1; what
    cannot be printed, as names of files that are no UTF-8, is printed escaped."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.exit(f"{program()}: {error}")

    return wrapped


@contextlib.contextmanager
def os_errors(what):
    """Turns the operating system's errors, those of Orbax's storage included, into a UserError.

    what: the beginning of the sentence, such as "runs/a was not written".
    """
    try:
        yield
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        if code is None:  # tensorstore's are ValueErrors with the code in their text
            named = re.search(r"os_error_code='(\d+)'", str(error))
            code = int(named[1]) if named else None
        if code is None:
            raise
        raise UserError(f"{what}: {os.strerror(code)}{REMEDIES.get(code, '')}") from error


@contextlib.contextmanager
def under(prefix):
    """Puts `prefix`, a flag or a file, before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


@contextlib.contextmanager
def memory_errors(what):
    """Turns a MemoryError into a UserError. what: what was being read or made."""
    try:
        yield
    except MemoryError as error:
        raise UserError(
            f"{what} does not fit into memory; take fewer workers, or leave it out of the data"
        ) from error


def program() -> str:
    """'main' for `python -m samclip_jax.main`, 'convert' for the package samclip_jax.convert."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:  # run as a file, or from an interactive session
        return Path(sys.argv[0]).stem or "python"
    return spec.name.removesuffix(".__main__").rpartition(".")[-1]
