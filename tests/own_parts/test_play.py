"""The example without images: a set, a net and a counting loss of the user's, on ranks, killed and gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hpclbfl.api.runs import read_run as read_result
from hpclbfl.runs.log.reader import read_run
from tests.own_parts.conftest import Workplace
from tests.own_parts.test_training import KILLING, is_equal, weights
from tests.training.test_checkpoint import untimed

SHORT = ("precision=float64", "stop={steps: 20}", "evaluate={every_steps: 10}", "checkpoint={every_steps: 5}")
SGD = "optimizer={name: sgd, lr: 0.5}"


def losses(workplace: Workplace, run: str) -> np.ndarray:
    table = read_run(workplace / run).tables["steps"]
    return np.sort(table[["step", "client", "loss"]], order=["step", "client"])["loss"]


@pytest.mark.slow
def test_it_learns_and_tells_its_metrics(workplace: Workplace) -> None:
    said = workplace.run("train", "play.yaml", "--run-dir", "run")
    assert "play FA, natural: loss 2." in said and "top-1" not in said
    run = read_run(workplace / "run")
    evals, metrics = run.tables["evals"], run.tables["metrics"]
    assert np.isnan(evals["top1"]).all() and np.isnan(evals["top5"]).all()
    assert set(metrics["client"]) == {-1} and set(metrics["name"]) == {b"test accuracy", b"test perplexity"}
    last = {row["name"]: row["value"] for row in metrics[metrics["step"] == 59]}
    # A third of the characters, where one in 36 would be guessed.
    assert last[b"test accuracy"] > 0.3
    assert last[b"test perplexity"] == pytest.approx(np.exp(evals["loss"][-1]))
    done = json.loads((workplace / "run" / "DONE.json").read_text())
    assert (done["top1"], done["top5"], done["loss"]) == (None, None, pytest.approx(evals["loss"][-1]))
    # Every line is its speaker's: five clients of twelve.
    assert "60 training samples" in said and (workplace / "run" / "parts").exists()


@pytest.mark.slow
def test_every_command_takes_samples_without_classes(workplace: Workplace) -> None:
    workplace.run("train", "play.yaml", *SHORT, "--run-dir", "run")
    said = workplace.call("data", "info", "play.yaml").stdout
    assert said.count(" 12      12") + said.count(" 12     12") == 5 and "no classes, 15 test samples" in said
    said = workplace.run("sharpness", "run", "--samples", "16", "--iterations", "2")
    assert "8,164 parameters, 16 training samples" in said
    assert "loss" in workplace.call("report", "run").stdout
    done = workplace.call("data", "pack", "play.py:Play", "-o", "play.h5")
    assert (done.returncode, done.stderr) == (
        2,
        "hpclbfl: error: data pack: play.py:Play is no set of images: a packed file holds nothing else\n",
    )
    assert read_result(workplace / "run").top1 is None


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["{kind: bsp}", "{kind: fedavg, local_steps: 4}"])
def test_killed_and_resumed_on_two_ranks_it_is_bit_identical(workplace: Workplace, sync: str) -> None:
    text = (workplace / "schedules.py").read_text()
    (workplace / "schedules.py").write_text(text + KILLING)
    words = ("launch", "-np", "2", "play.yaml", *SHORT, f"sync={sync}", "schedule.kind=schedules.py:Killing")
    workplace.run(*words, "--run-dir", "whole")
    killed = workplace.call(*words, "--run-dir", "cut", KILL_FROM_EPOCH="4.1")
    assert killed.returncode == 137 and "rank 1" in killed.stderr
    (workplace / "play.py").write_text("raise SystemExit('edited')\n")
    said = workplace.run(*words, "--run-dir", "cut")
    assert said.count("play.py has changed since the run began") == 3 and "resumes after step 10" in said
    assert untimed(read_run(workplace / "cut")) == untimed(read_run(workplace / "whole"))
    assert is_equal(workplace / "cut", workplace / "whole")


@pytest.mark.mpi
@pytest.mark.parametrize(
    "options",
    [
        ("sync={kind: bsp}", "gradients={extrapolation_lr: 0.1}", "batching={local_batch_size: [1, 5, 2, 4, 3]}"),
        ("sync={kind: fedavg, local_steps: 4}", "batching={local_batch_size: [1, 5, 2, 4, 3]}"),
    ],
    ids=["bsp, extrapolated", "fedavg"],
)
def test_one_two_and_four_ranks_agree(workplace: Workplace, options: tuple[str, ...]) -> None:
    """Invariant 1 for a loss whose counts differ from sample to sample and from rank to rank."""
    words = ("play.yaml", *SHORT, SGD, *options)
    workplace.run("train", *words, "--run-dir", "1")
    for size in ("2", "4"):
        workplace.run("launch", "-np", size, *words, "--run-dir", size)
        np.testing.assert_allclose(losses(workplace, size), losses(workplace, "1"), rtol=1e-6)
        one, other = (read_run(workplace / run).tables["metrics"]["value"] for run in ("1", size))
        np.testing.assert_allclose(other, one, rtol=1e-6)


@pytest.mark.mpi
def test_unequal_batches_on_ranks_equal_one_large_batch(workplace: Workplace) -> None:
    """Invariant 2: the gradient is the sum over characters / their number, whoever holds them."""
    words = ("play.yaml", *SHORT, SGD, "sync={kind: bsp}", "partition={kind: iid, reshuffle: true}")
    workplace.run("train", *words, "clients=1", "batching.local_batch_size=15", "--run-dir", "one")
    split = "batching={local_batch_size: [1, 5, 2, 4, 3]}"
    workplace.run("launch", "-np", "2", *words, split, "--run-dir", "split")
    one, other = weights(workplace / "one"), weights(workplace / "split")
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=1e-9, atol=1e-12)
