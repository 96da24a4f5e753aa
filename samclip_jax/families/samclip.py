"""SAM-CLIP, the two merged: the student, and a teacher too."""

from samclip_jax import flops
from samclip_jax.families.family import Family
from samclip_jax.models.config import SamClipConfig
from samclip_jax.models.samclip import TEXT_HEAD, SamClip


def targets(model, batch, names, grid, dtype):
    heads = {"summary": TEXT_HEAD, "masks": "mask_decoder"}
    outputs = model.outputs(batch, [(heads[name], name) for name in names], dtype)
    return {name: outputs[heads[name], name] for name in names}


def operations(config, names, shapes, grid):
    total = flops.encoder(config.sam.encoder, shapes["image"][1:3])
    if "summary" in names:
        total += flops.clip_head(config, TEXT_HEAD, grid)
    return total + (flops.masks(config.sam, shapes) if "masks" in names else 0)


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
