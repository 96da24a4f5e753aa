"""The model's config, from its tensors' shapes and from the JSON files that lie beside them."""

import math

from samclip_jax.convert.readers import read_json
from samclip_jax.convert.rules import CLIP_MODEL, SAM_MODEL
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_MEAN,
    OPENAI_STD,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
    kind_of,
)

SAM_SIZES = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
CLIP_SIZES = {
    **{(384, 12): "S", (512, 12): "M", (768, 12): "B", (896, 12): "B-plus", (1024, 24): "L"},
    **{(1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG", (1792, 56): "e"},
}
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}  # of CLIP ViT-H, g, bigG, e; else 64
# open_clip_config.json: these fields are read, or seen in the shapes, or matter to training alone;
# any other must have a default value, for it would ask for another architecture.
OPEN_CLIP_FIELDS = {
    "vision_cfg": "layers width head_width mlp_ratio patch_size image_size patch_dropout "
    "output_tokens attn_pooler_queries attn_pooler_heads",
    "text_cfg": "layers width heads mlp_ratio context_length vocab_size output_tokens pad_id "
    "eos_id",
}
OPEN_CLIP_DEFAULTS = (None, False, {}, "tok", "argmax", "learnable", "linear", "default")
# How a photograph is brought to the model's size here, in the words of those files; a file that
# says otherwise is reported.
OPEN_CLIP_VIEW = {"resize_mode": ["shortest"], "interpolation": ["bicubic", "random"]}
CLIP_VIEW = {"do_resize": [True], "resample": [3], "do_center_crop": [True]}
SAM_VIEW = {"do_resize": [True], "resample": [2]}
ASSUMED = {  # how a value is reported that no file tells
    "decoder_heads": "{} heads in the mask decoder",
    "vision_heads": "{} heads in the image tower",
    "text_heads": "{} heads in the text tower",
    "vision_activation": "{} activations in the image tower (else --quick_gelu, --no-quick_gelu)",
    "text_activation": "{} activations in the text tower (else --quick_gelu, --no-quick_gelu)",
    "mean": "mean {}",
    "std": "std {}",
}


class Shapes(dict):
    """{our name, one layer at a time: shape of its tensor}; a missing one is a UserError."""

    def __init__(self, layout, shapes):
        super().__init__(shapes)
        self.layout = layout

    def __missing__(self, name):
        raise UserError(f"{self.layout.key(name)} is missing, which tells the model's size.")

    def layers(self, stack):
        """The number of layers in "vision/blocks/"."""
        numbers = [name[len(stack) :].split("/")[0] for name in self if name.startswith(stack)]
        return 1 + max(map(int, numbers), default=-1)


def detect(layout, shapes, path, quick_gelu=None):
    """(config, [what is assumed]) of the model in a weight file.

    Assumed is what no file tells, and what is done here in another way than a file says.

    layout: its Layout. shapes: {our name, one layer at a time: shape in the layout}. quick_gelu:
    CLIP's activation, where it is not as the files beside `path` say.
    """
    shapes = Shapes(layout, shapes)
    try:
        if layout.kind == "sam":
            return sam_config(shapes, path.parent)
        return clip_config(shapes, path.parent, quick_gelu)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its shapes and the JSON files beside it are not those of one {layout.title} "
            f"model ({error})."
        ) from error


def size_name(config):
    """'SAM ViT-B', 'CLIP ViT-L/14', or the width and depth of a model of no known size."""
    if kind_of(config) == "sam":
        vision, sizes, kind, patch = config.encoder, SAM_SIZES, "SAM", ""
    else:
        vision, sizes, kind, patch = config.vision, CLIP_SIZES, "CLIP", f"/{config.vision.patch}"
    size = sizes.get((vision.width, vision.depth), f"{vision.width}x{vision.depth}")
    return f"{kind} ViT-{size}{patch}"


def sam_config(shapes, folder):
    """Shapes do not tell the decoder's heads, mean and std. segment_anything has one value of each;
    beside Hugging Face's SamModel config.json and preprocessor_config.json tell them.
    """
    values = {"decoder_heads": 8, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    described, assumed = {}, []
    if shapes.layout is SAM_MODEL:
        described = _hugging_face(folder, "sam")
        heads = _part(described, "mask_decoder_config").get("num_attention_heads")
        processor = _image_processor(folder)
        told = {"decoder_heads": heads, **_statistics(processor, "image_")}
        values, assumed = _completed(told, values)
        assumed += _other_views(processor, SAM_VIEW)
    depth = shapes.layers("encoder/blocks/")
    width, _, _, patch = shapes["encoder/patch_embed/kernel"]
    tables = [shapes[f"encoder/blocks/{i}/rel_pos_h"] for i in range(depth)]
    global_blocks = [i for i, table in enumerate(tables) if table[0] != tables[0][0]]
    if not global_blocks:  # windows as large as the image: all tables look alike
        global_blocks = _part(described, "vision_config").get("global_attn_indexes")
    if not global_blocks:
        global_blocks = [depth * (i + 1) // 4 - 1 for i in range(4)]
        assumed.append(f"global attention in blocks {global_blocks}")
    every = depth // len(global_blocks)
    if global_blocks != list(range(every - 1, depth, every)):
        raise UserError(
            f"global attention is in blocks {global_blocks} of {depth}; SAM has it at regular "
            "intervals and in the last block."
        )
    encoder = ImageEncoderConfig(
        width=width,
        depth=depth,
        heads=width // tables[0][1],
        groups=len(global_blocks),
        patch=patch,
        image_size=patch * (tables[-1][0] + 1) // 2,
        window=(tables[0][0] + 1) // 2,
        mlp_width=shapes["encoder/blocks/0/mlp/fc1/kernel"][0],
        out_channels=shapes["encoder/neck/conv1/kernel"][0],
        mean=values["mean"],
        std=values["std"],
    )
    decoder = MaskDecoderConfig(
        depth=shapes.layers("mask_decoder/blocks/block"),
        heads=values["decoder_heads"],
        mlp_width=shapes["mask_decoder/blocks/block0/mlp/fc1/kernel"][0],
        multimask_outputs=shapes["mask_decoder/mask_tokens"][0] - 1,
        iou_width=shapes["mask_decoder/iou_head/fc1/kernel"][0],
        mask_channels=shapes["prompt_encoder/mask_conv2/kernel"][0],
    )
    return SamConfig(encoder, decoder), assumed


def clip_config(shapes, folder, quick_gelu=None):
    """Shapes do not tell heads, activation, mean and std: open_clip_config.json, or Hugging Face's
    config.json and preprocessor_config.json, do; else they are the published models' usual ones.
    """
    width, _, _, patch = shapes["vision/patch_embed/kernel"]
    text_width = shapes["text/token_embed"][1]
    published = {
        "vision_heads": width // HEAD_WIDTHS.get(width, 64),
        "text_heads": text_width // 64,
        "vision_activation": shapes.layout.activation,
        "text_activation": shapes.layout.activation,
        "mean": OPENAI_MEAN,
        "std": OPENAI_STD,
    }
    described = _clip_model if shapes.layout is CLIP_MODEL else _open_clip
    values, defaults, others = described(folder, width)
    if quick_gelu is not None:
        activation = "quick_gelu" if quick_gelu else "gelu"
        values |= {"vision_activation": activation, "text_activation": activation}
    values, assumed = _completed(values, published | defaults)
    assumed += others
    towers = (values["vision_heads"], width), (values["text_heads"], text_width)
    for heads, total in towers:
        if not heads or total % heads:
            raise UserError(
                f"{heads} heads do not divide a width of {total}: put the model's "
                f"{shapes.layout.config_file} beside its weights."
            )
    grid = math.isqrt(shapes["vision/pos_embed"][0] - 1)
    vision = ClipVisionConfig(
        width=width,
        depth=shapes.layers("vision/blocks/"),
        heads=values["vision_heads"],
        mlp_width=shapes["vision/blocks/0/mlp/fc1/kernel"][0],
        patch=patch,
        image_size=patch * grid,
        embed_dim=_projected(shapes, "vision", width),
        activation=values["vision_activation"],
        mean=values["mean"],
        std=values["std"],
    )
    text = ClipTextConfig(
        width=text_width,
        depth=shapes.layers("text/blocks/"),
        heads=values["text_heads"],
        mlp_width=shapes["text/blocks/0/mlp/fc1/kernel"][0],
        context_length=shapes["text/pos_embed"][0],
        vocab_size=shapes["text/token_embed"][0],
        embed_dim=_projected(shapes, "text", text_width),
        activation=values["text_activation"],
    )
    return ClipConfig(vision, text), assumed


def _projected(shapes, tower, width):  # the projection is [width, D] or [D, width]
    name = f"{tower}/projection/kernel"
    return math.prod(shapes[name]) // width if name in shapes else None


def _completed(values, defaults):
    """(the values, with defaults where they are absent or None; how those are reported)."""
    values = {name: value for name, value in values.items() if value is not None}
    missing = [name for name in defaults if name not in values]
    return defaults | values, [ASSUMED[name].format(defaults[name]) for name in missing]


def _open_clip(folder, width):
    """(values that open_clip_config.json tells, OpenCLIP's defaults of those it leaves out, how
    another view of a photograph is reported)."""
    path = folder / "open_clip_config.json"
    if not path.is_file():
        return {}, {}, []
    config = read_json(path)
    model, view = config["model_cfg"], config.get("preprocess_cfg") or {}
    for tower, fields in OPEN_CLIP_FIELDS.items():
        for field, value in model[tower].items():
            if field not in fields.split() and value not in OPEN_CLIP_DEFAULTS:
                raise UserError(
                    f"{path} has {tower}.{field} = {value!r}: only towers as OpenAI built them are "
                    "read, as OpenCLIP's plain ViT models are."
                )
    vision, text = model["vision_cfg"], model["text_cfg"]
    head_width, quick_gelu = vision.get("head_width"), model.get("quick_gelu")
    activation = {None: None, True: "quick_gelu", False: "gelu"}[quick_gelu]
    values = {
        "vision_heads": None if head_width is None else width // head_width,
        "text_heads": text.get("heads"),
        "vision_activation": activation,
        "text_activation": activation,
        **_statistics(view),
    }
    defaults = {"vision_heads": width // 64, "text_heads": 8}
    defaults |= {"vision_activation": "gelu", "text_activation": "gelu"}
    return values, defaults, _other_views(view, OPEN_CLIP_VIEW)


def _clip_model(folder, width):
    """(values that Hugging Face's files tell, transformers' defaults of those they leave out, how
    another view of a photograph is reported)."""
    config, processor = _hugging_face(folder, "clip"), _image_processor(folder)
    values, others = _statistics(processor, "image_"), _other_views(processor, CLIP_VIEW)
    if not config:
        return values, {}, others
    for tower in ("vision", "text"):
        described = config.get(f"{tower}_config_dict")  # of old files: where it is, it counts alone
        if described is None:
            described = _part(config, f"{tower}_config")
        activation, epsilon = described.get("hidden_act"), described.get("layer_norm_eps")
        if activation not in (None, "gelu", "quick_gelu"):
            raise UserError(f"{folder}/config.json: hidden_act must be gelu or quick_gelu.")
        if epsilon not in (None, 1e-5):
            raise UserError(f"{folder}/config.json: layer_norm_eps must be 1e-5, as CLIP has it.")
        values[f"{tower}_activation"] = activation
        values[f"{tower}_heads"] = described.get("num_attention_heads")
    return values, {"vision_heads": 12, "text_heads": 8}, others


def _part(config, name):
    return config.get(name) or {}


def _json(path):
    return read_json(path) if path.is_file() else {}


def _hugging_face(folder, model_type):
    """config.json, where there is one and it is of this type of model."""
    config = _json(folder / "config.json")
    return config if config.get("model_type") == model_type else {}


def _image_processor(folder):
    config = _json(folder / "processor_config.json").get("image_processor", {})
    return config | _json(folder / "preprocessor_config.json")


def _other_views(config, view):
    """How values of the file are reported that ask for another view of a photograph."""
    return [
        f"{name} {ours[0]!r}, though a file beside the weights has {config[name]!r}"
        for name, ours in view.items()
        if config.get(name) is not None and config[name] not in ours
    ]


def _statistics(config, prefix=""):
    """Mean and std, published for pixels in [0, 1]; ours are for 0 to 255."""
    if config.get("do_normalize") is False:
        return {"mean": (0.0,) * 3, "std": (255.0,) * 3}
    published = {name: config.get(prefix + name) for name in ("mean", "std")}
    for name, values in published.items():
        if values and (len(values) != 3 or (name == "std" and not min(values) > 0)):
            raise UserError(f"{prefix}{name} is {values}: three numbers are needed, std over 0")
    return {
        k: tuple(round(255 * v, 8) for v in values) for k, values in published.items() if values
    }
