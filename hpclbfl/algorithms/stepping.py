"""An optimizer with its loss scaling, its learning rate of each step, and the factor that comes from the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from hpclbfl.config.job import JobConfig
from hpclbfl.core.errors import DataError
from hpclbfl.core.fitting import check_like
from hpclbfl.core.text import shown
from hpclbfl.gradients.apply import FactorOnStep
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.optim.optimizers import make_optimizer

_MOVING = ("lr", "step")
"""Options of a group that change in training."""
_OF_DEVICE = ("fused", "foreach", "capturable")
"""Options that follow from the device."""


class Stepper:
    """Steps one model; a `hpclbfl.core.state.Stateful`.

    Args:
        job: its optimizer and precision.
        parameters: of the model, in the order of the net.
        device: of the rank.
    """

    def __init__(self, job: JobConfig, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        self._parameters = list(parameters)
        self.optimizer = make_optimizer(job.optimizer, self._parameters)
        self.loss_scaler = torch.amp.GradScaler(device.type, enabled=job.precision == "fp16")
        """Passes everything through but under fp16."""
        # Its scale is made with the first loss, which a rank without samples never sees.
        self.loss_scaler.scale(torch.zeros((), device=device))
        self._factor = FactorOnStep(self.optimizer, may_ride=not self.loss_scaler.is_enabled())

    def step(self, lr: float, gradient: Gradient | None = None) -> None:
        """Step with the gradients that lie in the parameters.

        Args:
            lr: learning rate.
            gradient: what transforms have made of them; None: they are taken as they are.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if gradient is not None and gradient.is_replaced:
            self._install(gradient)
        if gradient is not None and gradient.factor is not None:
            parameters = (p for group in self.optimizer.param_groups for p in group["params"])
            self._factor.apply([p.grad for p in parameters if p.grad is not None], gradient.factor)
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        self._factor.restore()

    def _install(self, gradient: Gradient) -> None:
        trained = [p for p in self._parameters if p.requires_grad]
        for parameter, value in zip(trained, gradient.tensors, strict=True):
            if parameter.grad is None:
                parameter.grad = value.to(parameter.dtype)
            else:
                parameter.grad.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        return {"optimizer": self.optimizer.state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """A fresh optimizer has all of its state, as zeros (see `optim.slots`), and the options of the job."""
        fresh, saved = self.optimizer.state_dict(), found.get("optimizer")
        if not isinstance(saved, dict):
            raise DataError("optimizer has no state")
        check_like(fresh["state"], saved.get("state"), "optimizer.state")
        groups = saved.get("param_groups")
        if not isinstance(groups, list) or len(groups) != len(fresh["param_groups"]):
            raise DataError("optimizer.param_groups does not have the groups of this job")
        for number, (like, group) in enumerate(zip(fresh["param_groups"], groups, strict=True)):
            _check_group(like, group, f"optimizer.param_groups.{number}")
        check_like(self.loss_scaler.state_dict(), found.get("loss_scaler"), "loss_scaler")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        self.optimizer.load_state_dict(found["optimizer"])
        self.loss_scaler.load_state_dict(found["loss_scaler"])


def _check_group(like: dict[str, Any], found: Any, key: str) -> None:
    if not isinstance(found, dict) or found.keys() != like.keys():
        raise DataError(f"{key} has other options than this job's")
    for name, value in like.items():
        if name in _MOVING:
            check_like(value, found[name], f"{key}.{name}")
        elif name in _OF_DEVICE:
            if not isinstance(found[name], bool | None):
                raise DataError(f"{key}.{name} is {shown(found[name])}, not a truth value")
        else:
            # Plain values, of the same types all the way down: they can be compared.
            check_like(value, found[name], f"{key}.{name}")
            if found[name] != value:
                raise DataError(f"{key}.{name} is {shown(found[name])}, not {shown(value)}")
