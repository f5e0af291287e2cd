"""From a step's tensors and time marks to rows of the log, without making the host wait for a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from types import TracebackType

import torch
from torch import Tensor

from hpclbfl.algorithms.record import StepRecord
from hpclbfl.core.clock import Clock, seconds
from hpclbfl.runs.log.schema import ALL, DTYPES
from hpclbfl.runs.log.writer import FLUSH_AFTER_S, RunLog

LAZY_STEPS = 50
"""Steps that gather before their losses and events are fetched from a GPU, all in one copy."""

_NAN = float("nan")
_NAMES = DTYPES["steps"].names or ()
_MEASURED = _NAMES[_NAMES.index("lr") + 1 : _NAMES.index("t_data_s")]


class StepLog:
    """Writes step records as rows of the table `steps`, and what has no column there to the table `metrics`.

    Args:
        log: the rank's log.
        clock: of the rank's device; on a GPU records wait until `LAZY_STEPS` have gathered.
        layers: names of the parameters, [L].
        is_first: whether it is rank 0, which writes what is measured of a shared model's gradient and has no column.
    """

    def __init__(self, log: RunLog, clock: Clock, layers: Sequence[str] = (), is_first: bool = True) -> None:
        self._log, self._is_lazy, self._layers, self._is_first = log, clock.is_lazy, layers, is_first
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
        """Take a step's record; it is written once its waiting is known."""
        now = time.monotonic()
        if not self._waiting:
            self._oldest = now
        self._waiting.append(record)
        if not self._is_lazy or len(self._waiting) >= LAZY_STEPS or now - self._oldest >= FLUSH_AFTER_S:
            settled = 0
            while settled < len(self._waiting) and self._waiting[settled].transfer is not None:
                settled += 1
            self._write_first(settled)

    def flush(self) -> None:
        """Write all that there is."""
        self._write_first(len(self._waiting))

    def _write_first(self, count: int) -> None:
        records, self._waiting = self._waiting[:count], self._waiting[count:]
        values = iter(_fetch([t for record in records for t in _tensors(record)]))
        for record in records:
            self._write(record, values)

    def _write(self, record: StepRecord, values: Iterator[float]) -> None:
        shared = {name: next(values) for name in record.columns}
        if self._is_first:
            self._write_metrics(record.step, ALL, shared)
        if record.layer_sq_norms is not None:
            for name, norm in zip(self._layers, record.layer_sq_norms.tolist(), strict=True):
                self._log.append_row("layers", (record.step, name, norm))
        for kind, text in record.events:
            self._log.append_row("events", (record.step, kind, text))
        share = 1.0 / len(record.clients)
        update = share * sum(seconds(*span) for span in record.update)
        sync = share * sum(seconds(*span) for span in record.sync)
        transfer = _NAN if record.transfer is None else min(share * record.transfer, sync)
        total = count = 0.0
        for client in record.clients:
            own = {name: next(values) for name in client.columns}
            self._write_metrics(record.step, client.client, own)
            found = {**shared, **own}
            if client.num_samples:
                total, count = total + found["loss"] * client.num_samples, count + client.num_samples
            data, compute = seconds(*client.data), seconds(*client.compute) + update
            self._log.append_row(
                "steps",
                (
                    *(record.step, record.round, record.epoch, client.client, client.num_samples, record.num_samples),
                    *(found.get("loss", _NAN), record.lr),
                    *(found.get(name, _NAN) for name in _MEASURED),
                    *(data, compute, sync, sync - transfer, transfer, data + compute + sync),
                ),
            )
        if count:
            self.last_loss = total / count

    def _write_metrics(self, step: int, client: int, values: Mapping[str, float]) -> None:
        """What transforms tell besides the columns of the table `steps`."""
        for name, value in values.items():
            if name not in _NAMES:
                self._log.append_row("metrics", (step, client, name, value))


def _tensors(record: StepRecord) -> Iterator[Tensor]:
    """A record's numbers on the device, in the order in which `_write` takes them."""
    yield from record.columns.values()
    for client in record.clients:
        yield from client.columns.values()


def _fetch(tensors: list[Tensor]) -> list[float]:
    """All of them in one copy."""
    return [float(x) for x in torch.stack([t.double() for t in tensors]).tolist()] if tensors else []
