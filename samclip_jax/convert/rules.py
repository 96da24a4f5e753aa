"""The layouts in which SAM and CLIP are published: one table of rules for each.

A rule names one of our parameters, the tensor that holds it in the layout, and how our array looks
from there. That look is a numpy view, so the same table serves both ways: to import is to write
into the view, to export is to read it, and its shape is the one that the tensor must have.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
    """`{}` stands for a layer's number, the same in both names."""

    name: str  # ours, one layer at a time: "encoder/blocks/{}/qkv/kernel"
    key: str  # theirs: "image_encoder.blocks.{}.attn.qkv.weight"
    view: Callable[[np.ndarray], np.ndarray]  # our array as theirs, sharing its memory

    @functools.cached_property
    def matches_name(self):
        return _numbered(self.name)

    @functools.cached_property
    def matches_key(self):
        return _numbered(self.key)


def _numbered(template):
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)")).fullmatch


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which a kind of model is published."""

    title: str
    kind: str  # "sam" or "clip"
    signature: str  # a key that tells this layout from those after it
    rules: tuple[Rule, ...]
    config_file: str | None = None  # published beside the weights
    activation: str | None = None  # of a CLIP without it
    ignored: tuple[str, ...] = ()  # keys that hold no weights
    aliases: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # start of a key: what it means

    def views(self, params):
        """How our parameters look in this layout: {key: [array, ...]}, to be joined along axis 0.

        The arrays share the memory of `params`. What has no rule here is left out.
        """
        layers = one_by_one(params)
        found = {}
        for rule in self.rules:
            for name, array in layers.items():
                if match := rule.matches_name(name):
                    key = rule.key.format(*match.groups())
                    found.setdefault(key, []).append(rule.view(array))
        return found

    def names(self, keys):
        """{our name, one layer at a time: key} of those keys that have a rule."""
        return {
            rule.name.format(*match.groups()): key
            for key in keys
            for rule in self.rules
            if (match := rule.matches_key(key))
        }

    def key(self, name):
        """The key of our name, one layer at a time."""
        return next(
            rule.key.format(*match.groups())
            for rule in self.rules
            if (match := rule.matches_name(name))
        )


STACKS = re.compile(
    "(vision/blocks|text/blocks|mask_decoder/hypernetworks|prompt_encoder/point_embeddings)(.*)"
)


def one_by_one(params):
    """Our flat parameters with stacked layers apart, as views: {"encoder/blocks/3/qkv/bias": ...}.

    The encoder's layers are counted through its groups of windowed blocks and one global block.
    """
    layers = {}
    for name, array in params.items():
        if match := re.fullmatch("encoder/(windowed|global)_blocks/(.+)", name):
            every = params[f"encoder/windowed_blocks/{match[2]}"].shape[1] + 1
            windowed = match[1] == "windowed"
            first = 0 if windowed else every - 1
            blocks = array if windowed else array[:, None]  # [groups, blocks, ...]
            for group, i in np.ndindex(blocks.shape[:2]):
                layers[f"encoder/blocks/{every * group + first + i}/{match[2]}"] = blocks[group, i]
        elif match := STACKS.fullmatch(name):
            for i in range(array.shape[0]):
                layers[f"{match[1]}/{i}{match[2]}"] = array[i]
        else:
            layers[name] = array
    return layers


# Views: how an array of ours looks in PyTorch's order of axes.


def same(array):
    return array


def transposed(kernel):  # [in, out] -> [out, in]
    return kernel.T


def row(array):  # [...] -> [1, ...]
    return array[None]


def cells(table):  # [h, w, C] -> [h * w, C]
    return table.reshape(-1, table.shape[-1])


def convolution(kernel):  # [h, w, in, out] -> [out, in, h, w]
    return kernel.transpose(3, 2, 0, 1)


def pointwise(kernel):  # [in, out] -> [out, in, 1, 1]
    return kernel.T[:, :, None, None]


def upscaling(kernel):  # [in, 2, 2, out] -> [in, out, 2, 2], a ConvTranspose2d
    return kernel.transpose(0, 3, 1, 2)


def halving(kernel):  # [2 * 2 * in, out] -> [out, in, 2, 2]
    return convolution(kernel.reshape(2, 2, -1, kernel.shape[-1]))


def patches(kernel):  # [p * p * 3, out] -> [out, 3, p, p]
    size = math.isqrt(kernel.shape[0] // 3)
    return convolution(kernel.reshape(size, size, 3, -1))


def third(i, view):  # queries, keys or values of a joint projection [..., 3 * width]
    def part(array):
        width = array.shape[-1] // 3
        return view(array[..., i * width : (i + 1) * width])

    return part


# Layers: the ending of each of their tensors -> (the ending of ours, its view).


def weight_and_bias(view):
    return {".weight": ("/kernel", view), ".bias": ("/bias", same)}


LINEAR = weight_and_bias(transposed)
NORM = {".weight": ("/scale", same), ".bias": ("/bias", same)}
ATTENTION = {
    f".{part}_proj{ending}": (f"/{part}{ours}", view)
    for part in ("q", "k", "v", "out")
    for ending, (ours, view) in LINEAR.items()
}
ATTENTION_IN = {"_weight": ("/kernel", transposed), "_bias": ("/bias", same)}


def rules(*table):
    """The rules of a table of (our name, a view or a layer, their key)."""
    made = []
    for name, form, key in table:
        parts = {"": ("", form)} if callable(form) else form
        made += [Rule(name + ours, key + theirs, view) for theirs, (ours, view) in parts.items()]
    return tuple(made)


# SAM, in both layouts.


def sam_encoder(key, norm):
    name = "encoder/blocks/{}"
    return (
        (f"{name}/norm1", NORM, f"{key}.{norm}1"),
        (f"{name}/rel_pos_h", same, f"{key}.attn.rel_pos_h"),
        (f"{name}/rel_pos_w", same, f"{key}.attn.rel_pos_w"),
        (f"{name}/qkv", LINEAR, f"{key}.attn.qkv"),
        (f"{name}/proj", LINEAR, f"{key}.attn.proj"),
        (f"{name}/norm2", NORM, f"{key}.{norm}2"),
        (f"{name}/mlp/fc1", LINEAR, f"{key}.mlp.lin1"),
        (f"{name}/mlp/fc2", LINEAR, f"{key}.mlp.lin2"),
    )


def sam_decoder(norm):
    name, transformer = "mask_decoder/blocks/block{}", "mask_decoder.transformer"
    key = f"{transformer}.layers.{{}}"
    return (
        (f"{name}/self_attention", ATTENTION, f"{key}.self_attn"),
        (f"{name}/norm1", NORM, f"{key}.{norm}1"),
        (f"{name}/token_to_image", ATTENTION, f"{key}.cross_attn_token_to_image"),
        (f"{name}/norm2", NORM, f"{key}.{norm}2"),
        (f"{name}/mlp/fc1", LINEAR, f"{key}.mlp.lin1"),
        (f"{name}/mlp/fc2", LINEAR, f"{key}.mlp.lin2"),
        (f"{name}/norm3", NORM, f"{key}.{norm}3"),
        (f"{name}/image_to_token", ATTENTION, f"{key}.cross_attn_image_to_token"),
        (f"{name}/norm4", NORM, f"{key}.{norm}4"),
        ("mask_decoder/final_attention", ATTENTION, f"{transformer}.final_attn_token_to_image"),
        ("mask_decoder/final_norm", NORM, f"{transformer}.{norm}_final_attn"),
        ("mask_decoder/iou_token", same, "mask_decoder.iou_token.weight"),
        ("mask_decoder/mask_tokens", same, "mask_decoder.mask_tokens.weight"),
    )


def sam_mlps(*layers):
    """The IoU head and the hypernetworks, whose three layers have names of their own."""
    pairs = (
        ("mask_decoder/iou_head", "mask_decoder.iou_prediction_head"),
        ("mask_decoder/hypernetworks/{}", "mask_decoder.output_hypernetworks_mlps.{}"),
    )
    return tuple(
        (f"{name}/fc{i}", LINEAR, f"{key}.{layer}")
        for name, key in pairs
        for i, layer in enumerate(layers, 1)
    )


SEGMENT_ANYTHING_RULES = rules(
    ("encoder/pos_embed", row, "image_encoder.pos_embed"),
    ("encoder/patch_embed", weight_and_bias(patches), "image_encoder.patch_embed.proj"),
    *sam_encoder("image_encoder.blocks.{}", "norm"),
    ("encoder/neck/conv1/kernel", pointwise, "image_encoder.neck.0.weight"),
    ("encoder/neck/norm1", NORM, "image_encoder.neck.1"),
    ("encoder/neck/conv2/kernel", convolution, "image_encoder.neck.2.weight"),
    ("encoder/neck/norm2", NORM, "image_encoder.neck.3"),
    (
        "prompt_encoder/gaussian",
        same,
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    ("prompt_encoder/point_embeddings/{}", row, "prompt_encoder.point_embeddings.{}.weight"),
    ("prompt_encoder/not_a_point", row, "prompt_encoder.not_a_point_embed.weight"),
    ("prompt_encoder/no_mask", row, "prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder/mask_conv1", weight_and_bias(halving), "prompt_encoder.mask_downscaling.0"),
    ("prompt_encoder/mask_norm1", NORM, "prompt_encoder.mask_downscaling.1"),
    ("prompt_encoder/mask_conv2", weight_and_bias(halving), "prompt_encoder.mask_downscaling.3"),
    ("prompt_encoder/mask_norm2", NORM, "prompt_encoder.mask_downscaling.4"),
    ("prompt_encoder/mask_conv3", weight_and_bias(pointwise), "prompt_encoder.mask_downscaling.6"),
    *sam_decoder("norm"),
    ("mask_decoder/upscale1", weight_and_bias(upscaling), "mask_decoder.output_upscaling.0"),
    ("mask_decoder/upscale_norm", NORM, "mask_decoder.output_upscaling.1"),
    ("mask_decoder/upscale2", weight_and_bias(upscaling), "mask_decoder.output_upscaling.3"),
    *sam_mlps("layers.0", "layers.1", "layers.2"),
)
SAM_MODEL_RULES = rules(
    ("encoder/pos_embed", row, "vision_encoder.pos_embed"),
    ("encoder/patch_embed", weight_and_bias(patches), "vision_encoder.patch_embed.projection"),
    *sam_encoder("vision_encoder.layers.{}", "layer_norm"),
    ("encoder/neck/conv1/kernel", pointwise, "vision_encoder.neck.conv1.weight"),
    ("encoder/neck/norm1", NORM, "vision_encoder.neck.layer_norm1"),
    ("encoder/neck/conv2/kernel", convolution, "vision_encoder.neck.conv2.weight"),
    ("encoder/neck/norm2", NORM, "vision_encoder.neck.layer_norm2"),
    ("prompt_encoder/gaussian", same, "shared_image_embedding.positional_embedding"),
    ("prompt_encoder/point_embeddings/{}", row, "prompt_encoder.point_embed.{}.weight"),
    ("prompt_encoder/not_a_point", row, "prompt_encoder.not_a_point_embed.weight"),
    ("prompt_encoder/no_mask", row, "prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder/mask_conv1", weight_and_bias(halving), "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder/mask_norm1", NORM, "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder/mask_conv2", weight_and_bias(halving), "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder/mask_norm2", NORM, "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder/mask_conv3", weight_and_bias(pointwise), "prompt_encoder.mask_embed.conv3"),
    *sam_decoder("layer_norm"),
    ("mask_decoder/upscale1", weight_and_bias(upscaling), "mask_decoder.upscale_conv1"),
    ("mask_decoder/upscale_norm", NORM, "mask_decoder.upscale_layer_norm"),
    ("mask_decoder/upscale2", weight_and_bias(upscaling), "mask_decoder.upscale_conv2"),
    *sam_mlps("proj_in", "layers.0", "proj_out"),
)

# CLIP: the towers of a layout have the same blocks.


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

SEGMENT_ANYTHING = Layout(
    title="segment_anything",
    kind="sam",
    signature="image_encoder.patch_embed.proj.weight",
    rules=SEGMENT_ANYTHING_RULES,
)
SAM_MODEL = Layout(
    title="Hugging Face SamModel",
    kind="sam",
    signature="vision_encoder.patch_embed.projection.weight",
    rules=SAM_MODEL_RULES,
    aliases={"prompt_encoder.shared_embedding.": "shared_image_embedding."},
)
OPENAI = Layout(  # signature: of the TorchScript archives
    title="OpenAI CLIP",
    kind="clip",
    signature="input_resolution",
    rules=OPEN_CLIP_RULES,
    config_file="open_clip_config.json",
    activation="quick_gelu",
    ignored=("input_resolution", "context_length", "vocab_size"),
)
OPEN_CLIP = Layout(
    title="OpenCLIP",
    kind="clip",
    signature="visual.class_embedding",
    rules=OPEN_CLIP_RULES,
    config_file="open_clip_config.json",
    activation="gelu",
    ignored=("attn_mask",),
    aliases={"text.": ""},  # its CustomTextCLIP
)
CLIP_MODEL = Layout(
    title="Hugging Face CLIPModel",
    kind="clip",
    signature="vision_model.embeddings.class_embedding",
    rules=CLIP_MODEL_RULES,
    config_file="config.json",
    activation="quick_gelu",
    ignored=(
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
    ),
)
LAYOUTS = (SEGMENT_ANYTHING, SAM_MODEL, OPENAI, OPEN_CLIP, CLIP_MODEL)
