from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpclbfl.algorithms.record import ClientRecord, StepRecord
from hpclbfl.core.clock import Clock, seconds
from hpclbfl.runs.log.reader import read_file
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.steplog import StepLog

ATTRIBUTES: dict[str, str | int | float] = {
    "config": "",
    "provenance": "",
    "rank": 0,
    "attempt": 0,
    "resumed_from_step": 0,
}


def numbers(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def loss(value: float) -> dict[str, torch.Tensor]:
    return numbers(loss=value)


def test_rows_share_what_the_rank_spends_once(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.h5", ATTRIBUTES) as log, StepLog(log, Clock(torch.device("cpu"))) as steps:
        record = StepRecord(step=4, round=2, epoch=0.5, num_samples=48, lr=0.1)
        record.clients.append(ClientRecord(0, 6, (0.0, 0.25), (0.25, 1.0), loss(2.0)))
        record.clients.append(ClientRecord(1, 2, (1.0, 1.5), (1.5, 2.0), loss(4.0)))
        record.clients.append(ClientRecord(2, 0, (2.0, 2.0), (2.0, 2.0)))
        record.sync.append((2.0, 2.75))
        record.update.append((2.75, 3.0))
        record.update.append((3.0, 3.5))
        # A step whose waiting is not known yet is not written.
        steps.add(record)
        assert np.isnan(steps.last_loss)
        record.transfer = 0.15
        later = StepRecord(5, 3, 0.5, 48, 0.1, clients=[ClientRecord(0, 0, (0.0, 0.0), (0.0, 0.0))])
        steps.add(later)
        assert steps.last_loss == pytest.approx((6 * 2 + 2 * 4) / 8)
        assert record.spent() == pytest.approx((2.75, 0.75))
    rows = read_file(tmp_path / "log.h5").tables["steps"]
    assert rows["step"].tolist() == [4, 4, 4, 5] and np.isnan(rows["t_wait_s"][3])
    rows = rows[:3]
    assert rows["client"].tolist() == [0, 1, 2]
    assert rows["local_batch_size"].tolist() == [6, 2, 0]
    assert rows["loss"][:2].tolist() == [2.0, 4.0] and np.isnan(rows["loss"][2])
    np.testing.assert_allclose(rows["t_data_s"], [0.25, 0.5, 0.0])
    # 0.75 s of updates and 0.75 s of synchronisation among three clients.
    np.testing.assert_allclose(rows["t_compute_s"], [1.0, 0.75, 0.25])
    np.testing.assert_allclose(rows["t_sync_s"], [0.25, 0.25, 0.25])
    np.testing.assert_allclose(rows["t_transfer_s"], [0.05, 0.05, 0.05])
    np.testing.assert_allclose(rows["t_wait_s"], [0.2, 0.2, 0.2])
    # The rank's step took from 0 to 3.5 s.
    assert rows["t_step_s"].sum() == pytest.approx(3.5)
    for column in ("grad_sq_norm", "scale", "b_simple"):
        assert np.isnan(rows[column]).all()


def test_norms_change_and_factor_are_the_shared_models_or_the_clients_own(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.h5", ATTRIBUTES) as log, StepLog(log, Clock(torch.device("cpu")), ["w", "b"]) as steps:
        columns = numbers(grad_sq_norm=9.0, grad_change=0.5, scale=4.0, b_simple=64.0)
        shared = StepRecord(0, 0, 0.0, 2, 0.1, columns, torch.tensor([8.0, 1.0]))
        alone = StepRecord(1, 0, 0.0, 4, 0.1)
        for client in range(2):
            shared.clients.append(ClientRecord(client, 1, (0.0, 1.0), (1.0, 2.0), loss(1.0 + client)))
            own = numbers(loss=5.0, local_grad_sq_norm=2.0 + client, grad_change=0.25, scale=1.0)
            alone.clients.append(ClientRecord(client, 1, (0.0, 1.0), (1.0, 2.0), own))
        for record in (shared, alone):
            record.transfer = math.inf
            steps.add(record)
    tables = read_file(tmp_path / "log.h5").tables
    rows = tables["steps"]
    assert rows["loss"].tolist() == [1, 2, 5, 5]
    np.testing.assert_equal(rows["grad_sq_norm"], [9, 9, np.nan, np.nan])
    np.testing.assert_equal(rows["local_grad_sq_norm"], [np.nan, np.nan, 2, 3])
    np.testing.assert_equal(rows["b_simple"], [64, 64, np.nan, np.nan])
    assert rows["grad_change"].tolist() == [0.5, 0.5, 0.25, 0.25]
    assert rows["scale"].tolist() == [4, 4, 1, 1]
    assert (rows["t_wait_s"] == 0).all()
    assert tables["layers"].tolist() == [(0, b"w", 8.0), (0, b"b", 1.0)]


def test_lazy_records_wait_and_are_written_at_the_end(tmp_path: Path) -> None:
    clock = Clock(torch.device("cpu"))
    clock.is_lazy = True
    with RunLog(tmp_path / "log.h5", ATTRIBUTES) as log, StepLog(log, clock) as steps:
        for step in range(60):
            record = StepRecord(step, 0, 0.0, 1, 0.1)
            record.clients.append(ClientRecord(0, 1, (0.0, 1.0), (1.0, 2.0), loss(float(step))))
            record.transfer = 0.0
            steps.add(record)
            assert steps.last_loss == 49.0 if step >= 49 else np.isnan(steps.last_loss)
    assert read_file(tmp_path / "log.h5").tables["steps"]["loss"].tolist() == [float(s) for s in range(60)]


def test_marks_of_one_clock_alone_can_be_compared() -> None:
    clock = Clock(torch.device("cpu"))
    begin = clock.mark()
    assert seconds(begin, clock.mark()) >= 0
    with pytest.raises(TypeError, match="two different clocks"):
        seconds(begin, object())  # type: ignore[arg-type]
