"""What one sees while something runs: on a terminal a bar, in a file a line every tenth of the way.

Of several processes on one terminal each has a line of its own (`use_line`).
"""

import sys
import time

from tqdm import tqdm

SECONDS = 300  # at most, between two lines in a file
BAR = "{desc}: {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
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
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


class Bar(tqdm):
    """How far something is. What ends within `delay` seconds shows nothing.

    In a file: "TITLE: 45/450 steps, 01:20 left, loss 0.5", every tenth and every five minutes.
    """

    def __init__(self, items=None, desc="", total=None, unit="", initial=0, delay=5):
        self.is_terminal = sys.stderr.isatty()
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        self.tenth, self.began = 10 * initial // total if total else 0, time.monotonic()
        self.shown = self.began
        super().__init__(
            items,
            desc,
            total,
            unit=unit,
            unit_scale=unit == "B",
            initial=initial,
            delay=delay,
            position=_line,
            disable=not _shows_bars,
            leave=False,
            dynamic_ncols=True,
            bar_format=(BAR if self.is_terminal else LINE) if total else None,
        )

    def display(self, msg=None, pos=None):
        """tqdm's, which draws; in a file it writes only at a tenth."""
        if self.is_terminal:
            return super().display(msg, pos)
        now, tenth = time.monotonic(), 10 * self.n // self.total if self.total else 0
        if msg is None and (tenth > self.tenth or now > self.shown + SECONDS):
            self.tenth, self.shown = tenth, now
            print(self, file=sys.stderr, flush=True)
        return False

    def close(self):
        if not self.disable and time.monotonic() > self.began + self.delay:
            self.refresh()
        super().close()

    def now(self, text):
        """What is done at this moment: beside the bar, or a line in a file."""
        if self.is_terminal and not self.disable:
            self.set_postfix_str(text)
        elif _speaks:
            print(f"{self.desc}: {text}", file=sys.stderr, flush=True)
