"""Gradient buckets: flat slices that are reduced as soon as the backward pass has filled them.

Hooks on the parameters copy each gradient into its place in one flat tensor; when all of a bucket is there its
reduction starts, while the backward pass goes on with earlier layers. Clients on a rank run in turn and torch adds
up their gradients; the hooks act in the last client's pass alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpclbfl.comm.base import VOTE_BITS, Communicator, Handle


class _Bucket:
    def __init__(self, flat: Tensor, name: str, num_waiting: int) -> None:
        self.flat, self.name, self.num_parameters = flat, name, num_waiting
        self.num_waiting = num_waiting
        self.handle: Handle | None = None


class GradientReducer:
    """Sums the gradients of `parameters` over all ranks.

    Args:
        parameters: in the order of the net; buckets are filled from the last one, as the backward pass goes.
        comm: the engine.
        bucket_mb: size of a bucket, MB.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], comm: Communicator, bucket_mb: float) -> None:
        self._comm = comm
        self._parameters = [p for p in reversed(parameters) if p.requires_grad]
        total = sum(p.numel() for p in self._parameters)
        like = self._parameters[0]
        # The votes stand behind the gradients and travel with the last bucket.
        self._storage = torch.zeros(total + VOTE_BITS, dtype=like.dtype, device=like.device)
        self.flat = self._storage[:total]
        """The gradient, flat [P], in reverse order of the parameters; after `finish` the sum over ranks."""
        self._votes = self._storage[total:]
        self._views: dict[nn.Parameter, Tensor] = {}
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._buckets: list[_Bucket] = []
        self._lay_out(int(bucket_mb * 1e6) // like.element_size())
        self._ready: set[nn.Parameter] = set()
        self._armed = False
        self._late_votes = _LateVotes(self._votes) if like.device.type == "cuda" else None
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def _lay_out(self, bucket_elements: int) -> None:
        members: list[nn.Parameter] = []
        begin = end = 0
        for parameter in self._parameters:
            self._views[parameter] = self._storage[end : end + parameter.numel()].view_as(parameter)
            members.append(parameter)
            end += parameter.numel()
            is_last = parameter is self._parameters[-1]
            if end - begin >= bucket_elements or is_last:
                stop = self._storage.numel() if is_last else end
                bucket = _Bucket(self._storage[begin:stop], f"gradients.{len(self._buckets)}", len(members))
                self._buckets.append(bucket)
                self._bucket_of.update(dict.fromkeys(members, bucket))
                members, begin = [], end

    def arm(self, vote_bits: int = 0) -> None:
        """Call before the last backward pass of this rank in a step: its hooks start the reductions."""
        # Always written: the slots hold the last step's sums.
        if vote_bits:
            ballots = [float(vote_bits >> k & 1) for k in range(VOTE_BITS)]
            self._votes.copy_(torch.tensor(ballots), non_blocking=True)
        else:
            self._votes.zero_()
        self._ready.clear()
        for bucket in self._buckets:
            bucket.num_waiting, bucket.handle = bucket.num_parameters, None
        self._armed = True

    def _on_gradient(self, parameter: Tensor) -> None:
        if self._armed and isinstance(parameter, nn.Parameter):
            self._take(parameter)

    def _take(self, parameter: nn.Parameter) -> None:
        view = self._views[parameter]
        if parameter.grad is None:
            view.zero_()
        else:
            view.copy_(parameter.grad)
        parameter.grad = view
        self._ready.add(parameter)
        bucket = self._bucket_of[parameter]
        bucket.num_waiting -= 1
        if bucket.num_waiting == 0:
            bucket.handle = self._comm.reduce_(bucket.flat, bucket.name)

    def finish(self) -> int:
        """Wait for all buckets; every `grad` is then a view of the sum. Returns the votes, or-ed over ranks.

        A parameter that the pass did not reach, and a rank without samples, take part with what they have: every rank
        makes the same calls. On a GPU the votes are those of the step before, as reading this step's would make the
        host wait for the device.
        """
        for parameter in self._parameters:
            if parameter not in self._ready:
                self._take(parameter)
        self._armed = False
        for bucket in self._buckets:
            if bucket.handle is not None:
                bucket.handle.wait()
        if self._late_votes is not None:
            return self._late_votes.exchange()
        return _bits(self._votes)

    def zero_grad(self) -> None:
        """Drop the gradients, so that the next pass's are taken over without an addition."""
        for parameter in self._parameters:
            parameter.grad = None


class _LateVotes:
    """Votes read one step late, through pinned memory, without waiting for the device."""

    def __init__(self, votes: Tensor) -> None:
        self._votes = votes
        self._host = torch.zeros(VOTE_BITS, dtype=votes.dtype, pin_memory=True)
        self._copied: torch.cuda.Event | None = None

    def exchange(self) -> int:
        bits = 0
        if self._copied is not None:
            self._copied.synchronize()
            bits = _bits(self._host)
        self._host.copy_(self._votes, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return bits


def _bits(votes: Tensor) -> int:
    return sum(1 << k for k, count in enumerate(votes.tolist()) if count > 0)
