"""Memory for data that ranks exchange."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def flat_empty(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size] numbers that are still to be written.

    On a host they come from NumPy, which asks for huge pages where torch does not: MPI hands pages from one process to
    the other, and has five hundred times fewer of them to look up.
    """
    if device.type != "cpu" or dtype not in _DTYPES:
        return torch.empty(size, dtype=dtype, device=device)
    # Not np.zeros: pages that the kernel has handed out already stay small.
    return torch.from_numpy(np.empty(size, _DTYPES[dtype]))
