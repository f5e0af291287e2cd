"""torch without its compiler, until something asks for that.

The first optimizer of a process imports `torch._dynamo`, and with it a symbolic algebra system: a third of the time
from a rank's start to its first step. All that an optimizer calls there are two functions that keep the compiler away
from it, and have nothing to do where nothing is compiled. torchvision imports it, too, for one function. Anything else
that is asked of the module loads the real one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"
_UTILS = f"{NAME}.utils"


class _Deferred(ModuleType):
    """Takes the place of `torch._dynamo` until it is needed."""

    def graph_break(self, *args: Any, **options: Any) -> None:
        """Nothing is being compiled, or the real module would be here."""

    def disable(self, fn: Callable[..., Any] | None = None, *args: Any, **options: Any) -> Any:
        """A function of torch's own is left as it is; a user's may be compiled later."""
        if fn is not None and getattr(fn, "__module__", "").startswith("torch."):
            return fn
        return _load().disable(fn, *args, **options)

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks all modules for their files. An import of a module below this one asks for the path.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_load(), name)


class _DeferredUtils(ModuleType):
    """Takes the place of `torch._dynamo.utils`, of which torchvision imports one function, which it rarely calls."""

    @staticmethod
    def is_compile_supported(device_type: str) -> Any:
        """See the real one."""
        return _load().utils.is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load().utils, name)


def _load() -> Any:
    for name in (NAME, _UTILS):
        if isinstance(sys.modules.get(name), _Deferred | _DeferredUtils):
            del sys.modules[name]
    return importlib.import_module(NAME)


def defer_compiler() -> None:
    """Call it before the process's first optimizer is made; nothing happens where the compiler is loaded already."""
    if NAME not in sys.modules:
        sys.modules[NAME] = _Deferred(NAME)
        sys.modules[_UTILS] = _DeferredUtils(_UTILS)
