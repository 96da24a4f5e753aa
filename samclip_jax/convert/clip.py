"""CLIP: the layouts in which it is released, and its config from a file of one of them."""

import math

from samclip_jax.convert.detect import (
    RESCALED,
    STATISTICS_ASSUMED,
    completed,
    hugging_face,
    image_processor,
    other_views,
    section,
    square,
    statistics,
)
from samclip_jax.convert.readers import read_json
from samclip_jax.convert.rules import LINEAR, NORM, Layout, patches, row, rules, same, transposed
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    OPENAI_MEAN,
    OPENAI_STD,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
)

RELEASED = "CLIP with a ViT as OpenAI, OpenCLIP or Hugging Face's CLIPModel"
SIZES = {
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
# says otherwise is reported. `size` is added where the model's own is known.
OPEN_CLIP_VIEW = {"resize_mode": ["shortest"], "interpolation": ["bicubic", "random"]}
CLIP_VIEW = {"do_resize": [True], "resample": [3], "do_center_crop": [True], **RESCALED}
ASSUMED = {  # how a value is reported that no file tells
    "vision_heads": "{} heads in the image tower",
    "text_heads": "{} heads in the text tower",
    "vision_activation": "{} activations in the image tower (else --quick_gelu, --no-quick_gelu)",
    "text_activation": "{} activations in the text tower (else --quick_gelu, --no-quick_gelu)",
    **STATISTICS_ASSUMED,
}


def cells(table):  # [h, w, C] -> [h * w, C]
    return table.reshape(-1, table.shape[-1])


def third(i, view):  # queries, keys or values of a joint projection [..., 3 * width]
    def part(array):
        width = array.shape[-1] // 3
        return view(array[..., i * width : (i + 1) * width])

    return part


ATTENTION_IN = {"_weight": ("/kernel", transposed), "_bias": ("/bias", same)}

# The towers of a layout have the same blocks.


def open_clip_blocks(name, key):
    return (
        (f"{name}/norm1", NORM, f"{key}.ln_1"),
        (f"{name}/qkv", ATTENTION_IN, f"{key}.attn.in_proj"),
        (f"{name}/proj", LINEAR, f"{key}.attn.out_proj"),
        (f"{name}/norm2", NORM, f"{key}.ln_2"),
        (f"{name}/mlp/fc1", LINEAR, f"{key}.mlp.c_fc"),
        (f"{name}/mlp/fc2", LINEAR, f"{key}.mlp.c_proj"),
    )


def clip_model_blocks(name, key):
    apart = tuple(
        (f"{name}/qkv{ours}", third(i, view), f"{key}.self_attn.{part}_proj{ending}")
        for i, part in enumerate("qkv")
        for ending, (ours, view) in LINEAR.items()
    )
    return (
        (f"{name}/norm1", NORM, f"{key}.layer_norm1"),
        *apart,
        (f"{name}/proj", LINEAR, f"{key}.self_attn.out_proj"),
        (f"{name}/norm2", NORM, f"{key}.layer_norm2"),
        (f"{name}/mlp/fc1", LINEAR, f"{key}.mlp.fc1"),
        (f"{name}/mlp/fc2", LINEAR, f"{key}.mlp.fc2"),
    )


OPEN_CLIP_RULES = rules(
    ("logit_scale", same, "logit_scale"),
    ("vision/class_token", same, "visual.class_embedding"),
    ("vision/class_pos_embed", row, "visual.positional_embedding"),
    ("vision/pos_embed", cells, "visual.positional_embedding"),
    ("vision/patch_embed/kernel", patches, "visual.conv1.weight"),
    ("vision/pre_norm", NORM, "visual.ln_pre"),
    *open_clip_blocks("vision/blocks/{}", "visual.transformer.resblocks.{}"),
    ("vision/post_norm", NORM, "visual.ln_post"),
    ("vision/projection/kernel", same, "visual.proj"),
    ("text/token_embed", same, "token_embedding.weight"),
    ("text/pos_embed", same, "positional_embedding"),
    *open_clip_blocks("text/blocks/{}", "transformer.resblocks.{}"),
    ("text/post_norm", NORM, "ln_final"),
    ("text/projection/kernel", same, "text_projection"),
)
CLIP_MODEL_RULES = rules(
    ("logit_scale", same, "logit_scale"),
    ("vision/class_token", same, "vision_model.embeddings.class_embedding"),
    ("vision/class_pos_embed", row, "vision_model.embeddings.position_embedding.weight"),
    ("vision/pos_embed", cells, "vision_model.embeddings.position_embedding.weight"),
    ("vision/patch_embed/kernel", patches, "vision_model.embeddings.patch_embedding.weight"),
    ("vision/pre_norm", NORM, "vision_model.pre_layrnorm"),
    *clip_model_blocks("vision/blocks/{}", "vision_model.encoder.layers.{}"),
    ("vision/post_norm", NORM, "vision_model.post_layernorm"),
    ("vision/projection/kernel", transposed, "visual_projection.weight"),
    ("text/token_embed", same, "text_model.embeddings.token_embedding.weight"),
    ("text/pos_embed", same, "text_model.embeddings.position_embedding.weight"),
    *clip_model_blocks("text/blocks/{}", "text_model.encoder.layers.{}"),
    ("text/post_norm", NORM, "text_model.final_layer_norm"),
    ("text/projection/kernel", transposed, "text_projection.weight"),
)

OPENAI = Layout(  # signature: of the TorchScript archives
    title="OpenAI CLIP",
    signature="input_resolution",
    rules=OPEN_CLIP_RULES,
    config_file="open_clip_config.json",
    activation="quick_gelu",
    ignored=("input_resolution", "context_length", "vocab_size"),
)
OPEN_CLIP = Layout(
    title="OpenCLIP",
    signature="visual.class_embedding",
    rules=OPEN_CLIP_RULES,
    config_file="open_clip_config.json",
    activation="gelu",
    ignored=("attn_mask",),
    aliases={"text.": ""},  # its CustomTextCLIP
)
CLIP_MODEL = Layout(
    title="Hugging Face CLIPModel",
    signature="vision_model.embeddings.class_embedding",
    rules=CLIP_MODEL_RULES,
    config_file="config.json",
    activation="quick_gelu",
    ignored=(
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
    ),
)
LAYOUTS = (OPENAI, OPEN_CLIP, CLIP_MODEL)


def size_name(config):
    """'CLIP ViT-L/14', or the width and depth of a model of no known size."""
    width, depth, patch = config.vision.width, config.vision.depth, config.vision.patch
    return f"CLIP ViT-{SIZES.get((width, depth), f'{width}x{depth}')}/{patch}"


def config_of(shapes, folder, quick_gelu=None):
    """(ClipConfig, [what is assumed]); shapes: a detect.Shapes.

    Shapes do not tell heads, activation, mean and std: open_clip_config.json, or Hugging Face's
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
    side = patch * math.isqrt(shapes["vision/pos_embed"][0] - 1)
    described = _clip_model if shapes.layout is CLIP_MODEL else _open_clip
    values, defaults, others = described(folder, width, side)
    if quick_gelu is not None:
        activation = "quick_gelu" if quick_gelu else "gelu"
        values |= {"vision_activation": activation, "text_activation": activation}
    values, assumed = completed(values, published | defaults, ASSUMED)
    assumed += others
    towers = (values["vision_heads"], width), (values["text_heads"], text_width)
    for heads, total in towers:
        if not heads or total % heads:
            raise UserError(
                f"{heads} heads do not divide a width of {total}: put the model's "
                f"{shapes.layout.config_file} beside its weights."
            )
    vision = ClipVisionConfig(
        width=width,
        depth=shapes.layers("vision/blocks/"),
        heads=values["vision_heads"],
        mlp_width=shapes["vision/blocks/0/mlp/fc1/kernel"][0],
        patch=patch,
        image_size=side,
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


def _open_clip(folder, width, side):
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
        **statistics(view),
    }
    defaults = {"vision_heads": width // 64, "text_heads": 8}
    defaults |= {"vision_activation": "gelu", "text_activation": "gelu"}
    return values, defaults, other_views(view, OPEN_CLIP_VIEW | {"size": [side, [side, side]]})


def _clip_model(folder, width, side):
    """(values that Hugging Face's files tell, transformers' defaults of those they leave out, how
    another view of a photograph is reported)."""
    config, processor = hugging_face(folder, "clip"), image_processor(folder)
    sizes = {"size": [{"shortest_edge": side}, side], "crop_size": [square(side), side]}
    values, others = statistics(processor, "image_"), other_views(processor, CLIP_VIEW | sizes)
    if not config:
        return values, {}, others
    for tower in ("vision", "text"):
        described = config.get(f"{tower}_config_dict")  # of old files: where it is, it counts alone
        if described is None:
            described = section(config, f"{tower}_config")
        activation, epsilon = described.get("hidden_act"), described.get("layer_norm_eps")
        if activation not in (None, "gelu", "quick_gelu"):
            raise UserError(f"{folder}/config.json: hidden_act must be gelu or quick_gelu.")
        if epsilon not in (None, 1e-5):
            raise UserError(f"{folder}/config.json: layer_norm_eps must be 1e-5, as CLIP has it.")
        values[f"{tower}_activation"] = activation
        values[f"{tower}_heads"] = described.get("num_attention_heads")
    return values, {"vision_heads": 12, "text_heads": 8}, others
