"""A run that is told to stop saves first: SIGTERM (a pre-emption, a scheduler) and Ctrl-C."""

import contextlib
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128  # plus the signal's number: 143 after SIGTERM, 130 after Ctrl-C


class Interrupt:
    """Whether, and by which signal, this run was asked to stop."""

    signal, in_evaluation = None, False

    @contextlib.contextmanager
    def evaluating(self):
        """While the run evaluates, after a save: a signal ends it at once, with its exit code."""
        self.in_evaluation = True
        if self.signal:
            sys.exit(EXIT_CODE + self.signal)
        yield
        self.in_evaluation = False

    def requested(self, step):
        """The signal's number, or None. All processes of a job ask at every step, and all learn at
        the same step that one of them was asked to stop."""
        if jax.process_count() > 1:
            reached = multihost_utils.reached_preemption_sync_point(step)
            return signal.SIGTERM if reached else None
        return self.signal


@contextlib.contextmanager
def interrupts():
    """An Interrupt; while it is open the first SIGTERM or Ctrl-C is noted and does nothing else.

    The second one ends the process at once. With several processes SIGTERM is jax's, which tells
    the others, and Ctrl-C ends them at once.
    """
    interrupt, main_thread = Interrupt(), threading.current_thread() is threading.main_thread()
    if jax.process_count() > 1 or not main_thread:
        yield interrupt
        return

    def note(number, frame):
        interrupt.signal = number
        restore()
        if interrupt.in_evaluation:
            sys.exit(EXIT_CODE + number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield interrupt
    finally:
        restore()
