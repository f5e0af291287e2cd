"""A module that is imported when it is first used: torch, in the files of components, whose configs need it not.

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
    """Stands for a module.

    Args:
        name: of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(importlib.import_module(self._name), attribute)
        # Next time it is found without a search.
        setattr(self, attribute, found)
        return found
