"""The demo's page: one file, pictures first, then curves, then the tables with what they mean."""

import base64
import html
import io
import json

import matplotlib.figure
import numpy as np
from PIL import Image

from samclip_jax import draw
from samclip_jax.data.shapes import GROUNDS, OBJECT_CLASSES, TEMPLATES
from samclip_jax.errors import os_errors
from samclip_jax.inference.predictor import Predictor
from samclip_jax.inference.refine import Refinement
from samclip_jax.report import COLUMNS, ROWS

TEXT, PROMPT, HEAT = (0, 1, 2, 3), (4, 5, 6), (0, 1, 2)  # which scenes are shown for what
INK = "#010203"  # stands for the page's own colour of text in plots
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1d1f; --pale: #6b6b70; --line: #d9d9de;
--good: #17803d; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #ececf1; --pale: #a0a0a8;
--line: #3a3b40; --good: #5cd18a; --bad: #ff8a80 } }
* { box-sizing: border-box }
body { font: 17px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 } h2 { margin: 3rem 0 .3rem }
p, dl { max-width: 46rem } figcaption, small, dd { color: var(--pale) }
.row, .plots { display: grid; gap: .8rem; margin: 1rem 0 0;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)) }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0 } figcaption { font-size: .9rem }
img, svg { display: block; width: 100%; height: auto; border-radius: .4rem }
.key { margin: .4rem 0 1.6rem; font-size: .9rem } .key span { margin-right: 1rem;
white-space: nowrap } .key i { display: inline-block; width: .8em; height: .8em;
border-radius: .2em; margin-right: .35em }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0;
font-variant-numeric: tabular-nums } td, th { padding: .35rem .8rem; text-align: right }
th { vertical-align: bottom; border-bottom: 2px solid var(--ink) } td { border-bottom: 1px solid
var(--line) } td:first-child, th:first-child { text-align: left; padding-left: 0 }
.holds { color: var(--good) } .fails { color: var(--bad) } dt { font-weight: 600 } dd { margin: 0 0
.6rem }
"""


def write(path, report, models, runs, scenes, refinement):
    """Writes the page.

    report: of demo.py. models: {"sam": the SAM teacher, "samclip": the merged one}, Models. runs:
    {stage: its metrics.jsonl}. scenes: the source that its pictures come from. refinement: options
    of Refinement.
    """
    merged, classes = models["samclip"], scenes.classes
    body = f"""
<h1>Two models in one encoder</h1>
<p>A small Segment Anything, which knows where things are, and a small CLIP, which knows what they
are, were merged by distillation on this machine (SAM-CLIP, arXiv 2310.15308). The pictures show
scenes that no model was trained or tuned on.</p>
<h2>Words become masks</h2>
<p>The merged model is given the names of all {len(classes)} classes and nothing else. Its CLIP head
names every patch; its SAM head then says how far each named thing reaches. One pass of the encoder
serves both.</p>
{"".join(words_to_masks(merged, scenes[i], classes, refinement) for i in TEXT)}
<h2>Where is it?</h2>
<p>How well each patch of the merged model fits a text, from dark to bright.</p>
<div class="row">{"".join(heat_map(merged, scenes[i], classes) for i in HEAT)}</div>
<h2>The same boxes, before and after</h2>
<p>The SAM teacher and the merged model are given the same boxes. What SAM could do should still be
there.</p>
{"".join(same_boxes(models["sam"], merged, scenes[i]) for i in PROMPT)}
<h2>How it was learnt</h2>
<div class="plots">{plots(report, runs)}</div>
<h2>What the paper claims, measured here</h2>
{claims_table(report["claims"])}
<p><small>Points of per cent, on images that no model was trained or tuned on.</small></p>
<h2>All figures</h2>
{figures_table(report)}
<dl>{"".join(f"<dt>{title}</dt><dd>{meaning}</dd>" for _, title, meaning in COLUMNS)}</dl>
<h2>Size</h2>
{sizes_table(report["parameters"])}
"""
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>SAM-CLIP: two models in one encoder</title><style>{STYLE}</style>{body}</html>\n"
    )
    with os_errors(f"{path} was not written"):
        path.write_text(page, encoding="utf-8")


def words_to_masks(model, scene, classes, refinement):
    """A row: photograph, the CLIP head's map, both heads', the truth, and the names of colours."""
    pictures, names = pictures_of_words(model, scene, classes, refinement)
    figures = "".join(figure(image, title) for title, image in pictures.items())
    key = "".join(
        f'<span><i style="background:rgb{tuple(colour.tolist())}"></i>{html.escape(name)}</span>'
        for name, colour in names.items()
    )
    return f'<div class="row">{figures}</div><div class="key">{key}</div>'


def pictures_of_words(model, scene, classes, refinement):
    """({title: uint8 [H', W', 3]}, {name: its colour}): what the words of all classes become."""
    predictor = Predictor(model)
    predictor.set_image(scene["image"])
    both = Refinement(**refinement)
    maps = {
        "CLIP head alone": predictor.segment(classes, templates=TEMPLATES),
        "both heads": predictor.segment(classes, refine=both, templates=TEMPLATES),
        "truth": scene["semantic"],
    }
    present = np.unique(np.concatenate([labels.ravel() for labels in maps.values()]))
    palette = class_colours()
    pictures = {scene["caption"]: draw.photo(scene["image"])}
    for title, labels in maps.items():
        pictures[title] = draw.label_map(scene["image"], labels, classes, palette)
    return pictures, {classes[i]: palette[i] for i in present}


def class_colours():  # -> uint8 [classes, 3]
    """The grounds of data/shapes.py in their own colours, the objects in bright ones."""
    objects = draw.colours(len(OBJECT_CLASSES))
    return np.concatenate([objects, np.array(list(GROUNDS.values()))]).astype(np.uint8)


def write_picture(path, model, scenes, refinement):
    """One picture of three scenes: photograph, CLIP head, both heads, truth, from left to right."""
    rows = []
    for i in TEXT[:3]:
        pictures, _ = pictures_of_words(model, scenes[i], scenes.classes, refinement)
        margins = (6, 6), (6, 6), (0, 0)
        rows.append(np.hstack([np.pad(x, margins, constant_values=255) for x in pictures.values()]))
    Image.fromarray(np.vstack(rows)).save(path, quality=88)


def heat_map(model, scene, classes):
    """The photograph under how well each patch fits the name of its main object."""
    name = classes[scene["label"]]
    (patches,) = model.patch_embeddings(scene["image"][None])
    (text,) = model.class_embeddings([name], TEMPLATES)
    return figure(draw.heat(scene["image"], patches @ text), f'"{name}"')


def same_boxes(sam, merged, scene):
    """A row: the boxes, the masks of the SAM teacher for them, and those of the merged model."""
    boxes = np.stack([annotation["box"] for annotation in scene["annotations"]])
    masks = []
    for model in sam, merged:
        predictor = Predictor(model)
        predictor.set_image(scene["image"])
        masks.append(predictor.predict_batch(boxes=boxes, multimask_output=False)[0][:, 0])
    before, after = masks
    union = (before | after).sum((1, 2))
    same = ((before & after).sum((1, 2)) / np.maximum(union, 1)).mean()
    figures = [
        figure(draw.outlines(scene["image"], (), boxes), "the boxes"),
        figure(draw.outlines(scene["image"], before, boxes), "SAM teacher"),
        figure(
            draw.outlines(scene["image"], after, boxes),
            f"SAM-CLIP; overlap with the teacher's {100 * same:.0f} %",
        ),
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def figure(image, caption):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(caption)
    shown = f'<img alt="{caption}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def plots(report, runs):
    lines = {stage: read_metrics(path) for stage, path in runs.items()}
    return (
        figure_of(lambda axes: plot_clip_losses(axes, lines), "L_CLIP, as the training goes")
        + figure_of(lambda axes: plot_sam_loss(axes, lines["stage2"]), "L_SAM in stage 2")
        + figure_of(
            lambda axes: plot_interpolation(axes, report),
            "The baseline interpolated with SAM (Wise-FT) reaches one or the other",
        )
    )


def read_metrics(path):
    """Its lines by step; of two of one step the later one counts."""
    lines = map(json.loads, path.read_text().splitlines())
    return sorted({line["step"]: line for line in lines}.values(), key=lambda line: line["step"])


def plot_clip_losses(axes, lines):
    baseline = lines["distill_only"]
    axes.plot(*curve(baseline, "clip/loss"), label="baseline, CLIP loss alone", color="#e0803c")
    first = 0
    for number, colour in (1, "#9cc4f5"), (2, "#5a97e0"), (3, "#3572c6"):
        stage = lines[f"stage{number}"]
        steps, losses = curve(stage, "clip/loss")
        axes.plot(first + steps, losses, label=f"SAM-CLIP, stage {number}", color=colour)
        first += steps[-1]
    axes.set(xlabel="step", ylabel="cosine distance", ylim=(0, None))
    axes.legend(frameon=False)


def plot_sam_loss(axes, lines):
    axes.plot(*curve(lines, "sam/loss"), color="#3c7fd8")
    axes.set(xlabel="step", ylabel="focal, dice and IoU", ylim=(0, None))


def plot_interpolation(axes, report):
    accuracy, masks = "zero_shot_accuracy", "box_miou"
    points = [(100 * row[accuracy], 100 * row[masks], row["alpha"]) for row in report["wise_ft"]]
    axes.plot(*zip(*[point[:2] for point in points], strict=True), "o-", color="#e0803c", ms=4)
    for x, y, alpha in (points[0], points[len(points) // 2], points[-1]):
        axes.annotate(f"{alpha:g}", (x, y), xytext=(5, 5), textcoords="offset points")
    merged = report["samclip"]
    axes.plot(100 * merged[accuracy], 100 * merged[masks], "*", color="#3c7fd8", ms=16)
    axes.annotate(
        "SAM-CLIP", (100 * merged[accuracy], 100 * merged[masks]), xytext=(-8, 10),
        textcoords="offset points", ha="right",
    )  # fmt: skip
    axes.axhline(100 * report["sam_teacher"][masks], ls=":", color=INK, lw=1)
    axes.axvline(100 * report["clip_teacher"][accuracy], ls=":", color=INK, lw=1)
    axes.set(xlabel="zero-shot accuracy", ylabel="mask IoU from a box")


def curve(lines, name):
    """(steps, values) of a metric; NaN where it was not finite."""
    logged = [line for line in lines if name in line]
    return np.array([[line["step"], line[name]] for line in logged], float).T


def figure_of(draw_into, caption):
    """A plot as SVG in the page's own colours and letters."""
    style = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    style |= {"svg.fonttype": "none", "font.size": 11, "svg.hashsalt": "page"}
    with matplotlib.rc_context(style):
        canvas = matplotlib.figure.Figure((5.2, 3.6), layout="constrained")
        axes = canvas.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        draw_into(axes)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def claims_table(claims):
    rows = "".join(
        f"<tr><td>{html.escape(claim['claim'])}</td><td>{claim['points']:.1f}</td>"
        f"<td>at least {claim['asked']:g}</td>"
        f"<td class={'holds' if claim['holds'] else 'fails'}>"
        f"{'holds' if claim['holds'] else 'does not hold'}</td></tr>"
        for claim in claims
    )
    return table(["SAM-CLIP's", "points", "asked", ""], rows)


def figures_table(report):
    rows = "".join(
        f"<tr><td>{title}</td>"
        + "".join(f"<td>{percent(report[name].get(key))}</td>" for key, *_ in COLUMNS)
        + "</tr>"
        for name, title in ROWS
    )
    return table(["per cent", *(title for _, title, _ in COLUMNS)], rows)


def sizes_table(parameters):
    rows = "".join(
        f"<tr><td>{part.replace('_', ' ')}</td><td>{count:,}</td></tr>"
        for part, count in parameters.items()
    )
    return table(["part", "parameters"], rows)


def table(head, rows):
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{rows}</table></div>'


def percent(share):
    return "" if share is None else f"{100 * share:.1f}"
