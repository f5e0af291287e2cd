"""Detectors in whole runs: watched without a trace in the weights, resumed, per client, and deciding on the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.config.job import JobConfig, load_job, parse_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.runs.log.reader import RunLogs, read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job
from tests.training.test_checkpoint import cut_at, untimed

ACCORDION = {"name": "accordion", "interval_epochs": 1}
OF_NORMS = ["squared_norm", "log_ratio", ACCORDION, {"name": "selsync", "threshold": 0.01}]
ALL = {"watch": [*OF_NORMS, {"name": "noise_scale", "lag": 2}], "noise_scale": {}}
FEDAVG = {"kind": "fedavg", "local_steps": 4}
FEW = {"stop": {"steps": 15}, "evaluate": {"every_steps": 15}, "checkpoint": {"every_steps": 4}}


def watched(run: RunLogs, name: str, client: int = -1) -> np.ndarray:
    """[step] one of the watched numbers."""
    rows = run.tables["metrics"]
    chosen = rows[(rows["name"] == name.encode()) & (rows["client"] == client)]
    assert chosen["step"].tolist() == list(range(len(chosen)))
    return np.asarray(chosen["value"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "model.pt"))


def test_watching_leaves_the_run_as_it_is(tmp_path: Path, toy_set: Path) -> None:
    for name, gradients in (("plain", {"noise_scale": {}}), ("watched", ALL)):
        run_job(make_job(toy_set, gradients={**gradients, "scaler": {"factor": 2.0}}, **FEW), tmp_path / name)
    plain, seen = (read_run(tmp_path / name) for name in ("plain", "watched"))
    other = weights(tmp_path / "plain")
    assert all(torch.equal(value, other[key]) for key, value in weights(tmp_path / "watched").items())
    assert {k: v for k, v in untimed(seen).items() if k[0] != "metrics"} == {
        k: v for k, v in untimed(plain).items() if k[0] != "metrics"
    }
    # The scaler measures Eq. 8, too, on the same gradient.
    steps = seen.tables["steps"][::4]
    np.testing.assert_array_equal(watched(seen, "squared_norm change"), steps["grad_change"])
    np.testing.assert_array_equal(watched(seen, "squared_norm fires")[1:], steps["scale"][1:] == 2)
    norms = steps["grad_sq_norm"]
    np.testing.assert_allclose(watched(seen, "log_ratio change")[1:], abs(np.diff(np.log(norms))), rtol=1e-9)
    scale = steps["b_simple"]
    expected = np.where((scale[2:] > 0) & (scale[:-2] > 0), abs(scale[2:] - scale[:-2]) / scale[:-2], np.nan)
    np.testing.assert_allclose(watched(seen, "noise_scale change")[2:], expected, rtol=1e-9)
    # 96 samples at B = 16: epochs of six steps, known from the end of the second one.
    accordion = watched(seen, "accordion change")
    assert np.isnan(accordion[:11]).all() and len(set(accordion[11:])) == 1
    assert np.isnan(watched(seen, "accordion fires")[:11]).all()
    assert np.isnan(watched(seen, "selsync change")).all()


@pytest.mark.slow
def test_a_watched_run_that_is_cut_goes_on_bit_for_bit(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, sync, gradients in (("bsp", {"kind": "bsp"}, ALL), ("fedavg", FEDAVG, {"watch": OF_NORMS})):
        job = make_job(toy_set, sync=sync, gradients=gradients, **FEW)
        with monkeypatch.context() as patch:
            cut_at(patch, 9)
            with pytest.raises(SystemExit):
                run_job(job, tmp_path / f"{name}-cut")
        run_job(job, tmp_path / f"{name}-cut")
        run_job(job, tmp_path / f"{name}-whole")
        cut, whole = (untimed(read_run(tmp_path / f"{name}-{which}")) for which in ("cut", "whole"))
        assert cut == whole


def test_clients_that_train_alone_are_watched_alone(tmp_path: Path, toy_set: Path) -> None:
    run_job(make_job(toy_set, sync=FEDAVG, gradients={"watch": OF_NORMS}, **FEW), tmp_path)
    run = read_run(tmp_path)
    changes = []
    for client in range(4):
        norms = run.tables["steps"]["local_grad_sq_norm"][client::4]
        found = watched(run, "squared_norm change", client)
        np.testing.assert_allclose(found[1:], abs(np.diff(norms)) / norms[:-1], rtol=1e-12)
        changes.append(watched(run, "accordion change", client))
        assert np.isnan(changes[-1][:11]).all() and np.isfinite(changes[-1][11:]).all()
    assert len({change[-1] for change in changes}) == 4
    assert not len(run.tables["metrics"][run.tables["metrics"]["client"] < 0])


PHASES = {
    "batching": {
        "local_batch_size": 4,
        "policy": "critical_phase",
        "factor": 2,
        "lr_rule": "sqrt",
        "change": ACCORDION,
        "threshold": 0.6,
    },
    "stop": {"epochs": 8},
    "evaluate": {"every_epochs": 8},
}


def test_the_batch_follows_critical_phases(tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(toy_set, **PHASES, checkpoint={"every_steps": 5})
    run_job(job, tmp_path / "whole")
    run = read_run(tmp_path / "whole")
    steps = run.tables["steps"][::4]
    totals = run.tables["steps"]["local_batch_size"].reshape(-1, 4).sum(1)
    change = watched(run, "accordion change")
    ends = np.flatnonzero(np.floor(steps["epoch"]) > np.floor(np.concatenate([[0], steps["epoch"][:-1]])))
    expected = np.full(len(totals), 16)
    for end in ends:
        expected[end + 1 :] = 32 if change[end] < 0.6 else 16
    np.testing.assert_array_equal(totals, expected)
    assert set(totals) == {16, 32} and set(totals[:12]) == {16}
    np.testing.assert_allclose(steps["lr"], 0.02 * np.sqrt(totals / 16))
    # What fires in the log is what the policy calls critical.
    fires = watched(run, "accordion fires")
    np.testing.assert_array_equal(fires[ends[1:]], change[ends[1:]] >= 0.6)
    reasons = {row["reason"].decode().split(":")[0] for row in run.tables["plans"]}
    assert {"start", "no critical phase"} <= reasons
    # Cut in the middle, it goes on with the same batches.
    with monkeypatch.context() as patch:
        cut_at(patch, 22)
        with pytest.raises(SystemExit):
            run_job(job, tmp_path / "cut")
    run_job(job, tmp_path / "cut")
    assert untimed(read_run(tmp_path / "cut")) == untimed(run)


OWN = """
import dataclasses
import torch
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.core.state import checkpointed

@checkpointed
@dataclasses.dataclass(frozen=True)
class Seen:
    change: torch.Tensor

class Epochs:
    class Config(DetectorConfig):
        slope: float = 2.0

    def __init__(self, config):
        self.slope = config.slope

    def init(self, layout):
        return Seen(torch.tensor(torch.nan, dtype=torch.float64))

    def observe(self, gradient, state, ctx):
        return Seen(torch.full_like(gradient.sq_norm, self.slope * ctx.epoch + 10 * ctx.lr))
"""


def test_a_detector_of_ones_own_is_watched(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "job.yaml").write_text(make_job(toy_set, **FEW).to_yaml())
    own = f"{{name: '{tmp_path / 'mine.py'}:Epochs', slope: 3.0, threshold: 1.2}}"
    run_job(load_job(tmp_path / "job.yaml", [f"gradients={{watch: [squared_norm, {own}]}}"]), tmp_path / "run")
    run = read_run(tmp_path / "run")
    expected = 3.0 * np.arange(15) / 6 + 0.2
    np.testing.assert_allclose(watched(run, "mine.py:Epochs change"), expected, rtol=1e-12)
    np.testing.assert_array_equal(watched(run, "mine.py:Epochs fires"), expected >= 1.2)
    # By its name alone, too, beside the job file, in a run that goes on from the folder's copy.
    text = (
        (tmp_path / "job.yaml").read_text().replace("  measure: true", "  measure: true\n  watch: ['mine.py:Epochs']")
    )
    (tmp_path / "job.yaml").write_text(text)
    run_job(load_job(tmp_path / "job.yaml"), tmp_path / "named")
    (tmp_path / "mine.py").unlink()
    run_job(load_job(tmp_path / "job.yaml", ["stop.steps=17"], tmp_path / "named"), tmp_path / "named")
    found = watched(read_run(tmp_path / "named"), "mine.py:Epochs change")
    np.testing.assert_allclose(found, 2.0 * np.arange(17) / 6 + 0.2, rtol=1e-12)


def parsed(toy_set: Path, **sections: Any) -> JobConfig:
    values = {"data": {"name": "packed", "path": str(toy_set)}, "model": {"name": "resnet8"}, "clients": 4}
    return parse_job({**values, **sections}, "job.yaml")


def of_clients_alone(key: str) -> str:
    return f"{key}: noise_scale is for gradients that are summed over clients, under sync bsp and post_local"


PHASE = {"policy": "critical_phase", "factor": 4, "local_batch_size": 4}


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        (
            {"gradients": {"watch": ["squared_norm", "noise_scale"]}},
            "gradients.watch.1: noise_scale needs the noise scale: give gradients.noise_scale: {}",
        ),
        (
            {"gradients": {"scaler": {"factor": 2, "change": "noise_scale"}}},
            "gradients.scaler.change: noise_scale needs the noise scale: give gradients.noise_scale: {}",
        ),
        (
            {"batching": {**PHASE, "change": {"name": "noise_scale", "lag": 3}}},
            "batching.change: noise_scale needs the noise scale: give gradients.noise_scale: {}",
        ),
        ({"sync": {"kind": "selsync", "change": "noise_scale"}}, of_clients_alone("sync.change")),
        ({"sync": FEDAVG, "gradients": {"watch": ["noise_scale"]}}, of_clients_alone("gradients.watch.0")),
        (
            {"gradients": {"watch": ["log_ratio", {"name": "log_ratio", "threshold": 0.1}]}},
            "gradients.watch.1: log_ratio is listed already, with the same keys",
        ),
        (
            {"gradients": {"watch": ["log_ratio"], "measure": False}},
            "gradients.watch.0: needs 'gradients.measure: true'",
        ),
        ({"gradients": {"watch": ["norm"]}}, "gradients.watch.0: 'norm' is not known: known are accordion, "),
        (
            {"gradients": {"watch": [{"name": "accordion", "lag": 1}]}},
            "gradients.watch.0: 'lag' goes with name noise_scale, not accordion",
        ),
        ({"gradients": {"watch": [{"name": "accordion", "interval_epochs": 0}]}}, "interval_epochs"),
        (
            {"sync": FEDAVG, "batching": PHASE},
            "batching.policy critical_phase: for a model that the clients share, under sync bsp",
        ),
        ({"batching": {**PHASE, "factor": 1}}, "batching.factor"),
        (
            {"batching": {**PHASE, "threshold": 0.4, "change": {"name": "accordion", "threshold": 0.3}}},
            "'threshold' is 0.4 here and 0.3 within 'change'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(toy_set: Path, sections: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(toy_set, **sections)
    assert error in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_job_leaves_out_is_not_printed(toy_set: Path) -> None:
    """So that the jobs of older versions keep their digests."""
    plain = parsed(toy_set, gradients={"scaler": {"factor": 2, "change": {"name": "selsync"}}})
    assert "watch" not in plain.to_yaml() and plain.model_dump()["gradients"]["scaler"]["change"] == {"name": "selsync"}
    watching = parsed(toy_set, gradients={"watch": [ACCORDION, "log_ratio"]})
    assert watching.model_dump()["gradients"]["watch"] == (ACCORDION, "log_ratio")
    for job in (plain, watching):
        (again,) = (parsed(toy_set, gradients=job.model_dump(mode="json")["gradients"]),)
        assert again == job and again.digest("") == job.digest("")


def test_several_of_one_name_are_told_apart(tmp_path: Path, toy_set: Path) -> None:
    job = make_job(toy_set, **{**PHASES, **FEW}, gradients={"watch": ["accordion", {**ACCORDION, "threshold": 0.4}]})
    run_job(job, tmp_path)
    names = {name.decode() for name in read_run(tmp_path).tables["metrics"]["name"]}
    assert names == {
        f"accordion interval_epochs={interval} {what}" for interval in (1, 10) for what in ("change", "fires")
    }
