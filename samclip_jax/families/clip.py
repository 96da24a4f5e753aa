"""CLIP: images and texts in one space."""

from samclip_jax import flops
from samclip_jax.convert import clip as release
from samclip_jax.families.family import Family
from samclip_jax.models.config import ClipConfig
from samclip_jax.models.samclip import Clip


def targets(model, batch, names, grid, dtype):
    """Patches: the last block's values (MaskCLIP, arXiv 2112.01071), of the image resized until its
    patches are the student's; features are not interpolated."""
    outputs = {}
    if "summary" in names:
        outputs["summary"] = model.encode_image(batch["image"], dtype)
    if "patches" in names:
        outputs["patches"] = model.encode_dense(batch["image"], dtype, values=True, grid=grid)
    return outputs


def operations(config, names, shapes, grid):
    summary = flops.clip_image(config.vision) if "summary" in names else 0
    return summary + (flops.clip_values(config.vision, grid) if "patches" in names else 0)


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
