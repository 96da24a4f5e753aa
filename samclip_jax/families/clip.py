"""CLIP: images and texts in one space."""

from samclip_jax import flops
from samclip_jax.convert import clip as release
from samclip_jax.families.family import Family
from samclip_jax.models.config import ClipConfig
from samclip_jax.models.samclip import Clip


def targets(model, batch, names, grid, dtype):
    return {"summary": model.encode_image(batch["image"], dtype)}


def operations(config, names, shapes, grid):
    return flops.clip_image(config.vision)


FAMILY = Family(
    kind="clip",
    title="a CLIP",
    config=ClipConfig,
    model=Clip,
    outputs=frozenset({"summary", "patches", "text"}),
    targets=targets,
    operations=operations,
    width=lambda config: config.vision.embed_dim or config.vision.width,
    side=lambda config: config.vision.image_size,
    release=release,
)
