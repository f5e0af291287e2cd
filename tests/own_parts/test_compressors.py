"""TernGrad, which the examples bring: without bias, on two ranks, killed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpclbfl.comm.compression import Key
from hpclbfl.runs.log.reader import read_run
from tests.own_parts.conftest import Workplace
from tests.own_parts.test_examples import SHORT, losses
from tests.own_parts.test_training import KILLING, is_equal
from tests.training.test_checkpoint import untimed

TERNARY = "compression={kind: compressors.py:TernGrad, clip: 3.0}"


def test_it_is_unbiased_where_nothing_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "examples" / "own_parts"))
    monkeypatch.delitem(sys.modules, "compressors", raising=False)
    from compressors import TernGrad  # type: ignore[import-not-found]

    codec = TernGrad(TernGrad.Config(kind="x", clip=100.0))
    values = torch.tensor([1.0, -0.25, 0.0, 0.5], dtype=torch.float64)
    total = torch.zeros_like(values)
    for step in range(4000):
        key = Key(0, step, 0, 0)
        codec.decode_(codec.encode(values, key), total, key)
    # Each value's variance is |v| s - v^2, at most s^2 / 4.
    torch.testing.assert_close(total / 4000, values, rtol=0, atol=5 * 0.5 / 4000**0.5)


@pytest.mark.mpi
def test_two_ranks_killed_go_on_and_do_what_one_does(workplace: Workplace) -> None:
    text = (workplace / "schedules.py").read_text()
    (workplace / "schedules.py").write_text(text + KILLING)
    schedule = "schedule={kind: schedules.py:Killing, period_epochs: 2.0}"
    sync = "sync={kind: fedavg, local_steps: 4}"
    words = ("fedprox.yaml", *SHORT, sync, schedule, TERNARY, "gradients={}")
    workplace.run("train", *words, "--run-dir", "one")
    workplace.run("launch", "-np", "2", *words, "--run-dir", "whole")
    killed = workplace.call("launch", "-np", "2", *words, "--run-dir", "cut", KILL_FROM_EPOCH="1.4")
    assert killed.returncode == 137
    (workplace / "compressors.py").write_text("raise SystemExit('edited')\n")
    assert "resumes after step 15" in workplace.run("launch", "-np", "2", *words, "--run-dir", "cut")
    assert untimed(read_run(workplace / "cut")) == untimed(read_run(workplace / "whole"))
    assert is_equal(workplace / "cut", workplace / "whole")
    one, two = losses(workplace / "one"), losses(workplace / "whole")
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-6)
    sent = read_run(workplace / "whole").tables["metrics"]
    assert (sent["value"][sent["name"] == b"sent_mb"] > 0).all()
