"""What this project asks of a family of models."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Family:
    """Models of one kind; each file beside this one has one.

    targets: (model, batch, names, grid, dtype) -> {name: what a student learns from it}. batch:
    {"image": uint8 [B, H, W, 3], "size" where it is padded}. "summary": [B, D], one vector an
    image; "patches": [B, *grid, D], one for every patch of the student, of which there are (h, w)
    = grid; neither always of unit length. "masks": (points, labels) -> MaskOutput.

    operations: (config, names, shapes, grid) -> what these targets take for one image, see
    flops.py; shapes: {name: shape} of a batch.
    """

    kind: str  # its name in model.json
    title: str  # its name in a sentence
    config: type  # a dataclass of models/config.py; its defaults are the paper's (4.1)
    model: type  # nnx.Module
    outputs: frozenset[str]  # of images "summary", "patches", "masks"; of texts "text"
    targets: Callable
    operations: Callable
    width: Callable = lambda config: None  # of a summary and of a patch, D
    side: Callable = lambda config: None  # of the squares that it takes, px; None: any image
    release: ModuleType | None = None  # of convert/, as sam.py there: how its weights are released
