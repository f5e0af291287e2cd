"""torchvision, importable together with a torch without GPU support.

torchvision's wheels contain operators compiled for one build of torch. With a CPU-only torch they may not load, and
then `import torchvision` fails because `torchvision::nms` was never declared. This package does not call these
operators, so declaring their schemas is enough. Import torchvision, its models and timm after this module:

    from hpclbfl.core.vision import torchvision
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load with this torch; checked before torchvision is imported."""
    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    for library in (path for folder in folders for path in Path(folder).glob("_C.*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


# Kept in a variable, because the schemas are removed when the Library is garbage-collected.
_library = None if _operators_load() else _declare_operators()

import torchvision  # noqa: E402

__all__ = ["torchvision"]
