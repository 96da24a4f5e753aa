"""What one sees while something runs: on a terminal a bar, in a file a line every tenth of the way.

Of several processes on one terminal each has a line of its own (`use_line`). Progress never ends
what it tells of: where it cannot be shown, it is not.
"""

import contextlib
import io
import os
import sys
import time

from tqdm import tqdm

SECONDS = 60  # at most, between two lines in a file
BAR = "{desc}: {percentage:3.0f}% {bar:12} {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
_line, _speaks, _shows_bars = 0, True, True


def use_line(number):
    """Bars of this process are on the terminal's line `number`, from 0; it says nothing else."""
    global _line, _speaks
    _line, _speaks = number, False


def be_quiet():
    """This process shows nothing but warnings and errors."""
    global _speaks, _shows_bars
    _speaks = _shows_bars = False


def say(text):
    """A line for the person who waits, above all bars."""
    if _speaks:
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def is_terminal():
    """Whether stderr is a terminal of a known size, on which lines can be drawn again."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        return False


class Bar(tqdm):
    """How far something is, on stderr. What ends within `delay` seconds shows nothing.

    In a file: "TITLE: 45/450 steps, 01:20 left, loss 0.5", as soon as there is a postfix, then at
    every tenth and every minute.
    """

    def __init__(self, items=None, desc="", total=None, unit="", initial=0, delay=5):
        self.is_terminal = is_terminal()
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        self.tenth, self.shown = 10 * initial // total if total else 0, None
        super().__init__(
            items,
            desc,
            total,
            unit=unit,
            unit_scale=unit == "B",
            initial=initial,
            delay=delay,
            file=sys.stderr if self.is_terminal else io.StringIO(),  # a file gets whole lines
            position=_line,
            disable=not _shows_bars or sys.stderr is None,
            leave=False,
            dynamic_ncols=True,
            bar_format=(BAR if self.is_terminal else LINE) if total else None,
        )

    def display(self, msg=None, pos=None):
        """tqdm's, which draws; in a file it writes a line, and seldom."""
        if self.is_terminal:
            return super().display(msg, pos)
        now, tenth = time.monotonic(), 10 * self.n // self.total if self.total else 0
        is_first = self.shown is None and self.postfix
        is_due = self.shown is not None and now > self.shown + SECONDS
        if msg is None and (tenth > self.tenth or is_first or is_due):
            self.tenth, self.shown = tenth, now
            self._print(self)
        return False

    def close(self):
        if not self.disable and time.time() > self.start_t + self.delay:
            self.refresh()
        super().close()

    def now(self, text):
        """What is done at this moment: beside the bar, or a line in a file."""
        if self.is_terminal and not self.disable:
            self.set_postfix_str(text)
        elif _speaks and sys.stderr:
            self._print(f"{self.desc}: {text}")

    def _print(self, text):
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # a full disk, a reader that has gone
            _begin_stderr_anew()


def _begin_stderr_anew():
    """Without what could not be written: it would be tried again at the exit, and fail that."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr = open(sys.stderr.fileno(), "w", 1, errors="backslashreplace", closefd=False)
