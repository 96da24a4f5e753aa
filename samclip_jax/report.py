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
        "Of pictures of one main object: how many get the right name among all classes.",
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
        "maskclip_zero_shot_segmentation_miou",
        "by text, from values",
        "The same, read from the values of the last block's attention, as MaskCLIP does.",
    ),
    (
        "ground_pixels",
        "ground called ground",
        "Of the pixels that show a ground: how many get the name of a ground and not of an object.",
    ),
    (
        "refined_segmentation_miou",
        "both heads, mIoU",
        "By text, after the SAM head, prompted by the CLIP head, in the paper's own form; classes "
        "of under 2 x 2 patches, of which it says nothing, are left out.",
    ),
    (
        "tuned_refined_segmentation_miou",
        "both heads, tuned",
        "The same with the prompts that were best on other scenes.",
    ),
)


def claims(report):
    """What the paper claims, as the demo measures it: [{"claim", "points", "asked", "holds"}, ...].

    points: per cent, to be `asked` at least. Masks are compared at logit 0 and at each model's own
    threshold, interpolations at logit 0. Of the interpolations of the baseline, and of those
    between two measured ones, the one counts that comes nearest to SAM-CLIP; what it loses is the
    greater of its two losses.
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
    patches = max(clip[text], clip[f"maskclip_{text}"])
    both = samclip["refined_segmentation_miou"]
    alphas = [row["alpha"] for row in report["wise_ft"]]
    lost = [
        samclip[metric]
        - np.interp(np.linspace(0, 1, 1001), alphas, [row[metric] for row in report["wise_ft"]])
        for metric in (accuracy, "box_miou")
    ]
    measured += [
        ("segmentation by text, mIoU", samclip[text], 35),
        ("and over the CLIP teacher's patches, the better reading", samclip[text] - patches, 15),
        ("ground that is called a ground", samclip["ground_pixels"], 85),
        ("both heads, in the paper's own form, over the CLIP head alone", both - samclip[text], 4),
        (
            "over every interpolation of the baseline, in accuracy or masks",
            np.maximum(*lost).min(),
            3,
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
