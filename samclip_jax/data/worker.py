"""What a worker process runs in place of the program that started it: nothing, and without jax.

A spawned process imports its parent's main module, here the whole training program, and Grain
imports jax where it finds it: seconds and a hundred megabytes a worker, to decode JPEG files.
"""

import functools
import logging
import os
import signal
import sys
import threading
import time
from multiprocessing import spawn

import cv2


class WithoutJax:
    """An import hook: to whoever asks, jax is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib"):
            raise ModuleNotFoundError(f"{name} has no place in a data worker", name=name)


@functools.cache
def become_main_module():
    """From now on this is the main module of every process that Grain spawns, and only of those."""
    original = spawn.get_preparation_data

    def preparation_data(name):
        data = original(name)
        if name.startswith("grain-"):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = __name__
        return data

    spawn.get_preparation_data = preparation_data


def end_with(parent):
    """Ends this process with its parent: it would outlive one that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__mp_main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to all processes of a run: it ends them
        signal.signal(number, signal.SIG_IGN)
    sys.meta_path.insert(0, WithoutJax)
    cv2.setNumThreads(1)  # a worker is one of many
    logging.disable(logging.WARNING)  # Grain's: no jax
    import grain  # noqa: F401

    logging.disable(logging.NOTSET)
