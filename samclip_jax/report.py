"""The demo's report as one page: the table, and pictures of what the merged model sees."""

import base64
import html
import io

import numpy as np
from PIL import Image

from samclip_jax.data.shapes import COLOURS, GROUNDS, SHAPES, TEMPLATES
from samclip_jax.inference.predictor import Predictor
from samclip_jax.inference.refine import Refinement

SHOWN = 8  # scenes
SCALE = 2  # screen pixels a pixel
ROWS = (  # name in report.json, what it is called
    ("clip_teacher", "CLIP teacher"),
    ("sam_teacher", "SAM teacher"),
    ("distill_only", "distillation only (baseline)"),
    ("stage2", "SAM-CLIP after stage 2"),
    ("samclip", "SAM-CLIP"),
)
COLUMNS = (
    ("zero_shot_accuracy", "zero-shot accuracy"),
    ("box_miou", "mask IoU from a box"),
    ("box_miou_at_threshold", "at the tuned threshold"),
    ("point_miou", "mask IoU from a point"),
    ("zero_shot_segmentation_miou", "segmentation by text, mIoU"),
    ("refined_segmentation_miou", "both heads, mIoU"),
    ("paper_refined_segmentation_miou", "both heads as in the paper"),
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem; text-align: right }
th { border-bottom: 2px solid #222; vertical-align: bottom } td:first-child, th:first-child {
text-align: left } td { border-bottom: 1px solid #ddd }
img { image-rendering: pixelated; display: block }
.scenes td, .scenes th { padding: .2rem; text-align: left }
.key span { display: inline-block; margin-right: .8rem; white-space: nowrap }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .3em }
"""


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


def write_html(path, report, model, scenes, refinement):
    """Writes the page for a report of demo.py; `scenes` is the source its pictures come from."""
    rows = [["", *(title for _, title in COLUMNS)]]
    for name, title in ROWS:
        rows.append([title, *(percent(report[name].get(key)) for key, _ in COLUMNS)])
    wise_ft = [["share of the baseline", "zero-shot accuracy", "mask IoU from a box"]]
    for point in report["wise_ft"]:
        metrics = (point["zero_shot_accuracy"], point["box_miou"])
        wise_ft.append([f"{point['alpha']:.2f}", *map(percent, metrics)])
    measured = [["SAM-CLIP against the paper's claims", "points", "asked", ""]]
    for claim in report["claims"]:
        verdict = "holds" if claim["holds"] else "does not hold"
        row = [claim["claim"], f"{claim['points']:+.1f}", f"at least {claim['asked']}", verdict]
        measured.append(row)
    parameters = [["part", "parameters"]]
    parameters += [[k.replace("_", " "), f"{n:,}"] for k, n in report["parameters"].items()]
    pictures = "".join(
        scene_row(model, scenes[i], scenes.classes, refinement) for i in range(SHOWN)
    )
    body = f"""
<h1>SAM-CLIP: two models in one encoder</h1>
<p>A small SAM and a small CLIP, merged by distillation in three stages (arXiv 2310.15308). All
figures are per cent, on images that no model was trained or tuned on.</p>
{table(rows)}
{table(measured)}
<h2>What the merged model sees</h2>
<p>One encoder pass a picture. Masks: the SAM head, from the boxes of the objects. Labels: the CLIP
head, from the names of the classes alone; then both heads together. A label has the colour that it
names, in a shade for each shape.</p>
<table class="scenes"><tr><th>photo</th><th>SAM head</th><th>CLIP head</th><th>both heads</th>
<th>truth</th><th>classes in it</th></tr>{pictures}</table>
<h2>The baseline interpolated with SAM (Wise-FT)</h2>
{table(wise_ft)}
<h2>Size</h2>
{table(parameters)}
<p>{report["seconds"]:.0f} seconds in all.</p>
"""
    page = f"<!doctype html><meta charset=utf-8><title>SAM-CLIP</title><style>{STYLE}</style>{body}"
    path.write_text(page)


def percent(share):
    return "" if share is None else f"{100 * share:.1f}"


def table(rows):
    head, *rest = rows
    cells = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    cells += [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in r) + "</tr>" for r in rest
    ]
    return f"<table>{''.join(cells)}</table>"


def scene_row(model, scene, classes, refinement):
    """One scene: photo, SAM's masks, CLIP-head labels, both heads, truth, and the colours' key."""
    predictor = Predictor(model)
    predictor.set_image(scene["image"])
    boxes = np.stack([annotation["box"] for annotation in scene["annotations"]])
    masks, _, _ = predictor.predict_batch(boxes=boxes, multimask_output=False)
    outlines = np.full(scene["semantic"].shape, -1)
    for number, mask in enumerate(masks[:, 0]):
        outlines[mask] = number
    maps = [
        predictor.segment(classes, templates=TEMPLATES),
        predictor.segment(classes, refine=Refinement(**refinement), templates=TEMPLATES),
        scene["semantic"],
    ]
    colours = class_colours()
    pictures = [
        scene["image"],
        overlay(scene["image"], outlines, hues(len(masks))),
        *(overlay(scene["image"], labels, colours) for labels in maps),
    ]
    key = "".join(
        f'<span><i style="background:rgb{tuple(int(c) for c in colours[i])}"></i>'
        f"{html.escape(classes[i])}</span>"
        for i in np.unique(scene["semantic"])
    )
    cells = "".join(f"<td>{picture(image)}</td>" for image in pictures)
    return f'<tr>{cells}<td class="key">{key}</td></tr>'


def hues(count):  # -> uint8 [count, 3]
    """Colours that neighbours in the list tell apart, by the golden ratio."""
    turns = (np.arange(count) * 0.618034) % 1
    levels = 0.75 + 0.25 * (np.arange(count) % 2)
    hsv = np.stack([255 * turns, np.full(count, 200), 255 * levels], -1).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv[None], "HSV").convert("RGB"))[0]


def class_colours():  # -> uint8 [classes, 3]
    """A class of data/shapes.py in the colour it names, each shape in a shade of its own."""
    shades = np.linspace(1, 0.45, len(SHAPES))
    objects = np.einsum("s,cr->scr", shades, np.array(list(COLOURS.values()))).reshape(-1, 3)
    return np.concatenate([objects, np.array(list(GROUNDS.values()))]).astype(np.uint8)


def overlay(image, labels, colours):  # uint8 [H, W, 3], int [H, W], -1 is left out -> uint8
    mixed = 0.35 * image + 0.65 * colours[labels]
    return np.where((labels >= 0)[..., None], mixed, image).astype(np.uint8)


def picture(image):
    height, width = image.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f"width={SCALE * width} height={SCALE * height}"
    return f'<img {size} src="data:image/png;base64,{data}">'
