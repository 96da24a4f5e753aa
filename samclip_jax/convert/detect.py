"""The model's config, from its tensors' shapes and from the JSON files that lie beside them."""

import math

from samclip_jax.convert.readers import read_json
from samclip_jax.convert.rules import CLIP_MODEL, SAM_MODEL
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
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
    """(config, [what had to be assumed]) of the model in a weight file.

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
    """Shapes tell all but the decoder's heads, which are 8 wherever Hugging Face has no other."""
    told = _hugging_face(folder, "sam") if shapes.layout is SAM_MODEL else {}
    assumed = []
    depth = shapes.layers("encoder/blocks/")
    width, _, _, patch = shapes["encoder/patch_embed/kernel"]
    tables = [shapes[f"encoder/blocks/{i}/rel_pos_h"] for i in range(depth)]
    global_blocks = [i for i, table in enumerate(tables) if table[0] != tables[0][0]]
    if not global_blocks:  # windows as large as the image: all tables look alike
        global_blocks = told.get("vision_config", {}).get("global_attn_indexes")
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
        **(_image_processor(folder) if shapes.layout is SAM_MODEL else {}),
    )
    decoder = MaskDecoderConfig(
        depth=shapes.layers("mask_decoder/blocks/block"),
        heads=told.get("mask_decoder_config", {}).get("num_attention_heads", 8),
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
    told = (_clip_model if shapes.layout is CLIP_MODEL else _open_clip)(folder)
    if quick_gelu is not None:
        told["activations"] = ("quick_gelu" if quick_gelu else "gelu",) * 2
    width, _, _, patch = shapes["vision/patch_embed/kernel"]
    text_width = shapes["text/token_embed"][1]
    usual = {
        "heads": (width // HEAD_WIDTHS.get(width, 64), text_width // 64),
        "activations": (shapes.layout.activation,) * 2,
        "mean": OPENAI_MEAN,
        "std": OPENAI_STD,
    }
    said = {
        "heads": "{0[0]} heads in the image tower, {0[1]} in the text tower",
        "activations": "{0[0]} activations (else --quick_gelu or --no-quick_gelu)",
        "mean": "mean {0}",
        "std": "std {0}",
    }
    assumed = [said[what].format(value) for what, value in usual.items() if what not in told]
    told = usual | told
    for heads, total in zip(told["heads"], (width, text_width), strict=True):
        if not heads or total % heads:
            raise UserError(
                f"{heads} heads do not divide a width of {total}: put the model's "
                f"{shapes.layout.config_file} beside its weights."
            )
    grid = math.isqrt(shapes["vision/pos_embed"][0] - 1)
    vision = ClipVisionConfig(
        width=width,
        depth=shapes.layers("vision/blocks/"),
        heads=told["heads"][0],
        mlp_width=shapes["vision/blocks/0/mlp/fc1/kernel"][0],
        patch=patch,
        image_size=patch * grid,
        embed_dim=_projected(shapes, "vision", width),
        activation=told["activations"][0],
        mean=told["mean"],
        std=told["std"],
    )
    text = ClipTextConfig(
        width=text_width,
        depth=shapes.layers("text/blocks/"),
        heads=told["heads"][1],
        mlp_width=shapes["text/blocks/0/mlp/fc1/kernel"][0],
        context_length=shapes["text/pos_embed"][0],
        vocab_size=shapes["text/token_embed"][0],
        embed_dim=_projected(shapes, "text", text_width),
        activation=told["activations"][1],
    )
    return ClipConfig(vision, text), assumed


def _projected(shapes, tower, width):  # the projection is [width, D] or [D, width]
    name = f"{tower}/projection/kernel"
    return math.prod(shapes[name]) // width if name in shapes else None


def _open_clip(folder):
    path = folder / "open_clip_config.json"
    if not path.is_file():
        return {}
    config = read_json(path)
    model = config["model_cfg"]
    for tower, fields in OPEN_CLIP_FIELDS.items():
        for field, value in model[tower].items():
            if field not in fields.split() and value not in OPEN_CLIP_DEFAULTS:
                raise UserError(
                    f"{path} has {tower}.{field} = {value!r}: only towers as OpenAI built them are "
                    "read, as OpenCLIP's plain ViT models are."
                )
    vision, text = model["vision_cfg"], model["text_cfg"]
    return {
        "heads": (vision.get("width", 768) // vision.get("head_width", 64), text.get("heads", 8)),
        "activations": ("quick_gelu" if model.get("quick_gelu") else "gelu",) * 2,
        **_statistics(config.get("preprocess_cfg", {})),
    }


def _clip_model(folder):
    config, statistics = _hugging_face(folder, "clip"), _image_processor(folder)
    if not config:
        return statistics
    vision, text = config.get("vision_config", {}), config.get("text_config", {})
    activations = tuple(tower.get("hidden_act", "quick_gelu") for tower in (vision, text))
    if not set(activations) <= {"gelu", "quick_gelu"}:
        raise UserError(f"{folder}/config.json: hidden_act must be gelu or quick_gelu.")
    heads = vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8)
    return {"heads": heads, "activations": activations, **statistics}


def _json(path):
    return read_json(path) if path.is_file() else {}


def _hugging_face(folder, model_type):
    """config.json, where there is one and it is of this type of model."""
    config = _json(folder / "config.json")
    return config if config.get("model_type") == model_type else {}


def _image_processor(folder):
    config = _json(folder / "processor_config.json").get("image_processor", {})
    return _statistics(config | _json(folder / "preprocessor_config.json"), "image_")


def _statistics(config, prefix=""):
    """Mean and std, published for pixels in [0, 1]; ours are for 0 to 255."""
    found = {name: config.get(prefix + name) for name in ("mean", "std")}
    return {name: tuple(round(255 * v, 8) for v in value) for name, value in found.items() if value}
