"""What the demo reports, and the paper's claims in it."""

import numpy as np

ROWS = (  # name in report.json, what it is called
    ("clip_teacher", "CLIP teacher"),
    ("sam_teacher", "SAM teacher"),
    ("distill_only", "distillation only (baseline)"),
    ("stage2", "SAM-CLIP after stage 2"),
    ("samclip", "SAM-CLIP"),
)
COLUMNS = (  # key in report.json, what it is called, what it means
    (
        "zero_shot_accuracy",
        "zero-shot accuracy",
        "Of pictures of one main object or bare ground: how many get the right name among all "
        "classes.",
    ),
    (
        "box_miou",
        "mask IoU from a box",
        "The overlap, intersection over union, of a mask with the true one, when the model is "
        "given its box; the mean over objects and grounds.",
    ),
    (
        "box_miou_at_threshold",
        "at the tuned threshold",
        "The same, with masks cut at the logit that was best on other scenes.",
    ),
    ("point_miou", "mask IoU from a point", "The same from one point inside."),
    (
        "zero_shot_segmentation_miou",
        "by text, mIoU",
        "Every pixel gets the name that fits its patch best; the overlap with the true map, the "
        "mean over classes.",
    ),
    (
        "refined_segmentation_miou",
        "both heads, mIoU",
        "The same after the SAM head, prompted by the CLIP head.",
    ),
    (
        "paper_refined_segmentation_miou",
        "both heads as in the paper",
        "The same in the paper's own form, without what was tuned for small pictures.",
    ),
)


def claims(report):
    """What the paper claims, as the demo measures it: [{"claim", "points", "asked", "holds"}, ...].

    points: per cent, to be `asked` at least. Masks are compared at logit 0 and at each model's own
    threshold. Of the interpolations of the baseline, and of those between two measured ones, the
    one counts that comes nearest to keeping both; its points say by how much it leaves the bounds.
    """
    clip, sam, baseline, samclip = (
        report[name] for name in ("clip_teacher", "sam_teacher", "distill_only", "samclip")
    )
    accuracy, text = "zero_shot_accuracy", "zero_shot_segmentation_miou"
    measured = [("accuracy over the CLIP teacher's", samclip[accuracy] - clip[accuracy], -2)]
    for masks, at in (("box_miou", "at logit 0"), ("box_miou_at_threshold", "at tuned thresholds")):
        measured += [
            (f"masks from boxes over the SAM teacher's, {at}", samclip[masks] - sam[masks], -1.5),
            (f"and over the baseline's, {at}", samclip[masks] - baseline[masks], 5),
        ]
    both = samclip["refined_segmentation_miou"]
    alphas = [row["alpha"] for row in report["wise_ft"]]
    kept = [
        np.interp(np.linspace(0, 1, 1001), alphas, [row[metric] for row in report["wise_ft"]])
        - (parent[metric] - bound)
        for metric, parent, bound in ((accuracy, clip, 0.02), ("box_miou", sam, 0.015))
    ]
    measured += [
        ("segmentation by text over the CLIP teacher's patches", samclip[text] - clip[text], 10),
        ("both heads over the CLIP head alone", both - samclip[text], 3),
        (
            "what the best interpolation of the baseline lacks to keep both",
            -np.minimum(*kept).max(),
            0,
        ),
    ]
    return [
        {
            "claim": claim,
            "points": round(100 * float(value), 2),
            "asked": asked,
            "holds": bool(100 * value >= asked),
        }
        for claim, value, asked in measured
    ]
