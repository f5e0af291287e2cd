"""What a job's `precision` means: the type of its parameters, and the context of its forward passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from hpclbfl.core.errors import ConfigError


def dtype_of(precision: str) -> torch.dtype:
    """Of parameters and floating-point inputs; bf16 and fp16 are autocast on top of float32."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast_of(precision: str, on: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A maker of the context in which the forward pass runs.

    Raises:
        ConfigError: a precision that the device does not have.
    """
    if precision in ("float32", "float64"):
        return nullcontext
    if precision == "fp16" and on.type != "cuda":
        raise ConfigError("precision: fp16 needs a GPU; this device takes float32, float64 and bf16")
    if precision == "bf16" and on.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision: this GPU has no bf16; it takes float32, float64 and fp16")
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(on.type, dtype=half)
