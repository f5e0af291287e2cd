"""The plain loop over clients, and what is measured of a launch, without ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from hpclbfl.bench import federated, launches, torchrun
from hpclbfl.bench.federation.ranks import _fill, _flat, _plain_loop
from hpclbfl.bench.federation.work import LR, Rounds, Work
from hpclbfl.bench.memory import tree_pss
from hpclbfl.bench.ranks import Task
from hpclbfl.bench.training import write_images
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.errors import EnvironmentFault, RunFailed


@pytest.fixture
def task(tmp_path: Path) -> Task:
    settings = federated.Settings(model="resnet8", batch=4, clients=3, samples=8, timed=1, variants=("loop",))
    write_images(tmp_path, settings.model, 24, passes=1)
    return Task("loop", json.loads(json.dumps(asdict(settings))), str(tmp_path), str(tmp_path), time.time())


def test_a_plain_round_is_the_mean_of_the_clients(task: Task) -> None:
    work, rounds = Work(task), Rounds(task.begun)
    net = _plain_loop(task, LocalCommunicator(), "mpi", rounds)
    mean = _flat(work.net())
    for _ in range(2):
        common, ends = work.net(), []
        _fill(common, mean)
        for client in range(3):
            own = work.net()
            own.load_state_dict(common.state_dict())
            work.train(own, client)
            ends.append(_flat(own))
        mean = torch.stack(ends).mean(0)
    torch.testing.assert_close(_flat(net), mean)
    found = rounds.found("none", net)
    assert found["start_s"] > 0 and len(found["rounds_s"]) == 1
    assert found["norm"] == pytest.approx(
        sum(float(p.detach().square().sum()) for p in net.parameters()) ** 0.5, rel=1e-5
    )


def test_a_clients_first_step_by_hand(task: Task) -> None:
    work = Work(task)
    work.samples = 4
    net, expected = work.net(), work.net()
    inputs, targets = work.samples_of(1)
    torch.nn.functional.cross_entropy(expected(inputs), targets).backward()
    work.train(net, 1)
    for found, start in zip(net.parameters(), expected.parameters(), strict=True):
        assert start.grad is not None
        decayed = start.grad + 5e-4 * start.detach()
        torch.testing.assert_close(found.detach(), start.detach() - LR * decayed)


def test_a_framework_that_did_other_work_is_refused() -> None:
    federated._check_work({"loop": 44.15, "pfl": 44.1501, "mpi": 51.0})
    with pytest.raises(RunFailed, match=r"flower ended with a net of norm 0, loop with 44\.15"):
        federated._check_work({"loop": 44.15, "flower": 0.0})


def test_memory_is_that_of_all_processes_below() -> None:
    code = "import time; held = bytearray(b'x' * 60_000_000); print(flush=True); time.sleep(60)"
    own = tree_pss(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        grown = tree_pss(os.getpid()) - own
        alone = tree_pss(child.pid)
        child.kill()
    assert 55e6 < alone < 120e6
    assert 55e6 < grown < 200e6
    assert tree_pss(child.pid) == 0


def test_a_framework_without_an_environment_is_left_out_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert launches.runnable(("loop", "pfl"), (), peers=("pfl",)) == ("loop",)
    with pytest.raises(EnvironmentFault, match=r"pfl lies in no environment of its own; tools/bench_peers"):
        launches.peer_python("pfl")
    python = tmp_path / "peers" / "pfl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert launches.runnable(("loop", "pfl"), (), peers=("pfl",)) == ("loop", "pfl")
    assert launches.peer_python("pfl") == python


def test_ranks_of_open_mpi_are_named_as_torchrun_names_them() -> None:
    found = {
        f"OMPI_COMM_WORLD_{key}": value
        for key, value in {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}.items()
    }
    torchrun.name_ranks(found)
    assert {key: found[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    assert 1024 < int(torchrun.master_port()["MASTER_PORT"]) < 65536
