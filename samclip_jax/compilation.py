"""Compilation: programs are kept on disk between runs, and a run says when it waits for one."""

import contextlib
import math
import os
import time

import jax
from jax.experimental.compilation_cache import compilation_cache

from samclip_jax import cache


def use_cache():
    """Compiled programs are kept in ~/.cache/samclip_jax/jax, for the next start or resume.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache.folder("jax")
        if folder is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    minimum = "jax_persistent_cache_min_compile_time_secs"
    if minimum.upper() not in os.environ:  # a start has many small ones
        jax.config.update(minimum, 0.0)


def keep_none_on_cpu_hosts():
    """Several processes on CPUs keep no programs: one that is read back from the cache waits for
    the other processes without end (jax 0.10)."""
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it asks once


class Programs:
    """Says when a training step meets shapes that it has to be compiled for.

    resolutions: {stream: its resolutions, px}; every combination of them is a program. say: what
    is called with the text.
    """

    def __init__(self, resolutions, say):
        self.total, self.compiled = math.prod(map(len, resolutions.values())), set()
        self.say = say

    @contextlib.contextmanager
    def calling(self, resolutions):
        """Around a call of the step with batches of {stream: resolution}."""
        shapes = tuple(resolutions.items())
        if shapes in self.compiled:
            yield
            return
        self.compiled.add(shapes)
        described = ", ".join(f"{stream} {side} px" for stream, side in shapes)
        number = f"{len(self.compiled)} of {self.total} programs"
        self.say(f"compiling {number}: {described}")
        began = time.monotonic()
        yield
        self.say(f"compiled {number} in {time.monotonic() - began:.1f} s")
