"""The transforms of one stream of gradients, one after the other, with their state: of a shared model, or of a client.

It is what the trainer and `hpclbfl.GradientScaler` have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hpclbfl.config.sections import DetectorConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.fitting import check_like, placed_like
from hpclbfl.core.text import shown
from hpclbfl.gradients import Context, GradientTransform, Metrics, NoiseAverages
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.learning import Learner
from hpclbfl.gradients.watch import Watch

SHARED = -1
"""Stands for a client where the model is shared."""


class Chain:
    """Transforms, with their state; a `hpclbfl.core.state.Stateful`.

    Args:
        transforms: in their order; all see the values that the one before has left, and their norms.
        seed: of the job.
        client: whose gradients these are; SHARED: of the shared model.
        layout: of the parameters, where it is known.
        agree: makes norms equal on ranks whose arithmetic rounds differently; None: they are.
    """

    def __init__(
        self,
        transforms: Sequence[GradientTransform[Any]],
        seed: int,
        client: int = SHARED,
        layout: Layout | None = None,
        agree: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.transforms = tuple(transforms)
        self.client, self.layout, self.seed = client, layout, seed
        self._agree = agree
        self.states: tuple[Any, ...] | None = None
        """One of each transform; None before the first step."""
        self.learners = {place: one for place, one in enumerate(self.transforms) if isinstance(one, Learner)}
        """Those that learn from the clients' own gradients, by their places."""
        # A class of the user's own may leave these away.
        self.needs_layers = any(getattr(t, "needs_layers", False) for t in self.transforms)
        self._reads_values = any(getattr(t, "reads_values", False) for t in self.transforms)
        self.is_identity = all(getattr(t, "is_identity", False) for t in self.transforms)

    def agreed(self, gradient: Gradient) -> Gradient:
        """A step's unscaled gradient with norms that are equal on all ranks."""
        if self._agree is None:
            return gradient
        layers = self._agree(gradient.layer_sq_norms) if self.needs_layers else None
        return gradient.with_norms(self._agree(gradient.sq_norm), layers)

    def context(
        self,
        step: int,
        epoch: float = 0.0,
        lr: float = math.nan,
        noise: NoiseAverages | None = None,
        epoch_after: float = math.nan,
        batch_size: int = 0,
    ) -> Context:
        """What transforms may know besides a step's gradient."""
        return Context(self.seed, step, self.client, epoch, lr, noise, epoch_after, self._agree, batch_size)

    def update(self, gradient: Gradient, context: Context) -> tuple[Gradient, Metrics]:
        """Transform a step's `agreed` gradient.

        Returns:
            The gradient to step with, and numbers for the log: its squared norm as it came, and the transforms'.
        """
        if self._reads_values:
            gradient = gradient.kept()
        measured = gradient
        if self.needs_layers:
            # Before a transform changes the values that they are measured of.
            measured.layer_sq_norms  # noqa: B018
        metrics = {"grad_sq_norm" if self.client == SHARED else "local_grad_sq_norm": gradient.sq_norm}
        states = []
        for transform, before in zip(self.transforms, self.current(), strict=True):
            came = gradient
            gradient, after, found = transform.update(came, before, context)
            if not isinstance(gradient, Gradient):
                raise ConfigError(f"{type(transform).__name__}.update gives no Gradient first, but {shown(gradient)}")
            if self._agree is not None and gradient.changes != came.changes:
                # Products round differently there, too.
                values = gradient.values
                for tensor in (values,) if isinstance(values, Tensor) else gradient.tensors:
                    tensor.copy_(self._agree(tensor))
                gradient = self.agreed(gradient)
            metrics |= found
            states.append(after)
        self.states = tuple(states)
        # Whatever only measures leaves a factor of 1, which need not be multiplied with.
        return measured if self.is_identity else gradient, metrics

    def change_of(self, detector: str | DetectorConfig) -> Tensor:
        """The newest change, 0-d, that a detector of the job sees: one that a key of type `WatchedDetector` names.

        It is part of the state, so that a resumed run knows it before its first step. NaN: not known.

        Raises:
            LookupError: the detector is not watched.
        """
        for transform, state in zip(self.transforms, self.current(), strict=True):
            if isinstance(transform, Watch):
                return transform.change_of(detector, state)
        raise LookupError("no detector is watched")

    def current(self) -> tuple[Any, ...]:
        """The states that the next step begins with."""
        return self._fresh() if self.states is None else self.states

    def _fresh(self) -> tuple[Any, ...]:
        return tuple(t.init(self.layout) for t in self.transforms)

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        return {"pipeline": self.states}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        if found.get("pipeline") is not None:
            check_like(self._fresh(), found["pipeline"], "pipeline")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        states = found["pipeline"]
        self.states = None if states is None else placed_like(self._fresh(), states)
