"""From a step's tensors and time marks to rows of the log, without making the host wait for a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from hpclbfl.runlog.writer import FLUSH_AFTER_S, RunLog
from hpclbfl.timing import Clock, Mark, seconds

LAZY_STEPS = 50
"""Steps that gather before their losses and events are fetched from a GPU, all in one copy."""

_NAN = float("nan")


@dataclass
class ClientRecord:
    """What one client's part of a step left behind."""

    client: int
    num_samples: int
    loss: Tensor | None
    """Scalar on the device; None for a client without samples."""
    data: tuple[Mark, Mark]
    compute: tuple[Mark, Mark]
    gradient: GradientRecord | None = None
    """Of the client's own gradient, in local training."""


@dataclass
class GradientRecord:
    """What was measured of a gradient: 0-d tensors on the device."""

    sq_norm: Tensor
    change: Tensor
    scale: Tensor


@dataclass
class StepRecord:
    """One step of one rank.

    Clients on a rank run in turn: what the rank spends once per step (update, synchronisation) is shared evenly among
    its clients' rows, so that the rows of a rank add up to its time, and each row obeys Eq. 2.
    """

    step: int
    round: int
    epoch: float
    num_samples: int
    lr: float
    gradient: GradientRecord | None = None
    """Of the reduced gradient, while the model is shared."""
    clients: list[ClientRecord] = field(default_factory=list)
    update: list[tuple[Mark, Mark]] = field(default_factory=list)
    sync: list[tuple[Mark, Mark]] = field(default_factory=list)


class StepLog:
    """Writes step records as rows of the table `steps`.

    Args:
        log: the rank's log.
        clock: of the rank's device; on a GPU records wait until `LAZY_STEPS` have gathered.
    """

    def __init__(self, log: RunLog, clock: Clock) -> None:
        self._log, self._is_lazy = log, clock.is_lazy
        self._waiting: list[StepRecord] = []
        self._oldest = 0.0
        self.last_loss = _NAN
        """Mean loss over this rank's samples in the newest step written, nats."""

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # After an error the device may be gone, and the error matters more than the last rows.
        with suppress(RuntimeError) if error is not None else nullcontext():
            self.flush()

    def add(self, record: StepRecord) -> None:
        """Take a step's record."""
        now = time.monotonic()
        if not self._waiting:
            self._oldest = now
        self._waiting.append(record)
        if not self._is_lazy or len(self._waiting) >= LAZY_STEPS or now - self._oldest >= FLUSH_AFTER_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        values = iter(_fetch([t for record in self._waiting for t in _tensors(record)]))
        for record in self._waiting:
            self._write(record, values)
        self._waiting.clear()

    def _write(self, record: StepRecord, values: Iterator[float]) -> None:
        shared = [next(values) for _ in range(3)] if record.gradient is not None else [_NAN] * 3
        share = 1.0 / len(record.clients)
        update = share * sum(seconds(*span) for span in record.update)
        sync = share * sum(seconds(*span) for span in record.sync)
        total = count = 0.0
        for client in record.clients:
            loss = next(values) if client.loss is not None else _NAN
            own = [next(values) for _ in range(3)] if client.gradient is not None else [_NAN] * 3
            change, scale = (own if client.gradient is not None else shared)[1:]
            if client.num_samples:
                total, count = total + loss * client.num_samples, count + client.num_samples
            data, compute = seconds(*client.data), seconds(*client.compute) + update
            self._log.append_row(
                "steps",
                (
                    *(record.step, record.round, record.epoch, client.client, client.num_samples, record.num_samples),
                    *(loss, record.lr),
                    *(own[0], shared[0], change, scale),
                    # The noise scale is not measured.
                    *(_NAN, _NAN, _NAN),
                    # Waiting is not told apart from transfer.
                    *(data, compute, sync, _NAN, _NAN, data + compute + sync),
                ),
            )
        if count:
            self.last_loss = total / count


def _tensors(record: StepRecord) -> Iterator[Tensor]:
    """A record's numbers on the device, in the order in which `_write` takes them."""
    if record.gradient is not None:
        yield from (record.gradient.sq_norm, record.gradient.change, record.gradient.scale)
    for client in record.clients:
        if client.loss is not None:
            yield client.loss
        if client.gradient is not None:
            yield from (client.gradient.sq_norm, client.gradient.change, client.gradient.scale)


def _fetch(tensors: list[Tensor]) -> list[float]:
    """All of them in one copy."""
    return [float(x) for x in torch.stack([t.double() for t in tensors]).tolist()] if tensors else []
