"""The squared norm of a gradient, right to 1e-6 at any size.

torch's own norms add up in one float32 accumulator after another and are 2 % wrong at 100 million elements, more than
some changes that Eq. 8 is to tell. Here the squares of short rows are added pairwise in the gradient's precision, and
the rows' sums in float64. Pieces are as small as a processor's cache, so that a piece which has just been reduced is
read without going to memory.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

ROW = 1 << 14
"""Elements whose squares are added up, pairwise, in the gradient's own precision."""
PIECE = 1 << 18
"""Elements that are taken at once on a CPU: 1 MiB of float32."""


class SquaredNorm:
    """Adds up squares, a piece after the other.

    Args:
        like: any tensor of the gradient's type, on its device.
    """

    def __init__(self, like: Tensor) -> None:
        self._squares = torch.empty(0 if like.is_cuda else PIECE, dtype=like.dtype, device=like.device)
        self._sums: list[Tensor] = []

    def add(self, piece: Tensor) -> None:
        """Take a contiguous tensor of any size."""
        flat = piece.detach().reshape(-1)
        for part in (flat,) if flat.is_cuda else flat.split(PIECE):
            squares = part * part if flat.is_cuda else torch.mul(part, part, out=self._squares[: part.numel()])
            whole = part.numel() // ROW * ROW
            if whole:
                self._sums.append(squares[:whole].view(-1, ROW).sum(1))
            if whole < part.numel():
                self._sums.append(squares[whole:].sum(0, keepdim=True))

    def take(self) -> Tensor:
        """The sum, float64 0-d, and begin anew."""
        sums, self._sums = self._sums, []
        return torch.cat(sums or [self._squares[:0]]).sum(dtype=torch.float64)


def squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of the squares of all elements of all tensors (at least one): float64, 0-d, on their device."""
    flats = [t.detach().reshape(-1) for t in tensors]
    if not flats:
        raise ValueError("the norm of no tensor at all is not known")
    norm = SquaredNorm(flats[0])
    # Many small ones, biases and the like, cost more in calls than in copying them together.
    small = [flat for flat in flats if flat.numel() < ROW]
    if small:
        norm.add(torch.cat(small))
    for flat in flats:
        if flat.numel() >= ROW:
            norm.add(flat)
    return norm.take()


def layer_squared_norms(tensors: Iterable[Tensor]) -> Tensor:
    """[L] squared norm of each tensor (at least one): float64, on their device."""
    return torch.stack([squared_norm([tensor]) for tensor in tensors])


def arithmetic(device: torch.device) -> str:
    """Names what the rounding of norms and matrix products depends on: ranks that agree in it get equal ones."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    sample = torch.randn(2 * PIECE + 77, generator=torch.Generator().manual_seed(0)).to(device)
    square = sample[: ROW * 16].view(512, 512)
    norms = (float(squared_norm([part])).hex() for part in (sample, square @ square))
    return f"torch {torch.__version__}, {kind}, {' '.join(norms)}"
