"""demo.py and report.py: the whole path, cut short; what the report must hold."""

import json
import re

import pytest

from configs import demo as demo_config
from samclip_jax import demo

PROMISED = {
    "clip_teacher": {"zero_shot_accuracy", "zero_shot_segmentation_miou"},
    "sam_teacher": {"box_miou"},
    "distill_only": {"zero_shot_accuracy", "box_miou", "zero_shot_segmentation_miou"},
    "samclip": {
        "zero_shot_accuracy",
        "box_miou",
        "zero_shot_segmentation_miou",
        "refined_segmentation_miou",
    },
}


@pytest.mark.slow
def test_the_demo_writes_its_report_and_does_nothing_twice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo_config, "STEPS", dict.fromkeys(demo.STAGES, 2))
    for data in ("OBJECTS", "SCENES", "TUNING"):
        monkeypatch.setattr(demo, data, {**getattr(demo, data), "size": 8})
    demo.run(tmp_path, seed=0)
    report = json.loads((tmp_path / "report.json").read_text())
    for name, metrics in PROMISED.items():
        assert metrics <= report[name].keys()
        assert all(0 <= report[name][metric] <= 1 for metric in metrics)
    assert [point["alpha"] for point in report["wise_ft"]] == list(demo.ALPHAS)
    assert report["wise_ft"][0]["box_miou"] == pytest.approx(report["sam_teacher"]["box_miou"])
    assert report["wise_ft"][-1]["box_miou"] == pytest.approx(report["distill_only"]["box_miou"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 5 * 8

    capsys.readouterr()
    demo.run(tmp_path, seed=0)
    assert not re.search(r"step \d+/", capsys.readouterr().out)
