"""interrupt.py and resume.py: a run that is told to stop saves, and goes on only as it began."""

import contextlib
import io
import json
import os
import signal
import socket
import time

import pytest
from test_train import A_RUN, ONE_OF_TWO, experiment, teachers  # noqa: F401, a fixture

from samclip_jax import checkpoint, train
from samclip_jax.errors import UserError
from samclip_jax.inference.model import Model


@pytest.fixture(scope="module")
def begun(teachers, tmp_path_factory):  # noqa: F811
    """(config, workdir, its progress) of a run of stage 1 with two steps."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    config = experiment(teachers, "stage1", teachers["sam"], steps=2)
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        train.train(config, workdir)
    return config, workdir, printed.getvalue()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for_a_step(workdir, process):
    log = workdir / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_the_step_and_has_a_code_of_its_own(
    teachers,  # noqa: F811
    tmp_path,
    start_python,
    number,
    code,
):
    """To all processes of the run, its data workers included, as terminals and schedulers do."""
    config = experiment(teachers, "stage1", teachers["sam"], steps=10_000)
    config.log_every, config.checkpoint_every = 1, 10_000
    config.streams.clip.workers = 1
    arguments = config.to_json_best_effort(), tmp_path / "run"
    process = start_python(A_RUN, *arguments, wrapper=("setsid",))
    wait_for_a_step(tmp_path / "run", process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err, err
    step = checkpoint.newest_step(tmp_path / "run")
    assert step >= 1 and f"saved after step {step}" in out


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_one_step_of_both(
    teachers,  # noqa: F811
    tmp_path,
    start_python,
):
    config = experiment(teachers, "stage1", teachers["sam"], steps=10_000)
    config.log_every, config.checkpoint_every = 1, 10_000
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    arguments = config.to_json_best_effort(), tmp_path / "run"
    processes = [start_python(ONE_OF_TWO, address, i, *arguments) for i in range(2)]
    wait_for_a_step(tmp_path / "run", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert f"saved after step {checkpoint.newest_step(tmp_path / 'run')}" in outputs[0][0]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"steps": 1}, "has 2 steps already, more than --config.steps=1"),
        ({"seed": 1}, "other values of --config.seed;"),
        (
            {"streams.clip.batch_size": 16},
            r"--config.streams.clip \(batches of 8 images of 24 px then, now 16 images of 24 px\)",
        ),
        ({"streams.clip.resolutions": (12,)}, "8 images of 24 px then, now 32 images of 12 px"),
        (
            {"streams.clip.sources.main.size": 99},
            r"clip.sources \(records: 8000 and 4000 then, now 99 and 4000",
        ),
        ({"streams.clip.sources.main.weight": 2}, "clip.sources .* or their weights"),
    ],
)
def test_what_would_repeat_or_skip_examples_is_refused(begun, changes, sentence):
    config, workdir, _ = begun
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({"steps": 4} | changes)
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=sentence):
        train.train(config, workdir)
    assert checkpoint.newest_step(workdir) == 2
    assert (workdir / "config.json").read_text() == before


def test_a_run_with_all_its_steps_says_so(begun, capsys):
    """Also one that an earlier version began, which kept no data.json."""
    config, workdir, _ = begun
    (workdir / "data.json").rename(workdir.parent / "data.json")
    train.train(config, workdir)
    assert "has all of its 2 steps" in capsys.readouterr().out
    order = json.loads((workdir / "data.json").read_text())
    assert order == json.loads((workdir.parent / "data.json").read_text())


def test_progress_tells_of_compilation_once_then_of_steps(begun):
    compiling, compiled, *steps = begun[2].splitlines()
    assert compiling == "run: compiling 1 of 1 programs: clip 24 px"
    assert compiled.startswith("run: compiled 1 of 1 programs in ")
    assert steps[-1].startswith("run: 2/2 steps, 00:00 left, loss clip ")


def test_an_evaluation_that_was_interrupted_goes_on(teachers, tmp_path, monkeypatch):  # noqa: F811
    """Stopped in the second of three objects after step 2, the run begins with what is left."""
    config = experiment(teachers, "stage1", teachers["sam"], steps=4)
    config.eval_every = 2
    data = {"name": "shape_objects", "split": "tuning", "size": 3}
    evaluation = dict(task="zero_shot_classification", image_size=24, batch_size=1, data=data)
    with config.unlocked():
        config.evals.objects = evaluation
    seen, most, encode = [], 1, Model.encode_crops

    def interrupted(model, images):
        if len(seen) == most:
            raise KeyboardInterrupt
        seen.append(len(images))
        return encode(model, images)

    monkeypatch.setattr("samclip_jax.evals.batches.MEASURERS", 1)
    monkeypatch.setattr(Model, "encode_crops", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "run")
    assert checkpoint.newest_step(tmp_path / "run") == 2 and len(seen) == 1
    most = 100
    train.train(config, tmp_path / "run")
    evaluated = [line for line in lines(tmp_path / "run") if "objects/images" in line]
    assert [(line["step"], line["objects/images"]) for line in evaluated] == [(2, 3), (4, 3)]
    assert len(seen) == 1 + 2 + 3
