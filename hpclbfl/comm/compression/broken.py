"""Gradients that are not finite: every rank must see them, and no residual may keep them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spread(values: Tensor, sq_norm: Tensor) -> None:
    """Make all values NaN where their squared norm is not finite, whatever a compressor then takes of them."""
    _fill_if_broken(values, sq_norm, math.nan)


def drop(residual: Tensor, sq_norm: Tensor) -> None:
    """Begin anew with a residual whose squared norm is not finite: it would be added to all gradients to come."""
    _fill_if_broken(residual, sq_norm, 0.0)


def _fill_if_broken(values: Tensor, sq_norm: Tensor, value: float) -> None:
    if values.is_cuda:
        # The host does not wait.
        values.copy_(torch.where(sq_norm.isfinite(), values, value))
    elif not math.isfinite(sq_norm.item()):
        values.fill_(value)
