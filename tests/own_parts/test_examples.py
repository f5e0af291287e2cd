"""FedProx and a gradient transform, which the examples bring: by hand, in their limits, on two ranks, killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpclbfl.runs.log.reader import read_run
from tests.own_parts.conftest import Workplace
from tests.own_parts.test_training import KILLING, is_equal, weights
from tests.training.test_checkpoint import untimed

SHORT = (
    *("precision=float64", "stop={steps: 24}", "evaluate={every_steps: 12}", "checkpoint={every_steps: 5}"),
    *("data.limit=400", "batching.local_batch_size=8"),
)
PROX = "sync={kind: algorithms.py:FedProx, local_steps: 4, mu: 0.1}"
FREE = "sync={kind: fedavg, local_steps: 4}"


def test_fedprox_is_short() -> None:
    text = Path("docs/examples/own_parts/algorithms.py")
    assert len((Path(__file__).parents[2] / text).read_text().splitlines()) < 80


def losses(run: Path) -> np.ndarray:
    table = read_run(run).tables["steps"]
    found: np.ndarray = np.sort(table[["step", "client", "loss"]], order=["step", "client"])
    return found


@pytest.mark.slow
def test_without_the_proximal_term_it_is_federated_averaging(workplace: Workplace) -> None:
    words = ("train", "fedprox.yaml", *SHORT)
    workplace.run(*words, PROX.replace("0.1", "0"), "--run-dir", "prox")
    workplace.run(*words, FREE, "--run-dir", "fedavg")
    assert is_equal(workplace / "prox", workplace / "fedavg")
    workplace.run(*words, PROX, "--run-dir", "held")
    assert not is_equal(workplace / "held", workplace / "fedavg")


@pytest.mark.slow
def test_a_strong_term_by_hand(workplace: Workplace) -> None:
    """One local step more than one: w2 = w1 - lr (g(w1) + mu (w1 - w0)), with w1 = w0 - lr g(w0)."""
    words = ("train", "fedprox.yaml", "precision=float64", "data.limit=400", "batching.local_batch_size=8", "clients=1")
    words += ("gradients={}", "model={name: vgg_small}", "partition={kind: iid}")

    def train(run: str, sync: str, lr: float, steps: int) -> None:
        changed = (f"sync={{{sync}, local_steps: 2}}", f"optimizer={{lr: {lr}}}", f"stop={{steps: {steps}}}")
        workplace.run(*words, *changed, "--run-dir", run)

    # A step of almost nothing leaves the initial model.
    train("w0", "kind: fedavg", 1e-14, steps=1)
    train("w1", "kind: fedavg", 0.05, steps=1)
    train("w2", "kind: fedavg", 0.05, steps=2)
    train("prox", "kind: algorithms.py:FedProx, mu: 10.0", 0.05, steps=2)
    w0, w1, w2, prox = (weights(workplace / run) for run in ("w0", "w1", "w2", "prox"))
    for key in w0:
        expected = w2[key] - 0.05 * 10.0 * (w1[key] - w0[key])
        torch.testing.assert_close(prox[key], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_what_a_transform_measures_is_in_the_log(workplace: Workplace) -> None:
    """Of the shared gradient once a step, of each client's own in local training."""
    words = ("train", "fedprox.yaml", *SHORT, "stop={steps: 3}")
    for sync, clients in (("sync={kind: bsp}", [-1] * 3), (PROX, [0, 1, 2, 3] * 3)):
        changed = [word for word in words if word != "stop={steps: 24}"]
        workplace.run(*changed, sync, "--run-dir", sync[12:15])
        metrics = read_run(workplace / sync[12:15]).tables["metrics"]
        assert set(metrics["name"]) == {b"removed_norm"} and metrics["client"].tolist() == clients
        assert (metrics["value"] > 0).all()


@pytest.mark.mpi
def test_two_ranks_do_what_one_does(workplace: Workplace) -> None:
    workplace.run("train", "fedprox.yaml", *SHORT, PROX, "--run-dir", "one")
    workplace.run("launch", "-np", "2", "fedprox.yaml", *SHORT, PROX, "--run-dir", "two")
    one, two = losses(workplace / "one"), losses(workplace / "two")
    assert len(one) == 24 * 4
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-6)


@pytest.mark.mpi
@pytest.mark.parametrize("sync", [PROX, "sync={kind: bsp}"], ids=["fedprox", "bsp"])
def test_killed_within_a_round_it_goes_on_bit_for_bit(workplace: Workplace, sync: str) -> None:
    text = (workplace / "schedules.py").read_text()
    (workplace / "schedules.py").write_text(text + KILLING)
    schedule = "schedule={kind: schedules.py:Killing, period_epochs: 2.0}"
    # A checkpoint lies within a round: after steps 5, 10 and 15, rounds end after 4, 8, 12 and 16.
    words = ("launch", "-np", "2", "fedprox.yaml", *SHORT, sync, schedule)
    workplace.run(*words, "--run-dir", "whole")
    killed = workplace.call(*words, "--run-dir", "cut", KILL_FROM_EPOCH="1.4")
    assert killed.returncode == 137 and "rank 1" in killed.stderr
    for name in ("algorithms.py", "transforms.py"):
        (workplace / name).write_text("raise SystemExit('edited')\n")
    assert "resumes after step 15" in workplace.run(*words, "--run-dir", "cut")
    assert untimed(read_run(workplace / "cut")) == untimed(read_run(workplace / "whole"))
    assert is_equal(workplace / "cut", workplace / "whole")
