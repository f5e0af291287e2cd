"""What a user is told as a run begins and at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpclbfl.data.sampling import GlobalSampler, ShardSampler
from hpclbfl.runs.log.reader import RunLogs, read_run
from hpclbfl.training.notices import notices_at_start
from hpclbfl.training.session import run_job
from tests.conftest import make_job
from tests.training.test_checkpoint import cut_at

ALONE = "the clients trained alone and were never averaged: "
NOBODY = "; what was evaluated, and model.pt, is their average, on which none of them has trained"


def shards(*sizes: int) -> ShardSampler:
    return ShardSampler([np.arange(size) for size in sizes], seed=0)


def told(toy_set: Path, sampler: Any = None, **sections: Any) -> list[str]:
    """On 1438 samples, in batches of 4 for each of four clients."""
    sampler = GlobalSampler(1438, 4, seed=0) if sampler is None else sampler
    sections.setdefault("evaluate", {"every_steps": 10})
    job = make_job(toy_set, **sections)
    return list(notices_at_start(job, job.local_batch_sizes(), sampler, 16, 1438))


def test_nothing_to_tell(toy_set: Path) -> None:
    assert told(toy_set) == []
    assert told(toy_set, sync={"kind": "fedavg", "local_epochs": 16 / 1438}) == []


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((9, 9, 9, 0), "client 3 holds no samples and takes part in nothing"),
        ((0, 9, 9, 0), "clients 0 and 3 hold no samples and take part in nothing"),
        ((0, 0, 9, 0), "clients 0, 1 and 3 hold no samples and take part in nothing"),
    ],
)
def test_empty_shards(toy_set: Path, sizes: tuple[int, ...], line: str) -> None:
    assert told(toy_set, shards(*sizes)) == [line]


def test_many_empty_shards_are_one_short_line(toy_set: Path) -> None:
    sampler = shards(*[9 if client % 10 == 0 else 0 for client in range(1000)])
    line = "900 of 1000 clients (1, 2, 3, 4, 5, ...) hold no samples and take part in nothing"
    assert told(toy_set, sampler, clients=1000) == [line]


@pytest.mark.parametrize(
    ("epochs", "line"),
    [
        (1, "sync.local_epochs 1: 89.875 steps of 16 samples, rounded to 90"),
        (0.001, "sync.local_epochs 0.001: 0.089875 steps of 16 samples, rounded to 1"),
    ],
)
def test_rounded_local_epochs(toy_set: Path, epochs: float, line: str) -> None:
    assert told(toy_set, sync={"kind": "fedavg", "local_epochs": epochs}) == [line]


def test_intervals_shorter_than_a_step(toy_set: Path) -> None:
    lines = told(toy_set, evaluate={"every_epochs": 0.005}, schedule={"warmup_epochs": 0.004})
    assert lines == [
        "evaluate.every_epochs 0.005: a step is 0.01113 epochs, after each of which the net is evaluated",
        "schedule.warmup_epochs 0.004: a step is 0.01113 epochs, the warm-up ends with the first one",
    ]
    assert told(toy_set, evaluate={"every_epochs": 16 / 1438}, schedule={"warmup_epochs": 16 / 1438}) == []


def events(run: RunLogs, kind: bytes) -> list[str]:
    return [text.decode() for k, text in run.tables["events"][["kind", "text"]].tolist() if k == kind]


def test_they_are_on_stderr_and_in_the_log(tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partition = {"kind": "dirichlet", "alpha": 0.01}
    sync = {"kind": "fedavg", "local_epochs": 1.3}
    run_job(make_job(toy_set, partition=partition, clients=11, sync=sync, stop={"steps": 2}), tmp_path)
    lines = events(read_run(tmp_path), b"note")
    assert any("hold no samples and take part in nothing" in line for line in lines)
    assert any(line.startswith("sync.local_epochs 1.3: ") for line in lines)
    err = capsys.readouterr().err.splitlines()
    for line in lines:
        assert sum(shown.endswith(f": note: {line}") for shown in err) == 1, line


@pytest.mark.parametrize(
    ("sync", "steps", "why"),
    [
        ({"kind": "fedavg", "local_steps": 5}, 4, "a round has 5 steps, the run 4"),
        ({"kind": "fedavg", "local_steps": 4}, 4, ""),
        ({"kind": "fedavg", "local_epochs": 1}, 3, "a round has 6 steps, the run 3"),
        (
            {"kind": "post_local", "switch_step": 2, "local_steps": 3},
            4,
            "a round has 3 steps, the run 2 after sync.switch_step",
        ),
        ({"kind": "post_local", "switch_step": 2, "local_steps": 3}, 2, ""),
        ({"kind": "post_local", "switch_step": 2, "local_steps": 2}, 4, ""),
        (
            {"kind": "selsync", "threshold": 1e9, "change": "squared_norm"},
            4,
            "no change of a client's gradient reached sync.threshold 1e+09 after the first step",
        ),
        ({"kind": "selsync", "threshold": 0, "change": "squared_norm"}, 4, ""),
        ({"kind": "selsync", "threshold": 1e9}, 4, ""),
        ({"kind": "bsp"}, 4, ""),
    ],
)
def test_a_run_whose_clients_were_never_averaged_warns_once_at_its_end(
    tmp_path: Path,
    toy_set: Path,
    sync: dict[str, Any],
    steps: int,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_job(make_job(toy_set, sync=sync, stop={"steps": steps}), tmp_path)
    expected = [f"{ALONE}{why}{NOBODY}"] if why else []
    assert events(read_run(tmp_path), b"warning") == expected
    err = capsys.readouterr().err
    assert err.count("never averaged") == len(expected)
    if why:
        assert err.splitlines()[-1].endswith(f": warning: {expected[0]}")


def test_a_lone_client_needs_no_averaging(tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sync = {"kind": "fedavg", "local_steps": 50}
    run_job(make_job(toy_set, clients=1, sync=sync, stop={"steps": 3}), tmp_path)
    assert "never averaged" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("local_steps", [3, 50])
def test_the_warning_covers_the_whole_run(
    tmp_path: Path,
    toy_set: Path,
    local_steps: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An averaging before the checkpoint counts after a resume, though this attempt has seen none."""
    sync, checkpoint = {"kind": "fedavg", "local_steps": local_steps}, {"every_steps": 4}
    job = make_job(toy_set, sync=sync, stop={"steps": 5}, checkpoint=checkpoint)
    with monkeypatch.context() as patch:
        cut_at(patch, 4)
        with pytest.raises(SystemExit):
            run_job(job, tmp_path)
    assert "never averaged" not in capsys.readouterr().err
    run_job(job, tmp_path, resume="must")
    err = capsys.readouterr().err
    assert err.count(f"warning: {ALONE}a round has 50 steps, the run 5{NOBODY}") == (local_steps == 50)
    # A finished run that goes on is over only at its new end: then the first word on it is dropped.
    longer = make_job(toy_set, sync=sync, stop={"steps": 51}, checkpoint=checkpoint)
    run_job(longer, tmp_path)
    assert "never averaged" not in capsys.readouterr().err
    assert events(read_run(tmp_path), b"warning") == []
