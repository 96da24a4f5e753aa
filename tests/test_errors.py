"""errors.py: a UserError is one line on stderr that begins with the program's name; code 1."""

import subprocess
import sys

import pytest

from samclip_jax.errors import UserError, os_errors

PROGRAM = """
from samclip_jax.errors import UserError, command

@command
def main():
    raise UserError("no such file")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    "file, arguments, name",
    [
        ("train.py", ["-m", "train"], "train"),
        ("jobs/train.py", ["-m", "jobs.train"], "train"),
        ("jobs/convert/__main__.py", ["-m", "jobs.convert"], "convert"),
        ("convert/__main__.py", ["-m", "convert"], "convert"),
        ("tools/convert.py", ["tools/convert.py"], "convert"),
        (None, ["-c", PROGRAM], "-c"),
    ],
)
def test_the_line_names_the_program_as_it_was_called(file, arguments, name, tmp_path, environment):
    if file:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(PROGRAM)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{name}: no such file\n")


def test_names_that_are_no_utf_8_are_printed_escaped(environment):
    """Those of files, as Python has them."""
    program = PROGRAM.replace('raise UserError("no such file")', r'print("a\udcff.jpg")')
    strict = environment | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", program], env=strict, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"a\\udcff.jpg\n")


def test_other_errors_keep_their_stack_trace(tmp_path, environment):
    program = PROGRAM.replace("UserError(", "KeyError(")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_an_error_of_the_operating_system_says_what_failed_and_what_helps(tmp_path):
    with pytest.raises(UserError, match="^a was not read: No such file or directory$"):
        with os_errors("a was not read"):
            (tmp_path / "absent").read_text()
    with pytest.raises(UserError, match="^b was not written: No space left on device; free some"):
        with os_errors("b was not written"), open("/dev/full", "w") as file:
            file.write("x")


def test_errors_of_the_program_itself_pass_through():
    with pytest.raises(ValueError, match="wrong shape"), os_errors("a was not read"):
        raise ValueError("wrong shape")
