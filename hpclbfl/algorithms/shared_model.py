"""One model of all clients, whose gradients are summed over clients and ranks in every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpclbfl.algorithms.averaging import average, averaging_weights, begin_counts
from hpclbfl.algorithms.client import Client
from hpclbfl.algorithms.flags import NONFINITE
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.lessons import asking, teach
from hpclbfl.algorithms.rank import Rank
from hpclbfl.algorithms.stepping import Stepper
from hpclbfl.algorithms.terms import StepTerms
from hpclbfl.comm.compression.build import Compression
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.core.errors import DataError
from hpclbfl.core.fitting import check_like
from hpclbfl.core.state import Stateful
from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import SHARED, Chain
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.learning import OwnGradient
from hpclbfl.gradients.noise_scale import NoiseScale
from hpclbfl.gradients.norm import layer_squared_norms
from hpclbfl.gradients.weight_noise import client_factors
from hpclbfl.optim.extrapolation import Extrapolation

if TYPE_CHECKING:
    from hpclbfl.algorithms.record import StepRecord


class SharedModel:
    """See the module; a `hpclbfl.core.state.Stateful`.

    A step is `begin_step`, for each client of the rank `backward`, then `reduce` and `update`.

    Args:
        mean: the model, which is also evaluated.
        clients: of this rank; their nets share its parameters, and have buffers of their own.
        stepper: of its optimizer.
        reducer: of its gradient.
        chain: of its gradient; None: nothing is measured.
        noise_scale: None where it is not asked for.
        extrapolation: of the points at which clients take their gradients; None: at the model itself.
        compression: of its gradients; None: they travel as they are.
    """

    def __init__(
        self,
        mean: FlatModel,
        clients: list[Client],
        stepper: Stepper,
        reducer: GradientReducer,
        chain: Chain | None,
        noise_scale: NoiseScale | None,
        extrapolation: Extrapolation | None,
        compression: Compression | None = None,
    ) -> None:
        self.mean, self.clients, self.stepper, self.reducer = mean, clients, stepper, reducer
        self.chain, self.noise_scale, self.extrapolation = chain, noise_scale, extrapolation
        self.compression = compression
        self._layout = Layout.of(mean.module.named_parameters())
        if compression is not None:
            reducer.reduction = compression.reduction
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)
        self._terms: StepTerms
        self._divisors: NDArray[np.float64] = np.empty(0)
        self._loss_scale: Tensor | float = 1.0
        self._measures_noise = True
        self._asking: list[int] = []
        """Transforms that learn from this step."""
        self._own: dict[int, OwnGradient] = {}

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The only one."""
        return [self.stepper.optimizer]

    @property
    def message_bytes(self) -> int:
        """Of a reduction, without compression."""
        return self.reducer.flat.nbytes

    def begin_step(self, rank: Rank, record: StepRecord) -> None:
        """Settle every client's share of the step."""
        self._counts = counts = rank.counts_now
        self._terms = terms = StepTerms(rank, record, counts)
        noise = rank.job.gradients.weight_noise
        # sum over samples / B, then a sum over clients: the mean over all B samples, whatever each client's share.
        self._divisors = np.full(len(counts), float(terms.total))
        if noise is not None:
            self._divisors /= client_factors(counts, noise, rank.job.seed, rank.counters.step)
        scaler = self.stepper.loss_scaler
        if scaler.is_enabled():
            # By how much gradients are too large until they are unscaled; 0-d, on the device.
            self._loss_scale = scaler.scale(torch.ones((), dtype=torch.float64, device=rank.device))
        if self.compression is not None:
            self.compression.begin(rank.counters.step)
        self._measures_noise = rank.counters.step % rank.job.gradients.noise_every == 0
        self.reducer.begin_step(self._measures_noise)
        self._own = {}
        self._asking = [] if self.chain is None else asking([self.chain], rank.counters.step)

    def backward(self, rank: Rank, client: Client, record: StepRecord) -> None:
        """Add a client's gradient to the sum; the rank's last client starts the reductions."""
        divisor = float(self._divisors[client.id])
        share = self._terms.of(client.id) / divisor
        kept: dict[nn.Parameter, Tensor] | None = {} if self._asking else None
        with self.extrapolation.ahead(client.id, share) if self.extrapolation else nullcontext(kept) as keep:
            self.reducer.begin_pass(client is self.clients[-1], 1.0 / share, keep, client.id)
            client.forward_backward(rank, record, divisor, self._terms.batch(client.id))
            own = self.reducer.end_pass()
        if own is not None and self._counts[client.id]:
            record.clients[-1].columns["local_grad_sq_norm"] = own / (share * self._loss_scale) ** 2
        if kept:
            # What passed through the hooks is this client's part of the sum, before the loss scaling is undone.
            factor = 1.0 / (share * self._loss_scale)
            if isinstance(factor, Tensor):
                factor = factor.to(self.reducer.flat.dtype)
            torch._foreach_mul_(list(kept.values()), factor)
            self._own[client.id] = [kept.get(p) for p in self.mean.parameters if p.requires_grad]

    def reduce(self, rank: Rank, record: StepRecord) -> None:
        """Wait for the sum over all ranks."""
        begin = rank.clock.mark()
        self.reducer.finish()
        if rank.emulation is not None:
            rank.emulation.transfer(self.reducer.sent_bytes)
        record.sync.append((begin, rank.clock.mark()))

    def update(self, rank: Rank, record: StepRecord) -> int:
        """Measure and transform the sum, and step; NONFINITE, which all ranks see in it, where it did not."""
        begin, host_begin = rank.clock.mark(), time.perf_counter()
        self.stepper.loss_scaler.unscale_(self.stepper.optimizer)
        gradient = self._measure(rank, record)
        flags = 0
        if rank.is_broken_by(record.columns.get("grad_sq_norm")):
            flags = NONFINITE
            if rank.comm.rank == 0:
                record.events.append(("nonfinite", rank.nonfinite_text("the reduced gradient")))
        else:
            self.stepper.step(record.lr, gradient)
        self.reducer.zero_grad()
        if rank.emulation is not None:
            rank.emulation.stretch(rank.counters.step, host_begin)
        record.update.append((begin, rank.clock.mark()))
        return flags

    def _measure(self, rank: Rank, record: StepRecord) -> Gradient | None:
        every, chain, reducer = rank.job.gradients.layers_every, self.chain, self.reducer
        logs_layers = every is not None and rank.counters.step % every == 0
        layers = None
        if logs_layers or (chain is not None and chain.needs_layers):
            layers = layer_squared_norms(reducer.by_layer())
        if logs_layers and rank.comm.rank == 0:
            record.layer_sq_norms = layers
        # Transforms may change the sum where it lies: nothing else reads it before the next step.
        measured = Gradient(reducer.flat, self._layout, reducer.sq_norm, layers, is_owned=True)
        if chain is not None:
            measured = chain.agreed(measured)
        step, after = rank.counters.step, record.epoch_after
        context = Context(
            *(rank.job.seed, step, SHARED, record.epoch, record.lr),
            epoch_after=after,
            agree=rank.agree,
            batch_size=int(self._counts.sum()),
        )
        if self.compression is not None:
            record.columns |= self.compression.observe(measured, context, reducer.norms)
        if chain is None:
            return None
        is_known = self.noise_scale is not None and (self._counts > 0).sum() > 1
        noise = self._noise(measured.sq_norm) if is_known and self._measures_noise else {}
        if is_known and self.noise_scale is not None:
            context = replace(context, noise=self.noise_scale.averages)
        if self._asking:
            own, self._own = self._own, {}
            noise |= teach(self._asking, [chain], rank.comm, own, self._counts, measured, context)
        gradient, columns = chain.update(measured, context)
        record.columns |= columns | noise
        return gradient

    def _noise(self, sq_norm: Tensor) -> dict[str, Tensor]:
        """The log's columns of the noise scale, of at least two clients."""
        num_clients = int((self._counts > 0).sum())
        if self.noise_scale is None:
            return {}
        # The clients' own norms were taken before the loss scaling was undone.
        local = self.reducer.noise / self._loss_scale**2
        return self.noise_scale.observe(local, sq_norm, num_clients, int(self._counts.sum()))

    def average(self, rank: Rank) -> NDArray[np.float64]:
        """Fill the buffers of `mean` with the clients' average, weighted by all samples so far: [C] the weights."""
        finish_counts = begin_counts(self.clients, self.mean, rank.comm)
        weights = averaging_weights(rank.counters.positions, "samples")
        if self.mean.buffers.numel():
            buffers = [client.replica.buffers for client in self.clients]
            average(buffers, [weights[c.id] for c in self.clients], rank.comm, "buffers", self.mean.buffers)
        finish_counts()
        return weights

    def parts_of(self, client: Client) -> list[Stateful]:
        """What is to be remembered of a client of this rank."""
        parts: list[Stateful] = [client]
        if self.extrapolation is not None:
            parts.append(self.extrapolation.client_state(client.id, self.mean.parameters))
        if self.compression is not None:
            parts.append(self.compression.client_state(client.id))
        return parts

    def close(self) -> None:
        """Take the hooks off the parameters."""
        self.reducer.close()

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        own: dict[str, Any] = {"model": self.mean.state, **self.stepper.state_dict()}
        for part in (self.chain, self.noise_scale, self.compression):
            own |= part.state_dict() if part is not None else {}
        return own

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        if found.get("model") is None:
            raise DataError("model is missing")
        check_like(self.mean.state, found["model"], "model")
        for part in (self.stepper, self.chain, self.noise_scale, self.compression):
            if part is not None:
                part.check_state(found)

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        self.mean.state.copy_(found["model"])
        for part in (self.stepper, self.chain, self.noise_scale, self.compression):
            if part is not None:
                part.load_state_dict(found)
