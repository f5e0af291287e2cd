"""The teacher of Eq. 5 for any training script: attached to a torch optimizer, it changes each step's gradient.

S. Tyagi, "On Using Large-Batches in Federated Learning", Eq. 5; `hpclbfl.gradients.teacher` tells what it learns. The
clients are the backward passes of all ranks between two steps. Their own gradients are caught by hooks on the
parameters, before DDP or Horovod reduce them, and only in the steps of a training; the reduced gradient is what lies in
the parameters when the optimizer steps. Both may differ by a factor (a loss scale, a sum in place of a mean): as

    sum (1 / n) <own, reduced> = |reduced|^2

where they do not, it is found and divided out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import DETECTORS, TEACHERS
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.fitting import check_like, placed_like
from hpclbfl.core.state import as_plain, from_plain
from hpclbfl.gradients import GradientTransform, Metrics
from hpclbfl.gradients.apply import FactorOnStep
from hpclbfl.gradients.attached import Attached, is_count, is_number
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.clip import Clip
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.learning import ClientGradients
from hpclbfl.gradients.optimizer_gradients import loss_scale_of
from hpclbfl.gradients.teacher.transform import TeacherTransform

_STATE_KEYS = ("steps", "state", "learnt")


class Teacher(Attached):
    """Maps the large batch's gradient to one of a smaller batch (Eq. 5), in each step.

    Args:
        kind: residual, subspace or mse; a file's own kind is named as in a job.
        local_batch_size: samples of each backward pass, the same in all passes of all ranks.
        num_ranks: of the script; 1 in one process.
        rank: of this process; 0 in one process.
        sum_: sums a tensor over the ranks, by what it returns or in place, such as
            `lambda t: hvd.allreduce(t, op=hvd.Sum)` or `dist.all_reduce`; None: there is one rank.
        passes: backward passes of each rank between two steps; in one process at least 2.
        max_norm: the gradient is clipped to this norm after the teacher; None: it is not.
        seed: of all draws; the same on all ranks.
        agree: as of a `hpclbfl.GradientScaler`, for tensors of any size.
        keys: of the kind, as under `gradients.teacher` of a job: small_batch, factor, rank, draws, memory, rho,
            train_steps, start_step, refresh, every, threshold. The key `rank` of subspace is `directions` here.

    Raises:
        ValueError: one line, for a value that is out of range.
    """

    normalised = "its noise included, so that the step is not that of a small batch"

    def __init__(
        self,
        kind: str,
        *,
        local_batch_size: int,
        num_ranks: int = 1,
        rank: int = 0,
        sum_: Callable[[Tensor], Any] | None = None,
        passes: int = 1,
        max_norm: float | None = None,
        seed: int = 0,
        agree: Callable[[Tensor], Tensor | None] | None = None,
        **keys: Any,
    ) -> None:
        for name, value in (("local_batch_size", local_batch_size), ("num_ranks", num_ranks), ("passes", passes)):
            self._check(name, value, is_count(value, 1), "a whole number of at least 1")
        self._check("rank", rank, is_count(rank, 0) and rank < num_ranks, "a whole number from 0 up, below num_ranks")
        is_right = callable(sum_) or (sum_ is None and num_ranks == 1)
        self._check("sum_", sum_, is_right, "a function that sums a tensor over the ranks")
        is_norm = max_norm is None or (is_number(max_norm) and max_norm > 0)
        self._check("max_norm", max_norm, is_norm, "a number above 0, or None")
        self._check("seed", seed, is_count(seed, 0), "a whole number of at least 0")
        self._check("agree", agree, agree is None or callable(agree), "a function of a tensor, or None")
        super().__init__(agree)
        if "directions" in keys:
            keys["rank"] = keys.pop("directions")
        try:
            config = component_config(TEACHERS, {"kind": kind, **keys}, "Teacher", "keys")
            config.check_batches([local_batch_size] * num_ranks * passes, sums=True, alone=False)
        except (ConfigError, ValueError) as error:
            raise ValueError(str(error) if isinstance(error, ConfigError) else f"Teacher: {error}") from error
        known = ["every", "drift", *(name for name in DETECTORS.names() if DETECTORS.config(name).takes_norms_only)]
        self._check("refresh", config.refresh, config.refresh in known, f"one of {', '.join(known)}")
        self._transform = TeacherTransform(config)
        self._clip = None if max_norm is None else Clip(float(max_norm))
        self._size, self._num_ranks, self._rank, self._passes = local_batch_size, num_ranks, rank, passes
        self._sum, self._seed = sum_, seed
        self._chain: Chain | None = None
        self._steps = 0
        self._waiting: dict[str, Any] | None = None
        """A state that was loaded before there was an optimizer."""
        self._parameters: list[Tensor] = []
        self._caught: dict[Tensor, deque[Tensor]] = {}
        self._is_catching = False
        self.metrics: Metrics = {}
        """Numbers of the newest step, 0-d tensors: see `docs/teacher.md`."""

    @property
    def steps(self) -> int:
        """Steps taken with a gradient."""
        return self._steps

    def attach(self, optimizer: Optimizer) -> Teacher:
        """See `Attached`.

        Raises:
            ValueError: also where its parameters are of several types or devices.
        """
        groups = optimizer.param_groups if isinstance(optimizer, Optimizer) else []
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        kinds = {(p.dtype, p.device) for p in parameters}
        if len(kinds) > 1 or any(dtype not in (torch.float32, torch.float64) for dtype, _ in kinds):
            raise ValueError("Teacher: takes parameters of one type, float32 or float64, on one device")
        super().attach(optimizer)
        self._parameters = parameters
        layout = Layout.of((str(place), parameter) for place, parameter in enumerate(parameters))
        self._transform.begin(layout, self._num_ranks * self._passes, self._seed)
        transforms: list[GradientTransform[Any]] = [self._transform]
        if self._clip is not None:
            transforms.append(self._clip)
        self._chain = Chain(transforms, self._seed, layout=layout, agree=self._agreeing)
        try:
            if self._waiting is not None:
                self._restore(self._waiting)
        except ValueError:
            super().detach()
            raise
        self._hooks += [p.register_hook(self._catcher(p)) for p in parameters]
        self._begin_step()
        return self

    def detach(self) -> None:
        """Leave the optimizer as it was; the state stays."""
        if self._optimizer is not None:
            self._waiting = self.state_dict()
        super().detach()
        self._chain, self._parameters, self._caught, self._is_catching = None, [], {}, False

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on, the same on all ranks: tensors, numbers and None; for torch.save.

        Raises:
            RuntimeError: it has never been attached.
        """
        if self._chain is None:
            if self._waiting is None:
                raise RuntimeError("a Teacher has no state before it is attached")
            return self._waiting
        progress, learnt = self._transform.memory.state_dict()["teacher"]
        values = (self._steps, as_plain(self._chain.current()[0]), as_plain((progress, learnt)))
        return dict(zip(_STATE_KEYS, values, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, bit for bit; before or after `attach`.

        Raises:
            ValueError: it is not such a state, or one of another teacher.
        """
        if not isinstance(state, dict) or set(state) != set(_STATE_KEYS):
            raise ValueError(f"not the state of a Teacher: expected the keys {', '.join(_STATE_KEYS)}")
        if self._chain is None:
            self._waiting = state
        else:
            self._restore(state)
            self._begin_step()

    def _restore(self, state: dict[str, Any]) -> None:
        chain, memory = self._chain, self._transform.memory
        if chain is None:
            return
        fresh = self._transform.init(chain.layout), memory.state_dict()["teacher"]
        try:
            found = from_plain(fresh, (state["state"], state["learnt"]))
            check_like(fresh, found, "state")
        except (DataError, KeyError, TypeError) as error:
            raise ValueError(f"not the state of a Teacher of this kind and net: {error}") from error
        # What is learnt is written to: the given state stays as it is.
        mine, (progress, learnt) = placed_like(fresh, found)
        chain.states = (mine, *chain.current()[1:])
        memory.progress, memory.learnt = progress, _cloned(learnt)
        self._steps, self._waiting = state["steps"], None

    def _act(self, optimizer: Optimizer, gradients: list[Tensor], factor: FactorOnStep) -> None:
        chain = self._chain
        if chain is None:
            return
        if loss_scale_of(optimizer) is not None:
            raise RuntimeError(
                "a Teacher needs unscaled gradients: call unscale_(optimizer) of torch.amp.GradScaler before step()"
            )
        values = [p.grad for p in self._parameters]
        norms = self._sq_norms(gradients, chain.needs_layers)
        gradient = Gradient(values, chain.layout, norms[0], norms[1:] if chain.needs_layers else None, is_owned=True)
        batch = self._size * self._num_ranks * self._passes
        context = chain.context(self._steps, batch_size=batch)
        told = self._learn(gradient, chain) if self._is_catching else {}
        gradient, metrics = chain.update(gradient, context)
        if gradient.is_replaced:
            for p, value in zip(self._parameters, gradient.tensors, strict=True):
                if p.grad is not None:
                    p.grad.copy_(value)
        if gradient.factor is not None:
            factor.apply(gradients, gradient.factor)
        self.metrics = told | metrics
        self._steps += 1
        self._begin_step()

    def _learn(self, gradient: Gradient, chain: Chain) -> Metrics:
        if any(len(caught) < self._passes for caught in self._caught.values()):
            raise RuntimeError(f"a Teacher with passes={self._passes} needs as many backward passes before each step()")
        # A step that was left out has left passes behind, the oldest.
        passes = [
            [self._caught[p][k] if p in self._caught else None for p in self._parameters] for k in range(self._passes)
        ]
        tensors = gradient.tensors
        pairs = [(own, mean) for one in passes for own, mean in zip(one, tensors, strict=True) if own is not None]
        product = torch.stack([(own * mean).sum(dtype=torch.float64) for own, mean in pairs]).sum().reshape(1)
        self._sum_over_ranks(product)
        times = product / (self._num_ranks * self._passes) / gradient.sq_norm
        times = torch.where(torch.isfinite(times) & (times > 0), times, 1.0)
        for own in (own for one in passes for own in one if own is not None):
            own.div_(times.to(own.dtype))
        own_passes = {self._rank * self._passes + k: one for k, one in enumerate(passes)}
        counts = np.full(self._num_ranks * self._passes, self._size, np.int64)
        found = ClientGradients(own_passes, counts, gradient, self._sum_over_ranks, self._rank)
        return self._transform.learn(found, [chain.current()[0]], chain.context(self._steps))

    def _begin_step(self) -> None:
        self._caught = {}
        self._is_catching = self._chain is not None and self._transform.wants(self._steps, [self._chain.current()[0]])

    def _catcher(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def catch(gradient: Tensor) -> None:
            if self._is_catching:
                caught = self._caught.setdefault(parameter, deque(maxlen=self._passes))
                # Its memory may become that of the parameter's gradient.
                caught.append(gradient.detach().clone())

        return catch

    def _sum_over_ranks(self, tensor: Tensor) -> None:
        if self._sum is not None:
            found = self._sum(tensor)
            if isinstance(found, Tensor) and found is not tensor:
                tensor.copy_(found)

    @property
    def _agreeing(self) -> Callable[[Tensor], Tensor] | None:
        if self._agree is None:
            return None
        agree = self._agree

        def take(tensor: Tensor) -> Tensor:
            found = agree(tensor)
            return tensor if found is None else found

        return take


def _cloned(learnt: Any) -> Any:
    return from_plain(learnt, as_plain(learnt, clone=True))
