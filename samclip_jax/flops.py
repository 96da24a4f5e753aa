"""Operations that the models need by their formulas, two a multiplication, nothing done twice.

Matrix products alone, as `hlo.count` counts: the rest is too little to matter.
"""


def masks(config, shapes):
    """The encoder's neck, and MaskDecoder for the prompts, of one image of a batch of such shapes;
    `config` is a SAM's."""
    size, (_, prompts, points) = shapes["image"][1:3], shapes["labels"]
    return neck(config.encoder, size) + prompts * mask_decoder(config, size, points)


def encoder(config, size):
    """ImageEncoder without its neck, which masks alone need, on one image of `size` px: the
    windows' padding has keys but no queries."""
    h, w = (side // config.patch for side in size)
    tokens, windowed = h * w, config.depth - config.groups
    return (
        _linear(tokens, 3 * config.patch**2, config.width)
        + windowed * _grid_block(config, tokens, config.window, config.window)
        + config.groups * _grid_block(config, tokens, h, w)
    )


def neck(config, size):
    """ImageEncoder's two convolutions after its blocks."""
    tokens = (size[0] // config.patch) * (size[1] // config.patch)
    pointwise = _linear(tokens, config.width, config.out_channels)
    return pointwise + _linear(tokens, 9 * config.out_channels, config.out_channels)


def clip_head(config, name, grid, outputs):
    """A head's outputs, "summary" or "patches" or both, for one image of a grid of patches."""
    sam, head = config.sam.encoder, config.heads[name]
    h, w = grid
    widths = sam.width, head.mlp_hidden, head.mlp_hidden, head.embed_dim
    rows = ("summary" in outputs) + ("patches" in outputs) * h * w
    return head.depth * _grid_block(sam, h * w, h, w) + _mlp(rows, *widths)


def clip_image(config):
    """What CLIP's image tower takes for one image, whatever its size."""
    patches = (config.image_size // config.patch) ** 2
    blocks = config.depth * _block(config, 1 + patches, 1 + patches)
    embedded = _linear(patches, 3 * config.patch**2, config.width)
    return embedded + blocks + _linear(1, config.width, config.embed_dim or 0)


def clip_values(config, grid):
    """What the last block's values take for one image of a grid of patches."""
    h, w = grid
    tokens = 1 + h * w
    blocks = (config.depth - 1) * _block(config, tokens, tokens)
    values = _linear(tokens, config.width, 2 * config.width)  # value and output projections
    embedded = _linear(h * w, 3 * config.patch**2, config.width)
    return embedded + blocks + values + _linear(h * w, config.width, config.embed_dim or 0)


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
