from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch

from hpclbfl.comm import horovod


class _Stream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self._calls = name, calls

    def wait_stream(self, other: _Stream) -> None:
        self._calls.append(f"{self.name} waits for {other.name}")


class _OnGpu:
    """A tensor, as far as a reduction asks."""

    is_cuda = True


@pytest.mark.parametrize("is_cuda", [True, False])
def test_a_result_is_read_after_the_stream_that_horovod_put_it_on(
    monkeypatch: pytest.MonkeyPatch, is_cuda: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: _Stream("ours", calls))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: _Stream("the default one", calls))

    class Hvd:
        @staticmethod
        def synchronize(handle: int) -> None:
            calls.append(f"synchronize {handle}")

    flat: Any = _OnGpu() if is_cuda else torch.zeros(1)
    horovod._Reduction(Hvd, [7], [flat], lambda piece: calls.append("read")).wait()
    waits = ["ours waits for the default one"] if is_cuda else []
    assert calls == ["synchronize 7", *waits, "read"]


@pytest.mark.parametrize("is_crowded", [True, False])
@pytest.mark.parametrize("is_gpu", [True, False])
def test_settings_are_there_however_a_rank_was_started(
    monkeypatch: pytest.MonkeyPatch, is_gpu: bool, is_crowded: bool
) -> None:
    monkeypatch.setattr(os, "environ", {"HOROVOD_STALL_CHECK_TIME_SECONDS": "7"})
    horovod.set_defaults(is_gpu, is_crowded)
    own = {"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"} if is_gpu else {"HOROVOD_CYCLE_TIME": "5"}
    if is_crowded and not is_gpu:
        own |= {"OMPI_MCA_mpi_yield_when_idle": "1", "HOROVOD_CYCLE_TIME": "2"}
    assert os.environ == {
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "7",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1800",
        "HOROVOD_FUSION_THRESHOLD": "0",
        **own,
    }


def test_what_the_user_has_set_of_mpi_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"OMPI_MCA_mpi_yield_when_idle": "0"}
    monkeypatch.setattr(os, "environ", own)
    horovod.set_defaults(is_gpu=False, is_crowded=True)
    assert own["OMPI_MCA_mpi_yield_when_idle"] == "0"


@pytest.mark.parametrize(
    ("local_size", "threads", "cores", "crowded"),
    [(2, 1, 2, True), (2, 1, 4, False), (1, 1, 2, False), (1, 8, 8, True), (4, 3, 16, False), (4, 4, 16, True)],
)
def test_a_core_per_thread_and_one_for_horovod(local_size: int, threads: int, cores: int, crowded: bool) -> None:
    assert horovod.shares_cores(local_size, threads, cores) is crowded


def test_threads_of_the_lowest_priority_leave_the_others_alone() -> None:
    before, may_end, ids = horovod.threads(), threading.Event(), []
    thread = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), may_end.wait()))
    thread.start()
    try:
        started = horovod.threads() - before
        assert started == set(ids)
        horovod.lower_priority(started)
        assert os.getpriority(os.PRIO_PROCESS, ids[0]) == 19
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0
    finally:
        may_end.set()
        thread.join()
    # It has ended.
    horovod.lower_priority(started)


@pytest.mark.parametrize(
    ("numel", "dtype", "sizes"),
    [
        (0, torch.float32, [0]),
        (1 << 19, torch.float32, [1 << 19]),
        ((1 << 19) + 5, torch.float32, [1 << 19, 5]),
        (1 << 19, torch.float64, [1 << 18] * 2),
    ],
)
def test_a_tensor_on_the_host_travels_in_pieces(numel: int, dtype: torch.dtype, sizes: list[int]) -> None:
    flat = torch.zeros(numel, dtype=dtype)
    pieces = horovod.pieces_of(flat)
    assert [piece.numel() for piece in pieces] == sizes
    assert pieces[0].data_ptr() == flat.data_ptr()


def test_pieces_are_not_too_many() -> None:
    pieces = horovod.pieces_of(torch.empty(200 * (1 << 19)))
    assert len(pieces) == 128 and sum(piece.numel() for piece in pieces) == 200 * (1 << 19)


def test_every_piece_is_read_when_it_is_there() -> None:
    calls: list[str] = []

    class Hvd:
        @staticmethod
        def synchronize(handle: int) -> None:
            calls.append(f"synchronize {handle}")

    pieces = torch.arange(5.0).split(2)
    horovod._Reduction(Hvd, [3, 4, 5], pieces, lambda piece: calls.append(f"{piece.tolist()}")).wait()
    assert calls == ["synchronize 3", "[0.0, 1.0]", "synchronize 4", "[2.0, 3.0]", "synchronize 5", "[4.0]"]
