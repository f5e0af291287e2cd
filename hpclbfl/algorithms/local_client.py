"""A client that trains a model of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpclbfl.algorithms import terms
from hpclbfl.algorithms.client import Client
from hpclbfl.algorithms.flags import NONFINITE
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.rank import Rank
from hpclbfl.algorithms.record import ClientRecord, StepRecord
from hpclbfl.algorithms.stepping import Stepper
from hpclbfl.core.clock import Mark
from hpclbfl.core.fitting import check_like
from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.gradient import Gradient


class LocalClient(Client):
    """A client that trains a model of its own.

    Args:
        client_id: its number.
        replica: its net, parameters of its own.
        stepper: of its optimizer.
        chain: of its gradient; None: nothing is measured.
    """

    def __init__(self, client_id: int, replica: FlatModel, stepper: Stepper, chain: Chain | None) -> None:
        super().__init__(client_id, replica, stepper.loss_scaler)
        self.stepper, self.chain = stepper, chain
        self.has_gradient = False
        """Whether the last pass had samples."""
        self._begin: tuple[Mark, float] = (0.0, 0.0)
        self._own: ClientRecord

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its own."""
        return self.stepper.optimizer

    @property
    def gradients(self) -> list[Tensor | None]:
        """[L] of its trained parameters, in the order of the net; unscaled after `backward`."""
        return [p.grad for p in self.replica.parameters if p.requires_grad]

    @property
    def columns(self) -> dict[str, Tensor]:
        """What was measured of its newest step, by the log's columns."""
        return self._own.columns

    def backward(self, rank: Rank, record: StepRecord) -> None:
        """Put the unscaled gradient of its mean loss into the parameters, where it has samples."""
        batch = terms.load_batch(rank, self.id)
        self.forward_backward(rank, record, 1 if batch is None else max(1, batch.num_terms), batch)
        self._own = record.clients[-1]
        self.begin_update(rank)
        self.has_gradient = batch is not None
        if self.has_gradient:
            self.loss_scaler.unscale_(self.optimizer)

    def begin_update(self, rank: Rank) -> None:
        """Note the time from which on the step is an update."""
        self._begin = rank.clock.mark(), time.perf_counter()

    def update(self, rank: Rank, record: StepRecord) -> int:
        """Measure and transform its gradient, and step; NONFINITE where it did not."""
        gradient = None
        if self.chain is not None:
            context = Context(
                *(rank.job.seed, rank.counters.step, self.id, record.epoch, record.lr),
                epoch_after=record.epoch_after,
                batch_size=self._own.num_samples,
            )
            found = Gradient(self.gradients, self.chain.layout, is_owned=True)
            gradient, columns = self.chain.update(found, context)
            self.columns.update(columns)
        if rank.is_broken_by(self.columns.get("local_grad_sq_norm")):
            record.events.append(("nonfinite", rank.nonfinite_text(f"client {self.id}'s gradient")))
            return NONFINITE
        self.stepper.step(record.lr, gradient)
        return 0

    def end_step(self, rank: Rank, record: StepRecord) -> None:
        """Drop the gradients, and note the time."""
        begin, host_begin = self._begin
        self.optimizer.zero_grad(set_to_none=True)
        if rank.emulation is not None:
            rank.emulation.stretch(rank.counters.step, host_begin)
        record.update.append((begin, rank.clock.mark()))

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer, loss scaling, and the state of its gradient's transforms."""
        own = {"model": self.replica.state, **self.stepper.state_dict()}
        return super().state_dict() | own | (self.chain.state_dict() if self.chain is not None else {})

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        super().check_state(found)
        check_like(self.replica.state, found.get("model"), "model")
        self.stepper.check_state(found)
        if self.chain is not None:
            self.chain.check_state(found)

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        self.replica.state.copy_(found["model"])
        self.stepper.load_state_dict(found)
        super().load_state_dict(found)
        if self.chain is not None:
            self.chain.load_state_dict(found)
