"""Hessian-vector products of a net's mean loss, on one rank and over all of them.

B. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 1994: H v is the gradient of g.v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpclbfl.comm.base import Communicator
from hpclbfl.sharpness.lanczos import Product

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [b, ...], targets [b, ...]) -> the sum of the losses."""


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """The variables of the Hessian: all trained parameters, in the order of the net."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class LossHessian:
    """v -> H v of the sum of losses over this rank's batches, divided by the number of terms of all ranks.

    Args:
        module: the net, put into evaluation mode: BatchNorm uses its running statistics, dropout is off.
        batches: inputs [b, ...] and targets [b, ...] each; none on a rank without samples.
        num_terms: of the loss, on all ranks together: the samples, unless it counts otherwise.
        loss: sums over the samples of a batch.
    """

    def __init__(self, module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], num_terms: int, loss: Loss):
        self._module, self._batches, self._num_terms, self._loss = module.eval(), batches, num_terms, loss
        self._parameters = parameters_of(module)
        self._is_recurrent = any(isinstance(inner, nn.RNNBase) for inner in module.modules())

    def __call__(self, vector: Tensor) -> Tensor:
        """[P] -> [P], by double backward."""
        out = torch.zeros_like(vector)
        sizes = [parameter.numel() for parameter in self._parameters]
        parts = [v.view_as(p) for v, p in zip(vector.split(sizes), self._parameters, strict=True)]
        for inputs, targets in self._batches:
            # The fused attention kernels have no second derivative, cuDNN's recurrent ones no first in evaluation mode.
            without_cudnn = torch.backends.cudnn.flags(enabled=False) if self._is_recurrent else nullcontext()
            with sdpa_kernel(SDPBackend.MATH), without_cudnn:
                loss = self._loss(self._module(inputs), targets) / self._num_terms
                grads = torch.autograd.grad(loss, self._parameters, create_graph=True, materialize_grads=True)
                curved = [(g, v) for g, v in zip(grads, parts, strict=True) if g.requires_grad]
                if not curved:
                    continue
                products = torch.autograd.grad(
                    [g for g, _ in curved], self._parameters, [v for _, v in curved], materialize_grads=True
                )
            out += torch.cat([product.reshape(-1) for product in products])
        return out


class DistributedProduct:
    """v -> the sum of every rank's H v. Rank 0 calls it, the others `serve`.

    Only rank 0 iterates and decides when to end, so that ranks which round differently cannot diverge; v is broadcast
    to all of them.

    Args:
        local: this rank's share of the product.
        like: [P], of the vectors' type and on their device.
    """

    def __init__(self, local: Product, comm: Communicator, like: Tensor) -> None:
        self._local, self._comm = local, comm
        # The vector, and whether there is one.
        self._message = torch.zeros(len(like) + 1, dtype=like.dtype, device=like.device)

    def __call__(self, vector: Tensor) -> Tensor:
        """On rank 0."""
        self._message[:-1], self._message[-1] = vector, 1.0
        self._comm.broadcast_([self._message])
        return self._summed()

    def serve(self) -> None:
        """On every other rank: take part in rank 0's products until it calls `close`."""
        while True:
            self._comm.broadcast_([self._message])
            if not float(self._message[-1]):
                return
            self._summed()

    def close(self) -> None:
        """On rank 0: end `serve` on the others."""
        self._message.zero_()
        self._comm.broadcast_([self._message])

    def _summed(self) -> Tensor:
        product = self._local(self._message[:-1])
        self._comm.reduce_(product, "hessian product").wait()
        return product
