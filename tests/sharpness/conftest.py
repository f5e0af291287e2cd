from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpclbfl.sharpness.lanczos import Product, random_vector


def start_of(size: int, dtype: torch.dtype = torch.float64) -> Callable[[int], Tensor]:
    """Start vectors by their index."""
    return lambda index: random_vector(size, dtype, torch.device("cpu"), 3, index)


def matrix_of(eigenvalues: list[float]) -> Tensor:
    """Symmetric, with these eigenvalues and eigenvectors that are no axes."""
    torch.manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def counting(matrix: Tensor) -> tuple[Product, list[int]]:
    """Products with a matrix, and a list that grows by one with each."""
    taken: list[int] = []

    def product(vector: Tensor) -> Tensor:
        taken.append(len(taken) + 1)
        return matrix @ vector

    return product, taken
