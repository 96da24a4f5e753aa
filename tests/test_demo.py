"""demo.py and report.py: what the report must hold. test_install.py runs the whole path."""

import json
import re
import time

import pytest
from PIL import Image

from samclip_jax import demo
from samclip_jax.data.prompts import PromptConfig
from samclip_jax.errors import UserError
from samclip_jax.report import claims

PROMISED = {
    "clip_teacher": {
        "zero_shot_accuracy",
        "zero_shot_segmentation_miou",
        "maskclip_zero_shot_segmentation_miou",
    },
    "sam_teacher": {"box_miou"},
    "distill_only": {"zero_shot_accuracy", "box_miou", "zero_shot_segmentation_miou"},
    "samclip": {
        "zero_shot_accuracy",
        "box_miou",
        "zero_shot_segmentation_miou",
        "ground_pixels",
        "refined_segmentation_miou",
        "tuned_refined_segmentation_miou",
    },
}


def check_report(folder):
    """The promises of a demo's folder, whichever way it was run."""
    report = json.loads((folder / "report.json").read_text())
    for name, metrics in PROMISED.items():
        assert metrics <= report[name].keys()
        assert all(0 <= report[name][metric] <= 1 for metric in metrics)
    assert [point["alpha"] for point in report["wise_ft"]] == list(demo.ALPHAS)
    assert report["wise_ft"][0]["box_miou"] == pytest.approx(report["sam_teacher"]["box_miou"])
    assert report["wise_ft"][-1]["box_miou"] == pytest.approx(report["distill_only"]["box_miou"])
    assert report["claims"] == claims(report)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") == 4 * 4 + 3 + 3 * 3 and page.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page loads nothing"
    assert Image.open(folder / "picture.jpg").size == (4 * 396, 3 * 396)


def test_the_first_error_of_a_lane_ends_the_others():
    began = time.monotonic()
    with pytest.raises(UserError, match="must have odds above 0"):
        demo.side_by_side((time.sleep, 60), (PromptConfig, 1, 0.0, 0.0, 0.0))
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(
    "metric, change, lost",
    [
        ("zero_shot_accuracy", -0.04, ["accuracy over"]),
        ("box_miou", -0.02, ["masks from boxes"]),
        ("zero_shot_segmentation_miou", -0.06, ["segmentation by text", "and over the CLIP"]),
        ("ground_pixels", -0.1, ["ground that"]),
        ("refined_segmentation_miou", -0.02, ["both heads"]),
    ],
)
def test_claims_hold_or_do_not(metric, change, lost):
    text = "zero_shot_segmentation_miou"
    model = dict(zero_shot_accuracy=0.9, box_miou=0.88, box_miou_at_threshold=0.89)
    forgot = dict(zero_shot_accuracy=0.9, box_miou=0.7, box_miou_at_threshold=0.75)
    words = {text: 0.4, "ground_pixels": 0.9, "refined_segmentation_miou": 0.45}
    report = dict(
        clip_teacher={"zero_shot_accuracy": 0.9, text: 0.1, f"maskclip_{text}": 0.22},
        sam_teacher=dict(box_miou=0.88, box_miou_at_threshold=0.89),
        distill_only=forgot,
        samclip=model | words,
        wise_ft=[
            dict(alpha=0.0, zero_shot_accuracy=0.5, box_miou=0.88),
            dict(alpha=1.0, zero_shot_accuracy=0.9, box_miou=0.7),
        ],
    )
    assert all(claim["holds"] for claim in claims(report))
    report["samclip"][metric] += change
    failed = [claim["claim"] for claim in claims(report) if not claim["holds"]]
    assert [claim[: len(start)] for claim, start in zip(failed, lost, strict=True)] == lost


def test_an_interpolation_between_two_measured_ones_counts():
    """Neither of the two comes within 3 points of SAM-CLIP, one between them does."""
    name = "over every interpolation"
    model = dict(zero_shot_accuracy=0.9, box_miou=0.88, box_miou_at_threshold=0.89)
    words = dict(zero_shot_segmentation_miou=0.4, ground_pixels=0.9)
    report = dict(
        clip_teacher=words | dict(zero_shot_accuracy=0.9, maskclip_zero_shot_segmentation_miou=0),
        sam_teacher=model,
        distill_only=model,
        samclip=model | words | dict(refined_segmentation_miou=0.4),
        wise_ft=[
            dict(alpha=0.2, zero_shot_accuracy=0.84, box_miou=0.88),
            dict(alpha=0.4, zero_shot_accuracy=0.9, box_miou=0.84),
        ],
    )
    (claim,) = (claim for claim in claims(report) if claim["claim"].startswith(name))
    assert claim["points"] == pytest.approx(2.4, abs=0.05) and not claim["holds"]


def test_the_end_tells_the_claims_the_page_and_what_to_try(monkeypatch, tmp_path):
    """Without a checkout, of the commands the one that needs none."""
    claims = [
        {"claim": "accuracy", "points": 1.25, "asked": -2, "holds": True},
        {"claim": "both heads", "points": 2.5, "asked": 3, "holds": False},
    ]
    ending = demo.ending({"claims": claims, "seconds": 600.0}, "my runs/demo").splitlines()
    assert ending[1].split() == ["accuracy", "1.2", "-2", "holds"]
    assert ending[2].split()[2:] == ["2.5", "3", "does", "not", "hold"]
    assert "10 minutes" in ending[4] and ending[4].endswith("my runs/demo/report.html")
    assert sum("-m samclip_jax." in line for line in ending) == 3
    assert "'my runs/demo'/stage3" in ending[7]
    monkeypatch.chdir(tmp_path)
    assert len(demo.what_to_try("runs/demo")) == 1
