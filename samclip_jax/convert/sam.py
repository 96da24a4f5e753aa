"""SAM: the layouts in which it is released, and its config from a file of one of them."""

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
from samclip_jax.convert.rules import (
    LINEAR,
    NORM,
    Layout,
    convolution,
    patches,
    row,
    rules,
    same,
    weight_and_bias,
)
from samclip_jax.errors import UserError
from samclip_jax.models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamConfig,
)

RELEASED = "SAM as segment_anything or Hugging Face's SamModel"
SIZES = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
# How a photograph is brought to the model's size here, in the words of preprocessor_config.json; a
# file that says otherwise is reported.
VIEW = {"do_resize": [True], "resample": [2], "do_pad": [True], **RESCALED}
ASSUMED = {  # how a value is reported that no file tells
    "decoder_heads": "{} heads in the mask decoder",
    **STATISTICS_ASSUMED,
}


def pointwise(kernel):  # [in, out] -> [out, in, 1, 1]
    return kernel.T[:, :, None, None]


def upscaling(kernel):  # [in, 2, 2, out] -> [in, out, 2, 2], a ConvTranspose2d
    return kernel.transpose(0, 3, 1, 2)


def halving(kernel):  # [2 * 2 * in, out] -> [out, in, 2, 2]
    return convolution(kernel.reshape(2, 2, -1, kernel.shape[-1]))


ATTENTION = {
    f".{part}_proj{ending}": (f"/{part}{ours}", view)
    for part in ("q", "k", "v", "out")
    for ending, (ours, view) in LINEAR.items()
}


def encoder_blocks(key, norm):
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


def decoder_transformer(norm):
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


def mlps(*layers):
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
    *encoder_blocks("image_encoder.blocks.{}", "norm"),
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
    *decoder_transformer("norm"),
    ("mask_decoder/upscale1", weight_and_bias(upscaling), "mask_decoder.output_upscaling.0"),
    ("mask_decoder/upscale_norm", NORM, "mask_decoder.output_upscaling.1"),
    ("mask_decoder/upscale2", weight_and_bias(upscaling), "mask_decoder.output_upscaling.3"),
    *mlps("layers.0", "layers.1", "layers.2"),
)
SAM_MODEL_RULES = rules(
    ("encoder/pos_embed", row, "vision_encoder.pos_embed"),
    ("encoder/patch_embed", weight_and_bias(patches), "vision_encoder.patch_embed.projection"),
    *encoder_blocks("vision_encoder.layers.{}", "layer_norm"),
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
    *decoder_transformer("layer_norm"),
    ("mask_decoder/upscale1", weight_and_bias(upscaling), "mask_decoder.upscale_conv1"),
    ("mask_decoder/upscale_norm", NORM, "mask_decoder.upscale_layer_norm"),
    ("mask_decoder/upscale2", weight_and_bias(upscaling), "mask_decoder.upscale_conv2"),
    *mlps("proj_in", "layers.0", "proj_out"),
)

SEGMENT_ANYTHING = Layout(
    title="segment_anything",
    signature="image_encoder.patch_embed.proj.weight",
    rules=SEGMENT_ANYTHING_RULES,
)
SAM_MODEL = Layout(
    title="Hugging Face SamModel",
    signature="vision_encoder.patch_embed.projection.weight",
    rules=SAM_MODEL_RULES,
    aliases={"prompt_encoder.shared_embedding.": "shared_image_embedding."},
)
LAYOUTS = (SEGMENT_ANYTHING, SAM_MODEL)


def size_name(config):
    """'SAM ViT-B', or the width and depth of a model of no known size."""
    width, depth = config.encoder.width, config.encoder.depth
    return f"SAM ViT-{SIZES.get((width, depth), f'{width}x{depth}')}"


def config_of(shapes, folder, quick_gelu=None):
    """(SamConfig, [what is assumed]); shapes: a detect.Shapes. quick_gelu: a CLIP's alone.

    Shapes do not tell the decoder's heads, mean and std. segment_anything has one value of each;
    beside Hugging Face's SamModel config.json and preprocessor_config.json tell them.
    """
    values = {"decoder_heads": 8, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    described, processor, assumed = {}, {}, []
    if shapes.layout is SAM_MODEL:
        described = hugging_face(folder, "sam")
        heads = section(described, "mask_decoder_config").get("num_attention_heads")
        processor = image_processor(folder)
        read = {"decoder_heads": heads, **statistics(processor, "image_")}
        values, assumed = completed(read, values, ASSUMED)
    depth = shapes.layers("encoder/blocks/")
    width, _, _, patch = shapes["encoder/patch_embed/kernel"]
    tables = [shapes[f"encoder/blocks/{i}/rel_pos_h"] for i in range(depth)]
    global_blocks = [i for i, table in enumerate(tables) if table[0] != tables[0][0]]
    if not global_blocks:  # windows as large as the image: all tables look alike
        global_blocks = section(described, "vision_config").get("global_attn_indexes")
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
    side = encoder.image_size
    sizes = {"size": [{"longest_edge": side}], "pad_size": [square(side)]}
    return SamConfig(encoder, decoder), assumed + other_views(processor, VIEW | sizes)
