"""A rank's clients with their models, and all that their steps take: what an algorithm works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hpclbfl.algorithms.changes import Changes
from hpclbfl.algorithms.client import Client
from hpclbfl.algorithms.flags import NONFINITE
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.local_client import LocalClient
from hpclbfl.algorithms.rank import Rank
from hpclbfl.algorithms.record import StepRecord
from hpclbfl.algorithms.replicas import Replicas
from hpclbfl.algorithms.shared_model import SharedModel
from hpclbfl.algorithms.stepping import Stepper
from hpclbfl.comm.compression import Setup
from hpclbfl.comm.compression.build import Compression
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config.component_configs import transform_configs
from hpclbfl.config.components import TRANSFORMS
from hpclbfl.config.detectors import watched_detectors
from hpclbfl.gradients import GradientTransform
from hpclbfl.gradients.chain import SHARED, Chain
from hpclbfl.gradients.gradient import Layout
from hpclbfl.gradients.learning import Learner
from hpclbfl.gradients.noise_scale import NoiseScale
from hpclbfl.gradients.scaler import StepUpScale
from hpclbfl.gradients.watch import Watch
from hpclbfl.optim.extrapolation import Extrapolation

_LOOK_EVERY = 50
"""Steps between two looks at a GPU for a gradient that was not finite."""


@dataclass(kw_only=True)
class RankState(Rank):
    """See the module."""

    model: SharedModel | Replicas = field(init=False)
    """The clients' models."""

    @property
    def clients(self) -> list[Client] | list[LocalClient]:
        """Of this rank."""
        return self.model.clients

    @property
    def mean(self) -> FlatModel:
        """The net that is evaluated: the clients' (virtual) average."""
        return self.model.mean

    @property
    def shared_model(self) -> SharedModel:
        """The model of all clients."""
        if not isinstance(self.model, SharedModel):
            raise RuntimeError("the clients train models of their own")
        return self.model

    @property
    def replicas(self) -> Replicas:
        """The models of the clients."""
        if not isinstance(self.model, Replicas):
            raise RuntimeError("the clients share a model")
        return self.model

    def make_shared_model(self, template: nn.Module) -> SharedModel:
        """One model of all clients, with this rank's."""
        job, mean = self.job, FlatModel(template)
        config, stepper = job.gradients, Stepper(job, mean.parameters, self.device)
        reducer = GradientReducer(
            mean.parameters,
            self.comm,
            job.comm.bucket_mb,
            # Under loss scaling the norm is known only after the sum has been unscaled.
            measure=config.measure and job.precision != "fp16",
            measure_clients=config.noise_decay is not None,
        )
        clients = [Client(i, FlatModel(template, parameters_of=mean), stepper.loss_scaler) for i in self.client_ids]
        noise_scale = NoiseScale(config.noise_decay) if config.noise_decay is not None else None
        rate = config.extrapolation_lr
        extrapolation = Extrapolation(rate) if rate is not None else None
        chain, compression = self.make_chain(SHARED, mean), self._gradient_compression(mean, reducer)
        return SharedModel(mean, clients, stepper, reducer, chain, noise_scale, extrapolation, compression)

    def _gradient_compression(self, mean: FlatModel, reducer: GradientReducer) -> Compression | None:
        if self.job.compression is None:
            return None
        clients = self.clients_by_rank
        setup = Setup(self.comm, reducer.flat, reducer.pieces, clients, self.job.seed, self.agree is None)
        return Compression(self.job.compression, setup, Layout.of(mean.module.named_parameters()))

    def make_changes(self, mean: FlatModel) -> Changes | None:
        """What averages compressed changes of models; None: models are averaged."""
        return None if self.job.compression is None else Changes(self.job.compression, self, mean)

    def make_replicas(self, template: nn.Module) -> Replicas:
        """A model of each of this rank's clients."""
        mean = FlatModel(template)
        return Replicas(mean, [self.make_local_client(i, template) for i in self.client_ids], self.make_changes(mean))

    def replicas_of(self, shared: SharedModel) -> Replicas:
        """A model of each of this rank's clients, all copies of a shared one."""
        return Replicas.of_shared(shared, self.make_local_client, self.make_changes)

    def make_local_client(self, client_id: int, template: nn.Module) -> LocalClient:
        """A client with a copy of a net and an optimizer of its own."""
        replica = FlatModel(template)
        stepper = Stepper(self.job, replica.parameters, self.device)
        return LocalClient(client_id, replica, stepper, self.make_chain(client_id, replica))

    def make_chain(self, client: int, model: FlatModel) -> Chain | None:
        """What measures and transforms a client's gradients, or those of the shared model; None: nothing does."""
        if not self.job.gradients.measure:
            return None
        layout = Layout.of(model.module.named_parameters())
        for learner in self.learners:
            learner.begin(layout, len(self.sizes), self.job.seed)
        return Chain(self.transforms, self.job.seed, client, layout, self.agree if client == SHARED else None)

    @cached_property
    def transforms(self) -> list[GradientTransform[Any]]:
        """Of the job's gradients, in their order; all of this rank's chains use the same."""
        gradients = self.job.gradients
        made: list[GradientTransform[Any]] = [TRANSFORMS.make(config) for config in transform_configs(gradients)]
        if gradients.scaler is None:
            # It measures, and tells the change that the algorithm watches.
            watched = self.job.sync.watched_change or "squared_norm"
            made.insert(0, StepUpScale(factor=1.0, when="never", change=watched))
        if detectors := watched_detectors(self.job):
            # First: they see the gradient as it was reduced.
            made.insert(0, Watch(detectors))
        return made

    @property
    def learners(self) -> list[Learner]:
        """The transforms that learn from the clients' gradients."""
        return [transform for transform in self.transforms if isinstance(transform, Learner)]

    def start_local_training(self) -> None:
        """From now on every client trains a copy of the shared model, where there still is one."""
        if isinstance(self.model, SharedModel):
            self.use_model(self.replicas_of(self.model))
            self.counters.averaged_at = self.counters.positions.copy()

    def use_model(self, model: SharedModel | Replicas) -> None:
        """Train another one from now on."""
        if model is not self.model:
            self.model.close()
            self.model = model

    def average_replicas(self) -> NDArray[np.float64]:
        """Fill `mean` with the clients' weighted average, parameters and BatchNorm buffers: [C] the weights."""
        return self.model.average(self)

    def look_for_nonfinite(self, record: StepRecord) -> int:
        """NONFINITE where a rank saw a gradient that was not finite; a collective, before the state is relied on.

        Between two looks a GPU's host knows nothing of them. A CPU's looks in every step, but while clients train alone
        it tells the other ranks at the next exchange of flags.
        """
        is_shared = isinstance(self.model, SharedModel)
        if (is_shared and not self._looks_late) or self.job.on_nonfinite not in ("stop", "restore"):
            return 0
        is_broken = self._is_broken is not None and bool(self._is_broken)
        seen = NONFINITE if is_broken else self._pending_flags & NONFINITE
        flags = self.comm.vote(seen) & NONFINITE
        # All ranks see a shared model's gradient; rank 0 logs it.
        speaks = not is_shared or self.comm.rank == 0
        if is_broken and speaks and not any(kind == "nonfinite" for kind, _ in record.events):
            record.events.append(("nonfinite", self.nonfinite_text("a gradient at or before this step")))
        return flags
