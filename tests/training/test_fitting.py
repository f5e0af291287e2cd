"""Checkpoints that were made up, their checksums right: each is passed over for the one before, in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.batching import Plan
from hpclbfl.core.jsonfile import read_json, write_json
from hpclbfl.core.state import checkpointed_types
from hpclbfl.gradients.change import ChangeState
from hpclbfl.runs.log.reader import read_run
from hpclbfl.runs.tensorfile import checksum, read_tensors, to_bytes
from hpclbfl.training.session import run_job
from tests.training.test_checkpoint import cut_at, job_of, untimed

Change = Callable[[dict[str, Any]], object]


def setting(**values: Any) -> Change:
    return lambda part: part.update(values)


def in_optimizer(name: str, value: Any) -> Change:
    return lambda part: part["optimizer"]["state"][0].update({name: value})


def with_state(part: dict[str, Any]) -> None:
    scaler, *rest = part["pipeline"]
    part["pipeline"] = (dataclasses.replace(scaler, detector=ChangeState(previous=torch.zeros(3))), *rest)


SHARED: dict[str, tuple[Change, str]] = {
    "step is a text": (setting(step="x"), "step is 'x': input should be a valid integer"),
    "step is another": (setting(step=7), "step is 7, not 6"),
    "round is missing": (lambda part: part.pop("round"), "round is None"),
    "round is true": (setting(round=True), "round is True: input should be a valid integer"),
    "time is endless": (setting(elapsed_s=float("inf")), "elapsed_s is inf: input should be a finite number"),
    "time is negative": (setting(elapsed_s=-1.0), "elapsed_s is -1.0"),
    "too few positions": (setting(positions=[1, 2]), "positions has 2 clients, not 4"),
    "a negative position": (setting(positions=[-1] * 4), "positions is [-1, -1, -1, -1]"),
    "averaged in the future": (setting(averaged_at=[10**6] * 4), "averaged_at is ahead of positions"),
    "an averaging in the future": (setting(averaged_step=7), "averaged_step is ahead of step"),
    "an averaging of text": (setting(averaged_step="x"), "averaged_step is 'x': input should be a valid integer"),
    "no plan": (setting(plan=None), "plan is a NoneType, not a Plan"),
    "a plan for others": (setting(plan=Plan((4, 4), "x")), "plan has the sizes (4, 4) for 4 clients"),
    "a plan of nothing": (setting(plan=Plan((0,) * 4, "x")), "plan has the sizes (0, 0, 0, 0) for 4 clients"),
    "a plan of far too many": (setting(plan=Plan((2**70,) * 4, "x")), "for 4 clients"),
    "an age": (setting(elapsed_s=1e308), "elapsed_s is 1e+308"),
    "a plan of texts": (setting(plan=Plan(("a",) * 4, "x")), "plan has a field of another type"),
    "a policy": (setting(policy={"a": 1}), "policy is a dict, not a NoneType"),
    "local steps": (setting(local_steps=[1] * 4), "local_steps does not go with this job"),
    "a score of texts": (setting(score=(1, "a", 0.0, 0.0)), "score is (1, 'a', 0.0, 0.0)"),
}
BSP: dict[str, tuple[Change, str]] = {
    "a smaller model": (setting(model=torch.zeros(3, dtype=torch.float64)), "model has shape [3]"),
    "no model": (setting(model=None), "model is missing"),
    "a model of text": (setting(model="x"), "model is a str without plain values, not a tensor"),
    "no optimizer": (setting(optimizer=None), "optimizer has no state"),
    "a momentum of another shape": (
        in_optimizer("momentum_buffer", torch.zeros(2, 2)),
        "optimizer.state.0.momentum_buffer has shape [2, 2] and type torch.float32, not [16, 3, 3, 3]",
    ),
    "a rate of text": (
        lambda part: part["optimizer"]["param_groups"][0].update(lr="x"),
        "optimizer.param_groups.0.lr is 'x', not a number",
    ),
    "a parameter too many": (lambda part: part["optimizer"]["state"].update({999: {}}), "optimizer.state has the keys"),
    "no state": (lambda part: part["optimizer"].update(state={}), "optimizer.state has the keys []"),
    "a momentum of one number": (in_optimizer("momentum_buffer", torch.zeros(1)), "momentum_buffer has shape [1]"),
    "no momentum": (in_optimizer("momentum_buffer", None), "momentum_buffer is a NoneType without plain values"),
    "a sparse momentum": (
        in_optimizer("momentum_buffer", torch.zeros(16, 3, 3, 3, dtype=torch.float64).to_sparse()),
        "momentum_buffer is a Tensor without plain values",
    ),
    "a momentum without storage": (
        in_optimizer("momentum_buffer", torch.zeros(16, 3, 3, 3, dtype=torch.float64, device="meta")),
        "momentum_buffer is a Tensor without plain values",
    ),
    "a model that learns": (
        lambda part: part.update(model=torch.nn.Parameter(part["model"])),
        "model is a Parameter without plain values",
    ),
    "another momentum": (
        lambda part: part["optimizer"]["param_groups"][0].update(momentum=0.5),
        "param_groups.0.momentum is 0.5, not 0.9",
    ),
    "a momentum that is a tensor": (
        lambda part: part["optimizer"]["param_groups"][0].update(momentum=torch.zeros(0)),
        "param_groups.0.momentum is tensor([]), not a number",
    ),
    "an option of text": (
        lambda part: part["optimizer"]["param_groups"][0].update(nesterov="x"),
        "param_groups.0.nesterov is a str, not a bool",
    ),
    "a gate of another shape": (with_state, "pipeline.0.detector.previous has shape [3]"),
    "a chain of one": (setting(pipeline=()), "pipeline has 0 entries, not 1"),
}
CLIENT: dict[str, tuple[Change, str]] = {
    "no buffers": (setting(buffers={}), "client 2 does not fit this job: buffers has the keys []"),
    "a smaller model": (
        setting(model=torch.zeros(3, dtype=torch.float64)),
        "client 2 does not fit this job: model has",
    ),
    "no optimizer": (lambda part: part.pop("optimizer"), "client 2 does not fit this job: optimizer has no state"),
}
CASES = [
    *(("bsp", "shared.pt", *case) for case in [*SHARED.values(), *BSP.values()]),
    *(("fedavg", "shared.pt", *case) for case in SHARED.values()),
    *(("fedavg", "client-00002.pt", *case) for case in CLIENT.values()),
]


@pytest.fixture(scope="module")
def cut_runs(tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> Path:
    """A run of each kind that was cut at step 8, its checkpoints of steps 3 and 6; and a whole one."""
    folder = tmp_path_factory.mktemp("cut")
    for name in ("bsp", "fedavg"):
        run_job(job_of(toy_set, name), folder / f"{name}-whole")
        with pytest.MonkeyPatch.context() as patch:
            cut_at(patch, 8)
            with pytest.raises(SystemExit):
                run_job(job_of(toy_set, name), folder / name)
    return folder


def forge(checkpoint: Path, file: str, content: bytes | memoryview) -> None:
    """Put a file into a checkpoint, with the right checksums."""
    (checkpoint / file).write_bytes(content)
    manifest = read_json(checkpoint / "MANIFEST.json", dict) or {}
    manifest["sha256"][file] = checksum(content)
    write_json(checkpoint / "MANIFEST.json", manifest)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "change", "reason"), CASES)
def test_a_part_that_does_not_fit_is_passed_over(
    tmp_path: Path,
    toy_set: Path,
    cut_runs: Path,
    name: str,
    file: str,
    change: Change,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(cut_runs / name, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000000006"
    part = read_tensors(newest / file, None, checkpointed_types())
    change(part)
    forge(newest, file, to_bytes(part))
    run_job(job_of(toy_set, name), tmp_path / "run")
    told = capfd.readouterr().err
    assert "passed over: " in told and reason in told
    assert "resumes after step 3" in told
    assert untimed(read_run(tmp_path / "run")) == untimed(read_run(cut_runs / f"{name}-whole"))


class Bomb:
    """Runs a command where it is unpickled by pickle itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def _zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": 1}, buffer)
    import zipfile

    whole, made = zipfile.ZipFile(io.BytesIO(buffer.getvalue())), io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for entry in whole.namelist():
            archive.writestr(entry, content if entry.endswith("data.pkl") else whole.read(entry))
    return made.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100,
        b"PK\x03\x04",
        pickle.dumps({"step": 6}),
        pickle.dumps(Bomb()),
        _zip_of(pickle.dumps(Bomb(), 2)),
        _zip_of(b"\x80\x02("),
        _zip_of(b""),
        bytes(to_bytes([1, 2])),
        bytes(to_bytes(np.float64(3))),
        bytes(to_bytes({"step": 6}))[:-30],
    ],
    ids=range(11),
)
def test_content_of_other_kinds_is_passed_over(
    tmp_path: Path, toy_set: Path, cut_runs: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cut_runs / "bsp", tmp_path / "run")
    forge(tmp_path / "run" / "checkpoints" / "step-000000006", "shared.pt", content)
    run_job(job_of(toy_set, "bsp"), tmp_path / "run")
    out, told = capfd.readouterr()
    assert "step-000000006/shared.pt: is damaged: " in told or "the shared part does not fit" in told
    assert "resumes after step 3" in told and "Traceback" not in told and "unpickled" not in out + told


@pytest.mark.parametrize(
    "manifest",
    [{"format": 1}, {"format": "1"}, {"format": 1, "identity": [], "sha256": {}}, {"format": 1, "sha256": {"a": 3}}],
)
def test_a_manifest_of_another_shape_is_passed_over(
    tmp_path: Path, toy_set: Path, cut_runs: Path, manifest: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cut_runs / "bsp", tmp_path / "run")
    write_json(tmp_path / "run" / "checkpoints" / "step-000000006" / "MANIFEST.json", manifest)
    run_job(job_of(toy_set, "bsp"), tmp_path / "run")
    assert "MANIFEST.json: is damaged: " in (told := capfd.readouterr().err) and "resumes after step 3" in told


@pytest.mark.parametrize(
    "name", ["step-\u00b2", "step-5", "step-0000000000005", "step-999999999999999999999", ".step-x", "step-000000009 "]
)
def test_names_that_are_not_ours_are_left_alone(tmp_path: Path, toy_set: Path, cut_runs: Path, name: str) -> None:
    shutil.copytree(cut_runs / "bsp", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / name).mkdir()
    run_job(job_of(toy_set, "bsp"), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / name).is_dir()
    assert json.loads((tmp_path / "run" / "DONE.json").read_text())["step"] == 12
