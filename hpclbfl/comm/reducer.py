"""Gradient buckets: flat slices that are reduced as soon as the backward pass has filled them.

Hooks on the parameters add each gradient to its place in one flat tensor; when all of a bucket is there its reduction
starts, while the backward pass goes on with earlier layers. Clients on a rank run in turn: each one's gradient passes
through the hooks on its own, where its norm can be taken, and the last one's pass starts the reductions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpclbfl.comm.base import Communicator, Handle
from hpclbfl.comm.buffers import flat_empty
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.gradients.norm import SquaredNorm

logger = Diagnostics(__name__)


class _Bucket:
    def __init__(self, flat: Tensor, wire: Tensor, name: str) -> None:
        self.flat, self.wire, self.name = flat, wire, name
        """`wire` is what travels: `flat` itself, or its compressed form."""
        self.num_parameters = self.num_waiting = 0
        self.gathered: dict[nn.Parameter, Tensor] = {}
        """On a GPU: the pass's gradients that are not in `flat` yet."""
        self.handle: Handle | None = None


class GradientReducer:
    """Sums the gradients of `parameters` over all clients and ranks.

    On a CPU each gradient is copied while it is in the cache; on a GPU a bucket's all at once, as launches take time.

    A step is `begin_step`, then for each client of the rank `begin_pass`, its backward pass and `end_pass`, then
    `finish`.

    Args:
        parameters: in the order of the net; buckets are filled from the last one, as the backward pass goes.
        comm: the engine.
        bucket_mb: size of a bucket, MB.
        measure: take the squared norm of the sum while it is reduced.
        measure_clients: take the squared norm of each client's own gradient, too.
        wire_dtype: type in which gradients travel; None: their own.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        comm: Communicator,
        bucket_mb: float,
        measure: bool = False,
        measure_clients: bool = False,
        wire_dtype: torch.dtype | None = None,
    ) -> None:
        self._comm = comm
        self._parameters = [p for p in reversed(parameters) if p.requires_grad]
        like = self._parameters[0]
        self._gathers = like.is_cuda
        self.flat = flat_empty(sum(p.numel() for p in self._parameters), like.dtype, like.device)
        """The gradient, flat [P], in reverse order of the parameters; after `finish` the sum over ranks."""
        self._wire = torch.empty_like(self.flat, dtype=wire_dtype) if wire_dtype is not None else self.flat
        self.sq_norm: Tensor | None = None
        """Of that sum, 0-d float64, after `finish`; None unless measured."""
        self.noise = torch.zeros((), dtype=torch.float64, device=like.device)
        """A of the noise scale, 0-d, after `finish`; 0 unless clients are measured."""
        self._norm = SquaredNorm(self.flat) if measure else None
        self._own_norm = SquaredNorm(self.flat) if measure_clients else None
        self._views: dict[nn.Parameter, Tensor] = {}
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._buckets: list[_Bucket] = []
        self._lay_out(int(bucket_mb * 1e6) // like.element_size())
        self._filled: set[nn.Parameter] = set()
        self._in_pass = self._is_last = False
        self._kept: dict[nn.Parameter, Tensor] | None = None
        self._noise_weight = 0.0
        self._hooks = [p.register_post_accumulate_grad_hook(self._on_gradient) for p in self._parameters]

    def _lay_out(self, bucket_elements: int) -> None:
        members: list[nn.Parameter] = []
        begin = end = 0
        for parameter in self._parameters:
            self._views[parameter] = self.flat[end : end + parameter.numel()].view_as(parameter)
            members.append(parameter)
            end += parameter.numel()
            if end - begin >= bucket_elements or parameter is self._parameters[-1]:
                name = f"gradients.{len(self._buckets)}"
                bucket = _Bucket(self.flat[begin:end], self._wire[begin:end], name)
                bucket.num_parameters = len(members)
                self._buckets.append(bucket)
                self._bucket_of.update(dict.fromkeys(members, bucket))
                members, begin = [], end
        sizes = [bucket.flat.numel() * bucket.flat.element_size() / 1e6 for bucket in self._buckets]
        logger.debug(f"gradients are reduced in buckets of {', '.join(f'{mb:.2f}' for mb in sizes)} MB")

    def begin_step(self) -> None:
        """Forget the last step."""
        self.noise.zero_()
        self._filled.clear()
        for bucket in self._buckets:
            bucket.num_waiting, bucket.handle = bucket.num_parameters, None

    def begin_pass(
        self, is_last: bool, noise_weight: float = 0.0, keep: dict[nn.Parameter, Tensor] | None = None
    ) -> None:
        """Call before a client's backward pass.

        Args:
            is_last: the rank's last pass in this step; its hooks start the reductions.
            noise_weight: what the client's own squared norm counts in the noise scale's A.
            keep: filled with the client's own gradients.
        """
        self._in_pass, self._is_last, self._noise_weight, self._kept = True, is_last, noise_weight, keep

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._in_pass or not isinstance(parameter, nn.Parameter) or parameter.grad is None:
            return
        gradient, parameter.grad = parameter.grad, None
        bucket = self._bucket_of[parameter]
        if self._gathers:
            bucket.gathered[parameter] = gradient
            if len(bucket.gathered) == bucket.num_parameters:
                self._take_gathered(bucket)
        elif parameter in self._filled:
            self._views[parameter].add_(gradient)
        else:
            self._views[parameter].copy_(gradient)
            self._filled.add(parameter)
        if self._own_norm is not None:
            self._own_norm.add(gradient)
        if self._kept is not None:
            self._kept[parameter] = gradient
        if self._is_last:
            bucket.num_waiting -= 1
            if bucket.num_waiting == 0:
                self._start(bucket)

    @torch.no_grad()
    def _take_gathered(self, bucket: _Bucket) -> None:
        first = {p: g for p, g in bucket.gathered.items() if p not in self._filled}
        further = {p: g for p, g in bucket.gathered.items() if p in self._filled}
        if first:
            torch._foreach_copy_([self._views[p] for p in first], list(first.values()))
            self._filled.update(first)
        if further:
            torch._foreach_add_([self._views[p] for p in further], list(further.values()))
        bucket.gathered.clear()

    def end_pass(self) -> Tensor | None:
        """Squared norm of the pass's own gradient, 0-d float64; None unless clients are measured."""
        self._in_pass = False
        for bucket in self._buckets:
            # Of parameters that the pass reached in a bucket that it did not fill.
            if bucket.gathered:
                self._take_gathered(bucket)
        if self._own_norm is None:
            return None
        own = self._own_norm.take()
        self.noise.add_(own * self._noise_weight)
        return own

    def _start(self, bucket: _Bucket) -> None:
        on_chunk = None
        if self._wire is not self.flat:
            bucket.wire.copy_(bucket.flat)
            on_chunk = self._take_from_wire
        elif self._norm is not None:
            on_chunk = self._norm.add
        bucket.handle = self._comm.reduce_(bucket.wire, bucket.name, on_chunk)

    def _take_from_wire(self, piece: Tensor) -> None:
        begin = piece.storage_offset()
        wide = self.flat[begin : begin + piece.numel()]
        wide.copy_(piece)
        if self._norm is not None:
            self._norm.add(wide)

    def finish(self) -> None:
        """Wait for all buckets; every `grad` is then a view of the sum.

        A parameter that no pass reached, and a rank without samples, take part with what they have: every rank makes
        the same calls.
        """
        for parameter in self._parameters:
            if parameter not in self._filled:
                self._views[parameter].zero_()
            parameter.grad = self._views[parameter]
        for bucket in self._buckets:
            if bucket.handle is None:
                self._start(bucket)
        for bucket in self._buckets:
            if bucket.handle is not None:
                bucket.handle.wait()
        if self._own_norm is not None:
            self._comm.reduce_(self.noise.view(1), "noise").wait()
        self.sq_norm = self._norm.take() if self._norm is not None else None

    def by_layer(self) -> list[Tensor]:
        """The reduced gradient of every parameter that has one, in the order of the net."""
        return [self._views[p] for p in reversed(self._parameters)]

    def zero_grad(self) -> None:
        """Drop the gradients, so that the next pass's are taken over without an addition."""
        for parameter in self._parameters:
            parameter.grad = None

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
