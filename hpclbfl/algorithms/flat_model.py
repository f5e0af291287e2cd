"""Nets whose parameters and BatchNorm buffers are views of flat tensors.

Buffers of floating-point numbers are averaged. Others, such as BatchNorm's `num_batches_tracked`, cannot be: of these
the average has the largest that a client has, which for a counter is the number of steps so far. A BatchNorm with
`momentum=None` weighs its next batch by that counter, so clients take it over with the average.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from hpclbfl.comm.buffers import flat_empty


class FlatModel:
    """A net on a device, its parameters and floating-point buffers laid flat.

    Args:
        template: the net to copy; stays as it is.
        parameters_of: share this replica's parameters instead of copying; the buffers are always this one's own.

    Attributes:
        module: the net.
        state: [P + F], parameters then buffers; what is averaged when replicas train alone. Only where the parameters
            are its own.
        buffers: [F], floating-point buffers (BatchNorm's running statistics).
    """

    def __init__(self, template: nn.Module, parameters_of: FlatModel | None = None) -> None:
        shared = {} if parameters_of is None else dict(parameters_of.module.named_parameters())
        # What the copy of the net has in place of the template's tensors: a net of 500 MB is copied once.
        memo: dict[int, Any] = {id(p): shared[name] for name, p in template.named_parameters() if shared}
        like = next(template.parameters())
        buffers = [b for b in template.buffers() if b.is_floating_point()]
        own = [] if shared else list(template.parameters())
        num_parameters = sum(p.numel() for p in own)
        size = num_parameters + sum(b.numel() for b in buffers)
        self.state = flat_empty(size, like.dtype, like.device)
        self.buffers = self.state[num_parameters:]
        begin = 0
        with torch.no_grad():
            for tensor in (*own, *buffers):
                view = self.state[begin : begin + tensor.numel()].view_as(tensor)
                view.copy_(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = type(tensor)(view, tensor.requires_grad) if is_parameter else view
                begin += tensor.numel()
        self.module: nn.Module = copy.deepcopy(template, memo)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order of the net."""
        return list(self.module.parameters())

    @property
    def counts(self) -> Tensor:
        """[K] a copy of the buffers that are not floating-point numbers, float64 (exact up to 2^53)."""
        flat = [b.reshape(-1).double() for b in self._count_buffers()]
        return torch.cat(flat) if flat else torch.empty(0, dtype=torch.float64, device=self.state.device)

    def set_counts(self, counts: Tensor) -> None:
        """Overwrite these buffers."""
        begin = 0
        for buffer in self._count_buffers():
            buffer.copy_(counts[begin : begin + buffer.numel()].view_as(buffer))
            begin += buffer.numel()

    def _count_buffers(self) -> list[Tensor]:
        return [b for b in self.module.buffers() if not b.is_floating_point()]

    def digest(self) -> str:
        """SHA-256 of the parameters' bytes, for comparing ranks."""
        sha = hashlib.sha256()
        for parameter in self.module.parameters():
            sha.update(parameter.detach().cpu().contiguous().numpy().data)
        return sha.hexdigest()


def weighted_sum(tensors: list[Tensor], weights: list[float], out: Tensor) -> Tensor:
    """sum_k weights[k] * tensors[k], into `out`; zero for an empty list."""
    out.zero_()
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight:
            out.add_(tensor, alpha=weight)
    return out
