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
        (["--config=configs/stage9.py"], "no file configs/stage9.py; name an experiment, configs/"),
        (["--config", "x.py", "--config.seed=1"], "no file x.py; name an experiment, configs/"),
        ([STAGE1, "--config.terms.foo.x=1"], "--config has no such key: 'foo'"),
        ([STAGE1, "--config.steps=abc"], "base 10: 'abc'"),
        ([], "--config=configs/stage2.py say"),
        ([STAGE1, "stage1"], "unexpected argument 'stage1'"),
        ([STAGE1], "set --workdir"),
        ([STAGE1, "--workdir={tmp}/run"], "set --config.streams.clip.sources.main.path"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, last_words, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    said = last_words("samclip_jax.main", *arguments)
    assert said.startswith("main: ") and sentence in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("import recipes", "No module named 'recipes'"),
        ("from samclip_jax.recipe import bass", "cannot import name 'bass' from"),
        ("def get_config(:", "invalid syntax"),
        ("get_config = dict", "get_config() must return a ConfigDict"),
        (
            "get_config = lambda: open('/no/such file')",
            "[Errno 2] No such file or directory: '/no/such file'",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_one_sentence(text, sentence, last_words, tmp_path):
    """With the quotes that its reason has."""
    (tmp_path / "mine.py").write_text(text)
    said = last_words("samclip_jax.main", f"--config={tmp_path}/mine.py")
    assert said.startswith(f"main: --config: {sentence}") and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "error, sentence",
    [
        (ValueError("coordinator_address should be defined."), "on one host leave it out"),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\n..."), "every one of them"),
    ],
)
def test_hosts_that_did_not_come_are_no_single_host(
    last_words, monkeypatch, tmp_path, error, sentence
):
    def initialize():
        raise error

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    said = last_words("samclip_jax.main", STAGE1, f"--workdir={tmp_path}/run", "--distributed")
    assert said.startswith("main: --distributed") and sentence in said
    assert ("leave it out" in said) == isinstance(error, ValueError)


def test_a_config_may_lie_below_the_home(last_words, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from configs.stage1 import get_config")
    assert "set --workdir" in last_words("samclip_jax.main", "--config=~/mine.py")


@pytest.mark.parametrize("arguments", [[STAGE1], [STAGE1, "--config.stepz=1"]])
def test_a_mistake_ends_the_process_with_its_sentence(arguments, environment, last_words):
    """One that the command finds, and one that its flags find."""
    command = [sys.executable, "-m", "samclip_jax.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == last_words("samclip_jax.main", *arguments)
