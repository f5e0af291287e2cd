"""Gradient buckets: flat slices that are reduced as soon as the backward pass has filled them.

Hooks on the parameters add each gradient to its place in one flat tensor; when all of a bucket is there its reduction
starts, while the backward pass goes on with earlier layers. Clients on a rank run in turn: each one's gradient passes
through the hooks on its own, where its norm can be taken, and the last one's pass starts the reductions.

Under compression a pass writes to the place that the compressor names, each bucket is handed to it once the pass has
filled it, and what arrives is the sum of what the compressed gradients stand for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpclbfl.comm.base import Communicator, Handle
from hpclbfl.comm.buffers import flat_empty
from hpclbfl.comm.compression import Layer, Piece, Reduction
from hpclbfl.comm.wire import ring
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.gradients.norm import SquaredNorm

logger = Diagnostics(__name__)


class _Bucket:
    def __init__(self, flat: Tensor, piece: Piece) -> None:
        self.flat, self.piece, self.name = piece.of(flat), piece, f"gradients.{piece.number}"
        self.num_parameters = self.num_waiting = len(piece.layers)
        self.gathered: dict[nn.Parameter, Tensor] = {}
        """On a GPU: the pass's gradients that are not in `flat` yet."""
        self.handle: Handle | None = None
        self.is_started = False


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
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        comm: Communicator,
        bucket_mb: float,
        measure: bool = False,
        measure_clients: bool = False,
    ) -> None:
        self._comm = comm
        self._parameters = [p for p in reversed(parameters) if p.requires_grad]
        like = self._parameters[0]
        self._gathers = like.is_cuda
        self.flat = flat_empty(sum(p.numel() for p in self._parameters), like.dtype, like.device)
        """The gradient, flat [P], in reverse order of the parameters; after `finish` the sum over ranks."""
        self.sent_bytes = 0.0
        """By this rank in the last step."""
        self.norms: Tensor | None = None
        """What the compressor's `finish` returned."""
        self.sq_norm: Tensor | None = None
        """Of that sum, 0-d float64, after `finish`; None unless measured."""
        self.noise = torch.zeros((), dtype=torch.float64, device=like.device)
        """A of the noise scale, 0-d, after `finish`; 0 unless clients are measured."""
        self._norm = SquaredNorm(self.flat) if measure else None
        self._client_norm = self._own_norm = SquaredNorm(self.flat) if measure_clients else None
        self._views: dict[nn.Parameter, Tensor] = {}
        """Of `flat`."""
        self._targets: dict[int, dict[nn.Parameter, Tensor]] = {}
        """Under compression: of what a client's pass writes to, by the address of that."""
        self._target = self._views
        self._adds = False
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._buckets: list[_Bucket] = []
        self._lay_out(int(bucket_mb * 1e6) // like.element_size())
        self.reduction: Reduction | None = None
        """A compressor's, of `flat` and `pieces`; None: gradients travel as they are."""
        self._client = 0
        self._filled: set[nn.Parameter] = set()
        self._in_pass = self._is_last = False
        self._kept: dict[nn.Parameter, Tensor] | None = None
        self._noise_weight = 0.0
        self._hooks = [p.register_post_accumulate_grad_hook(self._on_gradient) for p in self._parameters]

    def _lay_out(self, bucket_elements: int) -> None:
        members: list[Layer] = []
        begin = end = 0
        for index, parameter in enumerate(self._parameters):
            layer = Layer(index, tuple(parameter.shape), end, parameter.numel())
            self._views[parameter] = layer.of(self.flat).view_as(parameter)
            members.append(layer)
            end += layer.size
            if end - begin >= bucket_elements or parameter is self._parameters[-1]:
                bucket = _Bucket(self.flat, Piece(len(self._buckets), tuple(members)))
                self._buckets.append(bucket)
                self._bucket_of.update({self._parameters[member.number]: bucket for member in members})
                members, begin = [], end
        sizes = [bucket.flat.numel() * bucket.flat.element_size() / 1e6 for bucket in self._buckets]
        logger.debug(f"gradients are reduced in buckets of {', '.join(f'{mb:.2f}' for mb in sizes)} MB")

    @property
    def pieces(self) -> list[Piece]:
        """The buckets' places in `flat`."""
        return [bucket.piece for bucket in self._buckets]

    def begin_step(self, measure_clients: bool = True) -> None:
        """Forget the last step; `measure_clients`: in this one, too, where clients are measured at all."""
        self.noise.zero_()
        self._own_norm = self._client_norm if measure_clients else None
        self._filled.clear()
        for bucket in self._buckets:
            bucket.num_waiting, bucket.handle, bucket.is_started = bucket.num_parameters, None, False

    def begin_pass(
        self,
        is_last: bool,
        noise_weight: float = 0.0,
        keep: dict[nn.Parameter, Tensor] | None = None,
        client: int = 0,
    ) -> None:
        """Call before a client's backward pass.

        Args:
            is_last: the rank's last pass in this step; its hooks start the reductions.
            noise_weight: what the client's own squared norm counts in the noise scale's A.
            keep: filled with the client's own gradients.
            client: whose pass it is.
        """
        self._in_pass, self._is_last, self._noise_weight, self._kept = True, is_last, noise_weight, keep
        if self.reduction is None:
            return
        self._client = client
        flat, self._adds = self.reduction.target(client)
        self._target = self._targets.setdefault(flat.data_ptr(), {}) or self._views_of(flat)
        self._targets[flat.data_ptr()] = self._target
        self._filled.clear()
        for bucket in self._buckets:
            bucket.num_waiting = bucket.num_parameters

    def _views_of(self, flat: Tensor) -> dict[nn.Parameter, Tensor]:
        layers = (layer for bucket in self._buckets for layer in bucket.piece.layers)
        return {p: layer.of(flat).view_as(p) for p, layer in zip(self._parameters, layers, strict=True)}

    def _on_gradient(self, parameter: Tensor) -> None:
        if not self._in_pass or not isinstance(parameter, nn.Parameter) or parameter.grad is None:
            return
        gradient, parameter.grad = parameter.grad, None
        bucket = self._bucket_of[parameter]
        if self._gathers:
            bucket.gathered[parameter] = gradient
            if len(bucket.gathered) == bucket.num_parameters:
                self._take_gathered(bucket)
        elif self._adds or parameter in self._filled:
            self._target[parameter].add_(gradient)
            self._filled.add(parameter)
        else:
            self._target[parameter].copy_(gradient)
            self._filled.add(parameter)
        if self._own_norm is not None:
            self._own_norm.add(gradient)
        if self._kept is not None:
            self._kept[parameter] = gradient
        if self._is_last or self.reduction is not None:
            bucket.num_waiting -= 1
            if bucket.num_waiting == 0:
                self._complete(bucket)

    @torch.no_grad()
    def _take_gathered(self, bucket: _Bucket) -> None:
        first = {p: g for p, g in bucket.gathered.items() if not self._adds and p not in self._filled}
        further = {p: g for p, g in bucket.gathered.items() if p not in first}
        if first:
            torch._foreach_copy_([self._target[p] for p in first], list(first.values()))
        if further:
            torch._foreach_add_([self._target[p] for p in further], list(further.values()))
        self._filled.update(bucket.gathered)
        bucket.gathered.clear()

    @torch.no_grad()
    def _complete(self, bucket: _Bucket) -> None:
        """The pass has filled a bucket: hand it to the compressor, and after the rank's last pass reduce it."""
        if self.reduction is not None:
            self.reduction.add(self._client, bucket.piece)
        if self._is_last:
            self._start(bucket)

    def end_pass(self) -> Tensor | None:
        """Squared norm of the pass's own gradient, 0-d float64; None unless clients are measured."""
        self._in_pass = False
        for bucket in self._buckets:
            # Of parameters that the pass reached in a bucket that it did not fill.
            if bucket.gathered:
                self._take_gathered(bucket)
            if self.reduction is not None and bucket.num_waiting:
                self._fill_up(bucket)
                self._complete(bucket)
        if self._own_norm is None:
            return None
        own = self._own_norm.take()
        self.noise.add_(own * self._noise_weight)
        return own

    @torch.no_grad()
    def _fill_up(self, bucket: _Bucket) -> None:
        """Zeros for parameters that no pass reached, where a pass's gradients replace what was there."""
        for layer in bucket.piece.layers:
            parameter = self._parameters[layer.number]
            if parameter not in self._filled and not self._adds:
                self._target[parameter].zero_()

    def _start(self, bucket: _Bucket) -> None:
        bucket.is_started = True
        if self.reduction is not None:
            self.reduction.start(bucket.piece)
            return
        on_chunk = None if self._norm is None else self._norm.add
        bucket.handle = self._comm.reduce_(bucket.flat, bucket.name, on_chunk)

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for all buckets; every `grad` is then a view of the sum.

        A parameter that no pass reached, and a rank without samples, take part with what they have: every rank makes
        the same calls.
        """
        for bucket in self._buckets:
            if self.reduction is None:
                self._fill_up(bucket)
            if not bucket.is_started:
                self._start(bucket)
        for parameter in self._parameters:
            parameter.grad = self._views[parameter]
        if self.reduction is not None:
            self.norms = self.reduction.finish()
            self.sent_bytes = self.reduction.sent_bytes
            if self._norm is not None:
                self._norm.add(self.flat)
        else:
            self.sent_bytes = ring(self.flat.nbytes, self._comm.size)
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
