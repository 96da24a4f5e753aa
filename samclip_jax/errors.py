"""Errors a user can mend: one sentence, exit code 1, no stack trace."""

import functools
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave. Its message says what failed and what to do next."""


def command(main):
    """Wraps a command line's main: a UserError becomes one line on stderr and exit code 1."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.exit(f"{_program()}: {error}")

    return wrapped


def _program() -> str:
    """'main' for `python -m samclip_jax.main`, 'convert_weights' for the package's __main__."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:  # run as a file, or from an interactive session
        return Path(sys.argv[0]).stem or "python"
    return spec.name.removesuffix(".__main__").rpartition(".")[-1]
