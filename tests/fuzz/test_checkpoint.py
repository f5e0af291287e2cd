"""Checkpoints: damaged files, and parts that were made up, their checksums right."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.errors import DataError
from hpclbfl.core.state import checkpointed_types
from hpclbfl.runs.tensorfile import read_tensors
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from hpclbfl.training.snapshot import load_state
from tests.fuzz.budget import fuzz
from tests.training.test_checkpoint import job_of

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_TENSORS = st.lists(st.integers(0, 4), max_size=3).flatmap(
    lambda shape: st.sampled_from([torch.float64, torch.float32, torch.int64]).map(
        lambda dtype: torch.ones(shape, dtype=dtype)
    )
)
_VALUES = _PLAIN | _TENSORS | st.lists(_PLAIN, max_size=4) | st.dictionaries(st.text(max_size=3), _PLAIN, max_size=2)
_PLACES = st.lists(st.integers(0, 30), min_size=1, max_size=6)


def changed(part: Any, places: list[int], value: Any) -> Any:
    """The part with one value in it replaced: the places count through keys and entries, all the way down."""
    if isinstance(part, dict) and part:
        key = list(part)[places[0] % len(part)]
        inner = changed(part[key], places[1:], value) if len(places) > 1 else value
        return {**part, key: inner}
    if isinstance(part, list | tuple) and part:
        index = places[0] % len(part)
        inner = changed(part[index], places[1:], value) if len(places) > 1 else value
        return type(part)([*part[:index], inner, *part[index + 1 :]])
    return value


def save(toy_set: Path, name: str, run: Path) -> Any:
    """A finished run's last checkpoint, read, and an experiment that it fits."""
    job = job_of(toy_set, name)
    run_job(job, run)
    (*_, folder) = sorted((run / "checkpoints").iterdir())
    step = int(folder.name.removeprefix("step-"))
    clients = {
        client: read_tensors(folder / f"client-{client:05d}.pt", None, checkpointed_types()) for client in range(4)
    }
    state = make_state(job, LocalCommunicator())
    return state, step, read_tensors(folder / "shared.pt", None, checkpointed_types()), clients, folder


@pytest.mark.parametrize("name", ["bsp", "fedavg"])
def test_checkpoint_parts(toy_set: Path, tmp_path: Path, name: str) -> None:
    state, step, shared, clients, _ = save(toy_set, name, tmp_path)
    load_state(state, step, shared, clients)

    def check(example: tuple[int, list[int], Any]) -> None:
        who, places, value = example
        parts = {**clients} if who < 0 else {**clients, who: changed(clients[who], places, value)}
        whole = changed(shared, places, value) if who < 0 else shared
        try:
            # What fits can be restored, whatever it is.
            load_state(state, step, copy.deepcopy(whole), copy.deepcopy(parts))
        except DataError as error:
            assert "\n" not in str(error) and "a checkpoint does not fit this job: " not in str(error)

    assert fuzz(st.tuples(st.integers(-4, 3), _PLACES, _VALUES), check) > 0


def test_checkpoint_files(toy_set: Path, tmp_path: Path) -> None:
    _, _, _, _, folder = save(toy_set, "bsp", tmp_path / "run")
    whole = (folder / "shared.pt").read_bytes()
    path = tmp_path / "part.pt"

    def check(example: tuple[int, bytes, int]) -> None:
        place, piece, cut = example
        place %= len(whole)
        content = whole[:place] + piece + whole[place + len(piece) : len(whole) - cut % 200]
        path.write_bytes(content)
        try:
            read_tensors(path, None, checkpointed_types())
        except DataError as error:
            assert "\n" not in str(error)

    assert fuzz(st.tuples(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 400)), check) > 0
