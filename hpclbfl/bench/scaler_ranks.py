"""A rank's part of `hpclbfl bench scaler`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpclbfl.bench import peers
from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.scaler import Settings
from hpclbfl.bench.training import IMAGES, SCALER, Training, make_job
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.sections import CommConfig
from hpclbfl.gradients.apply import FactorOnStep
from hpclbfl.gradients.norm import SquaredNorm
from hpclbfl.planner.network import slowest


class Ours:
    """Our scaler, its calls timed.

    Args:
        training: of a job with the scaler.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self._spent_s: dict[str, float] = {}
        self._is_scaled = True
        self._time(SquaredNorm, "add", "norm")
        self._time(SquaredNorm, "take", "norm")
        model = training.state.shared_model
        self._time(model.chain, "update", "change")
        self._time(model.stepper.optimizer, "step", "optimizer")
        apply = FactorOnStep.apply

        def apply_every_other(on_step: FactorOnStep, gradients: Sequence[Tensor], factor: Tensor) -> None:
            if self._is_scaled:
                apply(on_step, gradients, factor)

        self._time(FactorOnStep, "apply", "hand-over", apply_every_other)

    def _time(self, owner: Any, name: str, part: str, instead: Callable[..., Any] | None = None) -> None:
        """Replace an attribute by a function that adds the time of each call to a part."""
        call: Callable[..., Any] = instead or getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args, **kwargs)
            self._spent_s[part] = self._spent_s.get(part, 0.0) + time.perf_counter() - begin
            return result

        setattr(owner, name, timed)

    def step(self, number: int) -> dict[str, float]:
        """One step, with and without the factor in turn: its time and those of the parts, seconds."""
        self._is_scaled, self._spent_s = number % 2 == 0, {}
        step_s = _timed(self.training.step)
        return {"step": step_s, **self._spent_s, "is_scaled": float(self._is_scaled)}

    def sq_norm(self) -> float:
        """The reducer's newest squared norm."""
        sq_norm = self.training.state.shared_model.reducer.sq_norm
        return float("nan") if sq_norm is None else float(sq_norm)


class Afterwards:
    """Eq. 8 and the factor in separate passes between the reduction and the optimizer's step.

    Args:
        training: of a job that measures nothing.
        norm: squared norm of the gradients.
        multiply: gradients times a factor, in place.
    """

    def __init__(
        self, training: Training, norm: Callable[[list[Tensor]], float], multiply: Callable[[list[Tensor], float], None]
    ) -> None:
        self.training = training
        self._norm, self._multiply = norm, multiply
        self._newest = self._added_s = 0.0
        training.state.shared_model.stepper.optimizer.register_step_pre_hook(self._scale)

    def _scale(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        begin = time.perf_counter()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        before, self._newest = self._newest, self._norm(gradients)
        change = abs(self._newest - before) / before if before else 0.0
        self._multiply(gradients, SCALER["factor"] if change >= SCALER["threshold"] else 1.0)
        self._added_s = time.perf_counter() - begin

    def step(self, number: int) -> dict[str, float]:
        """One step, which always multiplies: its time and that of the added code, seconds."""
        step_s = _timed(self.training.step)
        return {"step": step_s, "added": self._added_s}

    def sq_norm(self) -> float:
        """The newest squared norm."""
        return self._newest


def measure(task: Task) -> dict[str, Any]:
    """Times by variant, part and step, seconds, of the slowest rank, and each variant's error of the norm."""
    settings = Settings(**task.settings)
    comm = communicator(CommConfig(engine="mpi"))
    library = comm.library
    variants = {name: _make(name, settings, comm, task) for name in settings.variants}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(settings.warmup + settings.steps):
        for name, variant in variants.items():
            comm.barrier()
            rows[name].append(variant.step(number))
    times = {}
    for name, steps in rows.items():
        timed = steps[settings.warmup :]
        times[name] = {part: slowest(comm, [step[part] for step in timed]) for part in timed[0]}
    errors = {name: _error(variant, settings.warmup + settings.steps) for name, variant in variants.items()}
    peers.leave(comm)
    return {"library": library, "times": times, "errors": errors}


def _make(name: str, settings: Settings, comm: Communicator, task: Task) -> Ours | Afterwards:
    gradients = {"scaler": SCALER} if name == "ours" else {"measure": False}
    sections = {"gradients": gradients, "comm": {"engine": "mpi"}}
    job = make_job(Path(task.scratch) / IMAGES, settings.model, settings.batch, comm.size, **sections)
    training = Training(job, comm, task.log(comm, name))
    if name == "ours":
        return Ours(training)
    if name == "foreach":
        return Afterwards(training, _foreach_norm, torch._foreach_mul_)
    return Afterwards(training, _loop_norm, _loop_multiply)


def _foreach_norm(gradients: list[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(gradients)).square().sum())


def _loop_norm(gradients: list[Tensor]) -> float:
    return float(sum(gradient.norm().item() ** 2 for gradient in gradients))


def _loop_multiply(gradients: list[Tensor], factor: float) -> None:
    for gradient in gradients:
        gradient.mul_(factor)


def _timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _error(variant: Ours | Afterwards, number: int) -> float:
    """Relative error of the squared norm in one further step, against a sum in float64."""
    reducer: Any = variant.training.state.shared_model.reducer
    finish = reducer.finish
    exact: list[float] = []

    def spy() -> None:
        finish()
        # Here, as the optimizer changes the gradient later.
        exact.append(sum(float(g.double().square().sum()) for g in reducer.by_layer()))

    reducer.finish = spy
    variant.step(number)
    return float(abs(variant.sq_norm() / exact[0] - 1))


if __name__ == "__main__":
    run(measure)
