"""Operations that the models need by their formulas, two a multiplication, nothing done twice.

Matrix products alone, as `hlo.count` counts: the rest is too little to matter.
"""

from samclip_jax.models.config import kind_of


def step(terms, student, teachers, trained, batches):
    """Of one training step on all devices together.

    terms: {name: TermConfig}; student: SamClipConfig; teachers: {name: its config}; trained: the
    first parts of the names of trainable parameters; batches: {stream: {name: shape}}.
    """
    total = 0
    for term in terms.values():
        shapes, teacher = batches[term.stream], teachers[term.teacher]
        images, height, width, _ = shapes["image"]
        size = height, width
        if term.loss == "clip":
            name, head = "clip_head", clip_head(student, size)
            target = clip_image(teacher, size)
        else:
            _, prompts, points = shapes["labels"]
            name, head = "mask_decoder", prompts * mask_decoder(student.sam, size, points)
            target = encoder(_sam(teacher).encoder, size)
            target += prompts * mask_decoder(_sam(teacher), size, points)
        body = encoder(student.sam.encoder, size)
        total += images * (target + body * (3 if "encoder" in trained else 1))
        # a gradient takes as much again for the weights, and for what came into the layer
        gradients = (name in trained) + bool(trained & {name, "encoder"})
        total += images * head * (1 + gradients)
    return total


def encoder(config, size):
    """ImageEncoder on one image of `size` px: the windows' padding has keys but no queries."""
    h, w = (side // config.patch for side in size)
    tokens, windowed = h * w, config.depth - config.groups
    return (
        _linear(tokens, 3 * config.patch**2, config.width)
        + windowed * _grid_block(config, tokens, config.window, config.window)
        + config.groups * _grid_block(config, tokens, h, w)
        + _linear(tokens, config.width, config.out_channels)
        + _linear(tokens, 9 * config.out_channels, config.out_channels)
    )


def clip_head(config, size):
    """ClipHead's pooled output for one image."""
    sam, head = config.sam.encoder, config.clip_head
    h, w = (side // sam.patch for side in size)
    widths = sam.width, head.mlp_hidden, head.mlp_hidden, head.embed_dim
    return head.depth * _grid_block(sam, h * w, h, w) + _mlp(1, *widths)


def clip_image(config, size):
    """What CLIP's image tower, or a merged model in its place, takes for one image."""
    if kind_of(config) == "samclip":
        return encoder(config.sam.encoder, size) + clip_head(config, size)
    config = config.vision
    patches = (config.image_size // config.patch) ** 2
    blocks = config.depth * _block(config, 1 + patches, 1 + patches)
    embedded = _linear(patches, 3 * config.patch**2, config.width)
    return embedded + blocks + _linear(1, config.width, config.embed_dim or 0)


def mask_decoder(config, size, points):
    """PromptEncoder and MaskDecoder for one prompt of so many points."""
    width, decoder = config.encoder.out_channels, config.mask_decoder
    image = (size[0] // config.encoder.patch) * (size[1] // config.encoder.patch)
    masks = decoder.multimask_outputs + 1
    tokens = 1 + masks + points
    across = _cross(tokens, image, width, width // 2)
    block = (
        _cross(tokens, tokens, width, width)
        + across
        + _mlp(tokens, width, decoder.mlp_width, width)
        + _cross(image, tokens, width, width // 2)
    )
    upscaled = _linear(image, width, width) + _linear(4 * image, width // 4, width // 2)
    iou = (decoder.iou_width,) * (decoder.iou_depth - 1)
    return (
        decoder.depth * block
        + across
        + upscaled
        + masks * (_mlp(1, width, width, width, width // 8) + _linear(16 * image, width // 8, 1))
        + _mlp(1, width, *iou, masks)
    )


def _sam(config):
    return config if kind_of(config) == "sam" else config.sam


def _linear(rows, inputs, outputs):
    return 2 * rows * inputs * outputs


def _mlp(rows, *widths):
    return sum(_linear(rows, a, b) for a, b in zip(widths, widths[1:], strict=False))


def _block(config, queries, keys):
    """A transformer block: linear layers, q k^T and the values."""
    linear = _linear(queries, config.width, 4 * config.width)
    attended = 2 * _linear(queries, config.width, keys)
    return linear + attended + _mlp(queries, config.width, config.mlp_width, config.width)


def _grid_block(config, queries, h, w):
    """One with relative position: q meets h + w vectors more."""
    return _block(config, queries, h * w) + _linear(queries, config.width, h + w)


def _cross(queries, keys, width, inner):
    """DecoderAttention: two linear layers of the queries, two of the keys."""
    linear = 2 * _linear(queries, width, inner) + 2 * _linear(keys, width, inner)
    return linear + 2 * _linear(queries, inner, keys)
