"""The step-up scaler for any training script: attached to a torch optimizer, it acts in each of the optimizer's steps.

S. Tyagi, "On Using Large-Batches in Federated Learning", Eq. 6 and 8; `hpclbfl.gradients.scaler` tells what is scaled,
and when. Here the order is kept, whatever the script is made of (see `attached`): reduce, unscale, measure, clip,
scale, step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpclbfl.config.component_configs import detector_config
from hpclbfl.config.components import DETECTORS
from hpclbfl.gradients.apply import FactorOnStep
from hpclbfl.gradients.attached import Attached, is_count, is_number
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.change import ChangeState
from hpclbfl.gradients.clip import Clip
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.optimizer_gradients import gradients_of, loss_scale_of
from hpclbfl.gradients.scaler import ScalerState, StepUpScale, When

_STATE_KEYS = ("steps", "grad_sq_norm", "previous", "change", "window", "scale")


class GradientScaler(Attached):
    """Multiplies the gradient by X in some steps (Eq. 6), decided from its relative change (Eq. 8).

    Args:
        factor: X, above 0.
        threshold: of the change | |G_i|^2 - |G_(i-1)|^2 | / |G_(i-1)|^2; None: 0.5, under change="selsync" 0.02.
        when: delta_ge, delta_lt, always, never or random; see `hpclbfl.gradients.scaler`.
        change: squared_norm (Eq. 8), log_ratio (the same, symmetric), or selsync (of the layers' norms, smoothed over
            25 steps and not known before).
        duty: share of the steps that are scaled, from 0 to 1; with when="random", and only with it.
        max_norm: the gradient is clipped to this norm before X, from the norm that is measured anyway.
        seed: of when="random"; the same on all ranks.
        agree: makes a tensor of norms (float64, 1-d) equal on all ranks, by what it returns or in place, such as
            `lambda t: hvd.broadcast(t, 0)` or `lambda t: dist.broadcast(t, 0)`. Like machines compute equal norms of
            the reduced gradients and need none. Unlike ones may round differently; where the threshold falls between
            two roundings of a change, some ranks alone would scale, and their models part for good.

    Raises:
        ValueError: one line, for a value that is out of range.
    """

    normalised = "a factor on the gradient hardly acts; SGD follows it"

    def __init__(
        self,
        factor: float,
        threshold: float | None = None,
        when: When = "delta_ge",
        change: str = "squared_norm",
        duty: float | None = None,
        max_norm: float | None = None,
        seed: int = 0,
        agree: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        self._check("factor", factor, is_number(factor) and factor > 0, "a number above 0")
        self._check("when", when, when in get_args(When), f"one of {', '.join(get_args(When))}")
        known = [name for name in DETECTORS.names() if DETECTORS.config(name).takes_norms_only]
        self._check("change", change, change in known, f"one of {', '.join(known)}")
        threshold = detector_config(change).scaler_threshold if threshold is None else threshold
        self._check("threshold", threshold, is_number(threshold) and threshold >= 0, "a number of at least 0")
        if when == "random":
            is_share = duty is not None and is_number(duty) and 0 <= duty <= 1
            self._check("duty", duty, is_share, "a share from 0 to 1 with when='random'")
        else:
            self._check("duty", duty, duty is None, "none without when='random'")
        is_norm = max_norm is None or (is_number(max_norm) and max_norm > 0)
        self._check("max_norm", max_norm, is_norm, "a number above 0, or None")
        self._check("seed", seed, is_count(seed, 0), "a whole number of at least 0")
        self._check("agree", agree, agree is None or callable(agree), "a function of a tensor, or None")

        step_up = StepUpScale(float(factor), float(threshold), when, 1.0 if duty is None else float(duty), change)
        self._chain = Chain([step_up] if max_norm is None else [step_up, Clip(float(max_norm))], seed)
        super().__init__(agree)
        self._steps = 0
        self._grad_sq_norm: Tensor | None = None
        self._measured: Tensor | None = None

    @property
    def steps(self) -> int:
        """Steps taken with a gradient; one that AMP leaves out counts where the optimizer is fused."""
        return self._steps

    @property
    def change(self) -> Tensor | None:
        """delta of the newest step, float64 0-d; NaN where it is not known yet or the gradient was not finite."""
        return self._scaler_state.detector.change if self._steps else None

    @property
    def scale(self) -> Tensor | None:
        """X or 1, of the newest step, float64 0-d; without the clipping."""
        return self._scaler_state.scale if self._steps else None

    @property
    def grad_sq_norm(self) -> Tensor | None:
        """Squared norm of the newest step's gradient, before clipping and X, float64 0-d."""
        return self._grad_sq_norm

    def detach(self) -> None:
        """Leave the optimizer as it was; the state stays."""
        super().detach()
        self._measured = None

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Take the norm now instead of in the next step(): before a script clips its gradients by itself.

        The order is unscale_(), measure(), clip, step(). A step that is left out needs a new measurement.

        Returns:
            the squared norm, float64 0-d

        Raises:
            RuntimeError: not attached, no gradient, or one that hvd.DistributedOptimizer has not reduced yet.
        """
        if self._optimizer is None:
            raise RuntimeError("measure() finds no optimizer: attach() comes first")
        if self._horovod is not None and not self._horovod.are_reduced:
            raise RuntimeError(
                "measure() needs reduced gradients: call optimizer.synchronize() before it, "
                "and step() inside `with optimizer.skip_synchronize()`"
            )
        gradients = gradients_of(self._optimizer, type(self).__name__)
        if not gradients:
            raise RuntimeError("measure() finds no gradient: it comes after backward()")
        self._measured = self._sq_norms(gradients, self._chain.needs_layers)
        return self._measured[0]

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on: 0-d and [25] float64 tensors, numbers and None; for torch.save."""
        detector = self._scaler_state.detector
        values = (
            self._steps,
            self._grad_sq_norm,
            detector.previous,
            detector.change,
            detector.window,
            self._scaler_state.scale,
        )
        return dict(zip(_STATE_KEYS, values, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, bit for bit, on whatever device the gradients are.

        Raises:
            ValueError: it is not such a state.
        """
        if not isinstance(state, dict) or set(state) != set(_STATE_KEYS):
            raise ValueError(f"not the state of a GradientScaler: expected the keys {', '.join(_STATE_KEYS)}")
        previous, change, scale = (state[key].clone() for key in ("previous", "change", "scale"))
        window, sq_norm = (None if state[key] is None else state[key].clone() for key in ("window", "grad_sq_norm"))
        own = self._scaler_state.detector.window
        if getattr(own, "shape", None) != getattr(window, "shape", None):
            raise ValueError("not the state of a GradientScaler with this `change`: its window is another")
        self._scaler_state = ScalerState(ChangeState(previous, change, window), scale)
        self._steps, self._grad_sq_norm, self._measured = state["steps"], sq_norm, None

    @property
    def _scaler_state(self) -> ScalerState:
        state: ScalerState = self._chain.current()[0]
        return state

    @_scaler_state.setter
    def _scaler_state(self, state: ScalerState) -> None:
        self._chain.states = (state, *self._chain.current()[1:])

    def _act(self, optimizer: Optimizer, gradients: list[Tensor], factor: FactorOnStep) -> None:
        measured, self._measured = self._measured, None
        sq_norms = self._sq_norms(gradients, self._chain.needs_layers) if measured is None else measured
        loss_scale = loss_scale_of(optimizer)
        if loss_scale is not None:
            loss_scale = loss_scale.to(sq_norms.device, torch.float64)
            sq_norms = sq_norms / loss_scale.square()
        self._scaler_state = _moved(self._scaler_state, sq_norms.device)
        measured_gradient = Gradient(gradients, sq_norm=sq_norms[0], layer_sq_norms=sq_norms[1:])
        gradient, _ = self._chain.update(measured_gradient, self._chain.context(self._steps))
        self._grad_sq_norm = sq_norms[0]
        self._steps += 1
        if not self._chain.is_identity and gradient.factor is not None:
            factor.apply(gradients, gradient.factor, loss_scale)

    def _miss(self) -> None:
        self._measured = None


def _moved(state: ScalerState, device: torch.device) -> ScalerState:
    detector = state.detector
    window = None if detector.window is None else detector.window.to(device)
    return ScalerState(
        ChangeState(detector.previous.to(device), detector.change.to(device), window), state.scale.to(device)
    )
