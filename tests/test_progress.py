"""progress.py: one line for each that runs on a terminal, few lines in a file, none on stdout."""

import collections
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

from samclip_jax.train import short

STEPS = """
import sys, time
from samclip_jax import progress
total, initial, delay, seconds = map(float, sys.argv[1:])
with progress.Bar(None, "stage2", int(total), "steps", int(initial), delay) as bar:
    for step in range(int(initial), int(total)):
        time.sleep(seconds)
        bar.set_postfix_str(f"loss {step + 1}", refresh=False)
        bar.update()
"""


def test_in_a_file_there_is_a_line_every_tenth(run_python):
    """And nothing on stdout, where a command's results are."""
    code, out, err = run_python(STEPS, 450, 0, 0, 0.005)
    assert (code, out) == (0, "")
    lines = err.splitlines()
    found = [re.fullmatch(r"stage2: (\d+)/450 steps, 00:0\d left, loss (\d+)", x) for x in lines]
    assert len(found) == 11 and all(found), lines
    first, *steps = [int(match[1]) for match in found]
    assert first < 45
    assert all(
        tenth <= step < tenth + 45 for tenth, step in zip(range(45, 451, 45), steps, strict=True)
    )


@pytest.mark.parametrize("initial, delay, lines", [(5, 0, 5), (0, 5, 0)])
def test_what_is_done_is_not_told_again_and_what_is_short_not_at_all(
    run_python, initial, delay, lines
):
    code, _, err = run_python(STEPS, 10, initial, delay, 0.15)
    assert code == 0 and len(err.splitlines()) == lines, err


TWO_LINES = """
import concurrent.futures, multiprocessing, time
from tqdm import tqdm
from samclip_jax import progress


def run(line):
    progress.use_line(line)
    for stage in range(3):
        progress.say("not said")
        with progress.Bar(None, f"lane{line} stage{stage}", 20, "steps", delay=0) as bar:
            bar.now("compiling")
            for step in range(20):
                time.sleep(0.03)
                bar.set_postfix_str(f"loss {step}", refresh=False)
                bar.update()


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    lock = (context.RLock(),)
    with concurrent.futures.ProcessPoolExecutor(2, context, tqdm.set_lock, lock) as pool:
        list(pool.map(run, range(2)))
    progress.say("the end")
"""


def rows_of(text):
    """Every state of every row that a terminal shows for this text: [{content, ...}, ...]."""
    rows, contents, at, column = [""], [set()], 0, 0
    for part in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            at, column = at + 1, 0
            if at == len(rows):
                rows.append(""), contents.append(set())
        elif part == "\x1b[A":
            at -= 1
        else:
            rows[at] = rows[at][:column] + part + rows[at][column + len(part) :]
            column += len(part)
            contents[at].add(rows[at].strip())
    return contents


def test_on_a_terminal_each_process_has_a_line(environment, tmp_path):
    (tmp_path / "two_lines.py").write_text(TWO_LINES)
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "two_lines.py"],
        stdout=terminal, stderr=terminal, cwd=tmp_path, env=environment,
    )  # fmt: skip
    os.close(terminal)
    text = b""
    while True:
        try:
            text += os.read(screen, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0, text.decode()
    first, second, *others = rows_of(text.decode())
    assert "the end" in first and not any(others) and "not said" not in text.decode()
    for lane, row in enumerate((first - {"the end", ""}, second - {""})):
        assert all(x.startswith(f"lane{lane} stage") for x in row), row
        for stage in range(3):
            assert any(
                re.fullmatch(rf"lane{lane} stage{stage}: .*\d/20 steps, 00:0\d left, loss \d+", x)
                for x in row
            ), row
        assert any(x.endswith("compiling") for x in row)


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_what_cannot_be_shown_ends_nothing(environment, closed):
    code = "from samclip_jax import progress; progress.say('goes on')\n" + STEPS + "print('done')"
    command = f'exec {sys.executable} -c "$0" 10 0 0 0.02 {closed}'
    done = subprocess.run(
        ["sh", "-c", command, code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stdout) == (0, "goes on\ndone\n")


def test_a_quiet_process_shows_nothing(run_python):
    code = "from samclip_jax import progress; progress.be_quiet(); progress.say('goes on')\n"
    assert run_python(code + STEPS, 10, 0, 0, 0) == (0, "", "")


def test_a_step_is_told_by_its_losses_and_what_is_not_as_it_should_be():
    line = {"clip/loss": 0.5, "sam/loss": 0.002, "seconds_per_step": 0.25, "data_wait": 0.01}
    assert short(["clip", "sam"], line, collections.Counter()) == (
        "loss clip 0.5, sam 0.002, 0.25 s a step"
    )
    line |= {"data_wait": 0.5, "bad_steps": 3, "bad_steps/clip/loss": 3}
    assert short(["clip"], line, collections.Counter({"clip/truncated": 2})) == (
        "3 bad steps, loss clip 0.5, 0.25 s a step, 50 % of it waiting for data, 2 records rejected"
    )
