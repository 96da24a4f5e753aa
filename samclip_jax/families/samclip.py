"""SAM-CLIP, the two merged: the student, and a teacher too, by its CLIP head and its masks."""

from samclip_jax import flops
from samclip_jax.config import MASKS, TEXT_HEAD
from samclip_jax.families.family import Family
from samclip_jax.models.config import SamClipConfig
from samclip_jax.models.samclip import SamClip


def targets(model, batch, names, grid, dtype):
    outputs = model.outputs(batch, [(head_of(name), name) for name in names], dtype)
    return {name: outputs[head_of(name), name] for name in names}


def head_of(name):
    return MASKS if name == "masks" else TEXT_HEAD


def operations(config, names, shapes, grid):
    heads = {head_of(name) for name in names}
    encoder = flops.encoder(config.sam.encoder, shapes["image"][1:3])
    return encoder + sum(head_operations(config, head, names, shapes, grid) for head in heads)


def head_operations(config, head, names, shapes, grid):
    """What a head takes for these of its outputs, from the encoder's tokens on."""
    if head == MASKS:
        return flops.masks(config.sam, shapes)
    return flops.clip_head(config, head, grid, names)


FAMILY = Family(
    kind="samclip",
    title="a merged SAM-CLIP",
    config=SamClipConfig,
    model=SamClip,
    outputs=frozenset({"summary", "patches", "masks", "text"}),
    targets=targets,
    operations=operations,
    width=lambda config: config.heads[TEXT_HEAD].embed_dim,
)
