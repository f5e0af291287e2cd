"""A teacher does the same in one process, under DistributedDataParallel and under Horovod."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclbfl.launch.mpirun import run_mpirun

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).with_name("teacher_program.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("taught")
    assert run_mpirun(2, [sys.executable, str(PROGRAM), str(folder)]) == 0
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["residual", "subspace", "mse"])
def test_ranks_are_the_passes_of_one_process(found: list[dict[str, Any]], kind: str) -> None:
    parameters, told = found[0][f"plain {kind}"]
    assert all("teacher noise" in step for step in told)
    for wrap in ("ddp", "hvd"):
        for rank in range(2):
            others, also = found[rank][f"{wrap} {kind}"]
            torch.testing.assert_close(others, parameters, rtol=1e-7, atol=1e-9)
            assert [set(step) for step in also] == [set(step) for step in told]
            for one, other in zip(told, also, strict=True):
                assert other == pytest.approx(one, rel=1e-6, abs=1e-9)
        assert torch.equal(found[0][f"{wrap} {kind}"][0], found[1][f"{wrap} {kind}"][0]), "ranks part"
