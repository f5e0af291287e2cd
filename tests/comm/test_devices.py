from __future__ import annotations

import pytest
import torch

from hpclbfl.comm import devices
from hpclbfl.comm.devices import Seat
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.errors import EnvironmentFault

A, B, CPU = Seat("n1", "GPU-a"), Seat("n1", "GPU-b"), Seat("n1", "")


@pytest.mark.parametrize(
    ("seats", "shares_gpus"),
    [([CPU], True), ([CPU, CPU], False), ([A, B], False), ([A, A], True), ([A, Seat("n2", "GPU-c")], False)],
)
def test_seats_that_go_together(seats: list[Seat], shares_gpus: bool) -> None:
    devices.check(seats, shares_gpus)


def test_two_ranks_on_one_gpu_are_refused_where_the_engine_cannot_share_it() -> None:
    with pytest.raises(EnvironmentFault) as refused:
        devices.check([A, B, A], shares_gpus=False)
    assert str(refused.value) == (
        "ranks 0 and 2 share a GPU of n1, which NCCL cannot: start one rank for each GPU (its clients take turns), or "
        "hide the GPUs (CUDA_VISIBLE_DEVICES=)"
    )


@pytest.mark.parametrize(("seats", "have", "lack"), [([A, Seat("n2", "")], 0, 1), ([Seat("n2", ""), CPU, A], 2, 0)])
def test_some_ranks_with_a_gpu_and_some_without_are_refused(seats: list[Seat], have: int, lack: int) -> None:
    with pytest.raises(EnvironmentFault) as refused:
        devices.check(seats, shares_gpus=True)
    assert str(refused.value) == (
        f"rank {have} (n1) has a GPU and rank {lack} (n2) none: start ranks where all have one, or hide the GPUs from "
        "all (CUDA_VISIBLE_DEVICES=)"
    )


class _Gpus:
    """A node with two GPUs, of which a rank sees those whose numbers are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, visible: list[int]) -> None:
        self.default, self.own = object(), object()
        self.current = self.default
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "device_count", lambda: len(visible))
        monkeypatch.setattr(
            cuda, "get_device_properties", lambda index: type("Properties", (), {"uuid": f"GPU-{visible[index]}"})
        )
        monkeypatch.setattr(cuda, "set_device", lambda index: None)
        monkeypatch.setattr(cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(cuda, "default_stream", lambda: self.default)
        monkeypatch.setattr(cuda, "Stream", lambda: self.own)
        monkeypatch.setattr(cuda, "set_stream", lambda stream: setattr(self, "current", stream))


class _Rank(LocalCommunicator):
    """A rank of two whose peer has another GPU, whatever number each knows its own by."""

    def __init__(self, engine: str, local_rank: int) -> None:
        self.engine, self.local_rank, self.local_size, self.shares_gpus = engine, local_rank, 2, False
        self.said: list[Seat] = []

    def allgather(self, row: Seat) -> list[Seat]:
        self.said.append(row)
        return [row, Seat(row.host, "GPU-of-the-other")]


def test_ranks_that_see_one_gpu_each_have_unlike_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    seats = []
    for number in range(2):
        _Gpus(monkeypatch, visible=[number])
        seats.append(devices.seat_of(_Rank("horovod", local_rank=number)))
    assert [seat.gpu for seat in seats] == ["GPU-0", "GPU-1"]
    # Two ranks that see both share none either; three do.
    _Gpus(monkeypatch, visible=[0, 1])
    seats = [devices.seat_of(_Rank("horovod", local_rank=number)) for number in range(3)]
    assert seats.count(seats[1]) == 1 and seats.count(seats[0]) == 2


def test_a_rank_that_sees_one_gpu_alone_does_not_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _Gpus(monkeypatch, visible=[1])
    rank = _Rank("horovod", local_rank=1)
    assert devices.choose(rank) == torch.device("cuda", 0)
    assert rank.said[0].gpu == "GPU-1"


@pytest.mark.parametrize("engine", ["horovod", "local"])
def test_beside_horovod_the_work_is_not_on_the_default_stream(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    gpus = _Gpus(monkeypatch, visible=[0, 1])
    assert devices.choose(_Rank(engine, local_rank=1)) == torch.device("cuda", 1)
    assert gpus.current is (gpus.own if engine == "horovod" else gpus.default)
