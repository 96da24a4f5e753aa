"""SAM-CLIP in JAX: a SAM and a CLIP merged into one encoder.

    model = load("runs/demo/stage3")
    predictor = Predictor(model)
    predictor.set_image(image)
    labels = predictor.segment(["cat", "dog"], refine=True)

The names are imported on first use: the data workers import this package and must not load jax.
"""

import importlib

_MODULES = {
    "load": "samclip_jax.inference.model",
    "Predictor": "samclip_jax.inference.predictor",
    "MaskGenerator": "samclip_jax.inference.mask_generator",
}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
