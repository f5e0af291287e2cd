"""A GradientScaler does the same in every setting: plain, DDP, Horovod; with AMP, own clipping, failed steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpclbfl.launch.mpirun import bundled_environment, run_mpirun

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).with_name("attach_program.py")
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ODD, FACTOR = 4, 3.0

Results = dict[str, dict[str, torch.Tensor]]

# Setting under Horovod or DDP -> the plain one that it has to equal.
EXACT = {
    "hvd": "plain",
    "hvd_manual": "plain",
    "hvd_reduces_twice": "plain",
    "hvd_agrees": "plain",
    "hvd_clip": "plain_clip",
    "hvd_leaves_out": "plain_leaves_out",
    "hvd_manual_leaves_out": "plain_leaves_out",
    "hvd_raises": "plain_raises",
    "hvd_manual_raises": "plain_raises",
    "hvd_raises_before": "plain_raises_before",
    "hvd_manual_raises_before": "plain_raises_before",
}
SPREAD = {"ddp": "plain", "ddp_agrees": "plain"}
MIXED = ("plain_amp_fused", "plain_amp_fused_explicit", "hvd_amp_fused", "hvd_amp_fused_explicit")


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Results, dict[str, str]]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("two")
    assert run_mpirun(2, [sys.executable, str(PROGRAM), str(folder)]) == 0
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, dict[str, str]]:
    """What one rank found: Horovod without anything to reduce."""
    folder = tmp_path_factory.mktemp("one")
    environment = {**os.environ, **bundled_environment(os.environ)}
    subprocess.run([sys.executable, str(PROGRAM), str(folder)], env=environment, check=True, timeout=120)
    found: tuple[Results, dict[str, str]] = torch.load(folder / "rank0.pt")
    return found


def assert_equal(results: Results, name: str, like: str, tolerance: float) -> None:
    found, expected = results[name], results[like]
    torch.testing.assert_close(found["rows"][:, 2], expected["rows"][:, 2], rtol=0, atol=0, msg=f"scales of {name}")
    for key in ("rows", "parameters"):
        torch.testing.assert_close(
            found[key], expected[key], rtol=tolerance, atol=tolerance, equal_nan=True, msg=f"{key} of {name}"
        )


def test_settings_equal_each_other_on_two_ranks(on_two: list[tuple[Results, dict[str, str]]]) -> None:
    for results, _ in on_two:
        for name, like in (EXACT | SPREAD).items():
            assert_equal(results, name, like, 1e-9)
        for name in (*MIXED, "ddp_amp_fused"):
            assert_equal(results, name, "plain_amp", 1e-5)


def test_decisions_are_the_same_on_both_ranks(on_two: list[tuple[Results, dict[str, str]]]) -> None:
    (first, _), (second, _) = on_two
    for name, found in first.items():
        for key, value in found.items():
            torch.testing.assert_close(second[name][key], value, rtol=0, atol=0, equal_nan=True, msg=f"{key} of {name}")
        # Both branches of the gate have been taken.
        assert set(found["rows"][:, 2].tolist()) == {1.0, FACTOR}


def test_horovod_on_one_rank(on_one: tuple[Results, dict[str, str]]) -> None:
    # With nothing to reduce, it need not wait for the second call of the hook, before which the other hook raises.
    for name, like in (EXACT | {"hvd_raises_before": "plain_raises"}).items():
        assert_equal(on_one[0], name, like, 1e-9)
    for name in MIXED:
        assert_equal(on_one[0], name, "plain_amp", 1e-5)


def test_a_step_that_is_not_taken_is_no_predecessor(on_two: list[tuple[Results, dict[str, str]]]) -> None:
    for name in ("plain_amp", "plain_amp_fused", "hvd_amp_fused", "hvd_leaves_out", "hvd_raises_before"):
        rows = on_two[0][0][name]["rows"]
        assert len(rows) == 9
        before, after = rows[ODD - 1, 0], rows[ODD, 0]
        torch.testing.assert_close(rows[ODD, 1], (after - before).abs() / before, rtol=1e-12, atol=0)


def test_errors(on_one: tuple[Results, dict[str, str]], on_two: list[tuple[Results, dict[str, str]]]) -> None:
    for _, errors in (on_one, *on_two):
        assert "RuntimeError: measure() needs reduced gradients: call optimizer.synchronize()" in errors["measure"]
        assert "RuntimeError: step(closure)" in errors["closure"]
    assert "ValueError: Horovod's Adasum reduces updates" in on_two[0][1]["adasum"]


def test_examples() -> None:
    environment = {**os.environ, **bundled_environment(os.environ)}
    commands = {
        "plain.py": [],
        "ddp.py": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "horovod_script.py": ["-c", LAUNCH, sys.executable],
    }
    printed = {}
    for name, words in commands.items():
        command = [sys.executable, *words, str(EXAMPLES / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        printed[name] = done.stdout.strip()
        share = re.search(r"loss [01]\.\d+; ([\d.]+)% of 200 steps at X", printed[name])
        assert share and 0 < float(share[1]) < 50, printed[name]
    # The same data and seeds, and a clipping that never binds.
    assert printed["ddp.py"] == printed["horovod_script.py"]


LAUNCH = "import sys; from hpclbfl.launch.mpirun import run_mpirun; sys.exit(run_mpirun(2, sys.argv[1:]))"
