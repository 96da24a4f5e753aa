"""The command line: a user's mistake is one sentence and exit code 1, and nothing is written."""

import subprocess
import sys

import pytest

STAGE1 = "--config=configs/stage1.py"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([STAGE1, "--config.optimizer.learning_rte=1"], 'Did you mean "learning_rate"'),
        ([STAGE1, "--config.terms.clip.wieght=1"], 'Did you mean "weight"'),
        ([STAGE1, "--config.optimizer.learning_rate=abc"], "could not convert string to float"),
        (["--config=configs/stage9.py"], "No such file"),
        ([], "--config=configs/stage2.py say"),
        ([STAGE1, "stage1"], "unexpected argument 'stage1'"),
        ([STAGE1], "set --workdir"),
        ([STAGE1, "--workdir={tmp}/run"], "set --config.streams.clip.sources.main.path"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, environment, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "samclip_jax.main", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("main: ")
    assert not list(tmp_path.iterdir())
