"""Modules that are imported on first use: torch, in the files of components, whose configs do not need it.

Under a type checker the module is imported as usual:

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")
"""

from __future__ import annotations

import importlib
from typing import Any


class lazy:  # noqa: N801 - it stands where an import would
    """A stand-in for the module of this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(importlib.import_module(self._name), attribute)
        # Cached: the next access does not come here.
        setattr(self, attribute, found)
        return found
