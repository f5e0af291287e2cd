"""What a checkpoint may hold."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.batching import Plan
from hpclbfl.core.state import check_restorable, checkpointed, checkpointed_types
from hpclbfl.gradients.scaler import ScalerState
from hpclbfl.runs.tensorfile import read_tensors, to_bytes
from hpclbfl.training.session import run_job
from tests.conftest import make_job


@dataclass(frozen=True)
class Unmarked:
    """A state that cannot be restored."""

    number: int = 1


@checkpointed
@dataclass(frozen=True)
class Marked:
    """State of a component."""

    values: tuple[Any, ...]


GOOD = [None, 1.5, "x", torch.ones(2), {"a": [1, (2, torch.zeros(()))]}, ScalerState(), Plan((1, 2), "why")]
BAD = {
    "an unmarked class": (Unmarked(), "tests.core.test_state.Unmarked"),
    "one within a list": ([1, Unmarked()], r"part\[1\] cannot be restored .*test_state.Unmarked"),
    "one within a marked one": (Marked((Unmarked(),)), r"part.values\[0\] cannot"),
    "a number of NumPy's": ({"x": np.float64(1)}, "part.x cannot be restored .*numpy.float64"),
    "an array": (np.zeros(2), "numpy.ndarray"),
    "a function": (print, "builtins.builtin_function_or_method"),
}


@pytest.mark.parametrize("value", [*GOOD, Marked((1, torch.ones(1))), OrderedDict(a=1)], ids=lambda v: type(v).__name__)
def test_accepted_states_are_restored(tmp_path: Path, value: Any) -> None:
    check_restorable(value, "part")
    (tmp_path / "part.pt").write_bytes(to_bytes(value))
    found = read_tensors(tmp_path / "part.pt", None, checkpointed_types())
    assert type(found) is type(value)


@pytest.mark.parametrize("name", list(BAD))
def test_a_state_that_cannot_be_restored_is_refused_with_its_place(name: str) -> None:
    value, message = BAD[name]
    with pytest.raises(TypeError, match=message):
        check_restorable(value, "part")


def test_only_dataclasses_are_marked() -> None:
    with pytest.raises(TypeError, match="int is not a dataclass"):
        checkpointed(int)


def test_a_state_without_a_mark_fails_at_the_save(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpclbfl.batching.fixed.Fixed.init", lambda self, sizes: (Plan(sizes, "start"), Unmarked()))
    monkeypatch.setattr("hpclbfl.batching.fixed.Fixed.update", lambda self, seen, state: (None, state))
    with pytest.raises(SystemExit):
        run_job(make_job(toy_set, stop={"steps": 2}, checkpoint={"every_steps": 1}), tmp_path)
    assert (
        "shared.policy cannot be restored from a checkpoint: it is a tests.core.test_state.Unmarked"
        in (capfd.readouterr().err.splitlines()[-1])
    )
    assert not list((tmp_path / "checkpoints").iterdir())
