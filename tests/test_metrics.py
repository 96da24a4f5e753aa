"""metrics.py: every line is JSON, and a resumed run goes on."""

import json
import time
import types

import numpy as np
import pytest

from samclip_jax.errors import UserError
from samclip_jax.metrics import MetricWriter, Timer


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_step_time_and_numbers_and_a_second_run_adds_to_them(tmp_path):
    for steps in (1, 2), (3,):
        writer = MetricWriter(tmp_path / "run")
        for step in steps:
            writer.write(step, {"clip/loss": np.float32(0.5) / step, "images": np.int64(64)})
        writer.close()
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    assert lines(tmp_path / "run")[1]["clip/loss"] == 0.25
    assert lines(tmp_path / "run")[2]["images"] == 64
    assert lines(tmp_path / "run")[0]["time"] <= lines(tmp_path / "run")[2]["time"]


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1
    writer.close()


def test_a_half_written_line_of_a_killed_run_spoils_no_other(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    writer = MetricWriter(tmp_path)
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_what_is_not_finite_is_null(tmp_path):
    writer = MetricWriter(tmp_path / "stage1")
    writer.write(7, {"loss": float("nan"), "grad_norm": np.float32(np.inf)})
    writer.close()
    assert lines(tmp_path / "stage1")[0] | {"time": 0} == {
        "step": 7,
        "time": 0,
        "loss": None,
        "grad_norm": None,
    }


def test_a_workdir_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/metrics.jsonl was not written: "):
        MetricWriter(tmp_path / "file")


@pytest.mark.parametrize("ready, share", [(True, 1), (False, 0)])
def test_only_devices_that_have_nothing_to_do_wait_for_data(ready, share):
    timer = Timer()
    with timer.waiting({"loss": types.SimpleNamespace(is_ready=lambda: ready)}):
        time.sleep(0.05)
    timer.step()
    taken = timer.take()
    assert taken["seconds_per_step"] >= 0.05
    assert taken["data_wait"] == pytest.approx(share, abs=0.1)
