"""Operations that the models need by their formulas, two a multiplication, nothing done twice.

Matrix products alone, as `hlo.count` counts: the rest is too little to matter.
"""

from samclip_jax.models.config import kind_of

HEADS = {"summary": "clip_head", "masks": "mask_decoder"}  # output: the parameters that make it


def step(terms, student, teachers, trained, batches):
    """Of one training step on all devices together.

    terms: {name: TermConfig}; student: SamClipConfig; teachers: {name: its config}; trained: the
    first parts of the names of trainable parameters; batches: {stream: {name: shape}}.
    """
    total = 0
    for stream, shapes in batches.items():
        of_stream = [term for term in terms.values() if term.stream == stream]
        images = shapes["image"][0]
        for name in {term.teacher for term in of_stream}:
            targets = {term.target for term in of_stream if term.teacher == name}
            total += images * outputs(teachers[name], targets, shapes)
        body = encoder(student.sam.encoder, shapes["image"][1:3])
        total += images * body * (3 if "encoder" in trained else 1)
        for target in {term.target for term in of_stream}:
            # a gradient takes as much again for the weights, and for what came into the layer
            gradients = (HEADS[target] in trained) + bool(trained & {HEADS[target], "encoder"})
            total += images * head(student, target, shapes) * (1 + gradients)
    return total


def outputs(config, targets, shapes):
    """What a model takes for these outputs, for one image of a batch of such shapes."""
    size = shapes["image"][1:3]
    if kind_of(config) == "clip":
        return clip_image(config)
    return encoder(_sam(config).encoder, size) + sum(head(config, t, shapes) for t in targets)


def head(config, target, shapes):
    """The same, of an output from the encoder's tokens on."""
    size = shapes["image"][1:3]
    if target == "summary":
        return clip_head(config, size)
    _, prompts, points = shapes["labels"]
    return prompts * mask_decoder(_sam(config), size, points)


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


def clip_image(config):
    """What CLIP's image tower takes for one image, whatever its size."""
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
