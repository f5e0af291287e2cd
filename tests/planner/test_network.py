"""The ring's parameters, from reductions whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpclbfl.comm.compression.volume import Volume
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.planner.network import FITTED, HELD_OUT, SyncRow, fit_ring, message_volume, time_reductions
from tests.planner.conftest import planned_job

MB = 10**6


def ring(num_ranks: int, hop_s: float, bandwidth: float, size: float) -> float:
    return 2 * (num_ranks - 1) * (hop_s + size / (num_ranks * bandwidth))


def rows(num_ranks: int, hop_s: float, bandwidth: float) -> list[SyncRow]:
    return [
        SyncRow(int(part * 40 * MB), k, ring(num_ranks, hop_s, bandwidth, part * 40 * MB) * (1 + late))
        for part in FITTED
        for k, late in enumerate((0.0, 0.0, 0.9))
    ]


@pytest.mark.parametrize("num_ranks", [2, 4, 7])
def test_a_ring_is_found_and_speaks_of_others(num_ranks: int) -> None:
    network = fit_ring(rows(num_ranks, 2e-4, 1.25e9), num_ranks, "mpi", Volume(40 * MB))
    assert network.hop_s == pytest.approx(2e-4)
    assert network.bandwidth_bytes_per_s == pytest.approx(1.25e9)
    for others in (2, 3, 16):
        assert network.seconds(others) == pytest.approx(ring(others, 2e-4, 1.25e9, 40 * MB))
        assert network.seconds(others, 10 * MB) == pytest.approx(ring(others, 2e-4, 1.25e9, 10 * MB))
    assert network.seconds(1) == 0.0


def test_small_messages_that_fit_a_cache_do_not_mislead() -> None:
    # As measured: 22 MB in 16 ms, 45 in 50, 67 in 76; what counts is the job's size.
    timed = [SyncRow(22 * MB, 0, 0.016), SyncRow(45 * MB, 0, 0.050), SyncRow(67 * MB, 0, 0.076)]
    network = fit_ring(timed, 2, "horovod", Volume(45 * MB))
    assert network.hop_s == 0.0
    assert network.seconds(2) == pytest.approx(0.050, rel=0.1)


def test_what_a_job_reduces(tmp_path: Path) -> None:
    data = tmp_path / "x.h5"
    shapes = [(10, 20), (50,)]

    def volume(num_ranks: int = 2, **sections: Any) -> Volume:
        return message_volume(planned_job(data, **sections), shapes, 4, 24, num_ranks)

    assert volume() == (1000, 0)
    assert volume(sync={"kind": "fedavg", "local_steps": 2}) == (1024, 0)
    assert volume(gradients={"compression": "fp16"}) == (500, 0)
    # A value out of ten: 20 and 5 of them, with their places.
    top = volume(compression={"kind": "topk", "ratio": 0.1})
    assert top == (1000, 20 * 8 + 24 + 24)
    # Gathered by two ranks, each sends its payload; by ten, it would send more than the ring.
    assert top.on(2) == 208 and top.on(8) == 832 and top.on(10) == 1000
    assert volume(compression={"kind": "randomk", "ratio": 0.1}) == (25 * 4, 0)
    assert volume(compression={"kind": "powersgd", "rank": 2}) == (4 * (2 * 30 + 50), 0)
    # A byte out, and one back; two on the way back where two clients' 127 levels meet.
    assert volume(1, compression={"kind": "qsgd"}) == (250, 0)
    assert volume(2, compression={"kind": "qsgd"}) == (375, 0)
    assert volume(compression={"kind": "signsgd"}) == (1000, 8 + 25 + 7 + 8 + 7 + 1)


def test_reductions_are_timed_as_training_makes_them(tmp_path: Path) -> None:
    class Recorder(LocalCommunicator):
        def __init__(self) -> None:
            self.pieces: list[int] = []

        def reduce_(self, flat: torch.Tensor, name: str, on_chunk: object = None):  # type: ignore[no-untyped-def,override]
            self.pieces.append(flat.nbytes)
            return super().reduce_(flat, name)

    comm = Recorder()
    found = time_reductions(planned_job(tmp_path / "x.h5", comm={"bucket_mb": 1.0}), comm, 4 * MB, 2)
    sizes = [int(part * 4 * MB) for part in (*FITTED, *HELD_OUT)]
    assert [row.size_bytes for row in found[::2]] == sizes
    assert max(comm.pieces) == MB
    comm = Recorder()
    job = planned_job(tmp_path / "x.h5", sync={"kind": "fedavg", "local_steps": 2})
    assert max(row.seconds for row in time_reductions(job, comm, 4 * MB, 1)) < 1.0
    assert set(comm.pieces) == set(sizes)
