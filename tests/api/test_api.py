"""What a script does with jobs and runs, in its own process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import pytest
import torch
import yaml

import hpclbfl
from hpclbfl.runs.folder import RunFolder
from hpclbfl.training import loop

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "from_python.py"


def toy(path: Path, **sections: Any) -> hpclbfl.JobConfig:
    values: dict[str, Any] = {
        "name": "toy",
        "clients": 2,
        "precision": "float64",
        "data": {"name": "packed", "path": path},
        "model": {"name": "resnet8"},
        "batching": {"local_batch_size": np.int64(4)},
        "stop": {"steps": 4},
        "evaluate": {"every_steps": 2},
    }
    return hpclbfl.make_job({**values, **sections})


@pytest.fixture(scope="module")
def result(toy_set: Path, tmp_path_factory: pytest.TempPathFactory) -> hpclbfl.Result:
    return hpclbfl.run(toy(toy_set), tmp_path_factory.mktemp("api") / "run")


def test_all_public_names_can_be_imported() -> None:
    for name in hpclbfl.__all__:
        assert getattr(hpclbfl, name) is not None
    assert sorted(hpclbfl.__all__) == hpclbfl.__all__
    assert set(hpclbfl.__all__) <= set(dir(hpclbfl))
    namespace: dict[str, Any] = {}
    exec("from hpclbfl import *", namespace)
    assert set(hpclbfl.__all__) <= namespace.keys()
    with pytest.raises(AttributeError, match="module 'hpclbfl' has no attribute 'runn'"):
        hpclbfl.runn  # type: ignore[attr-defined] # noqa: B018


def test_each_name_loads_no_more_than_it_needs() -> None:
    program = """
import sys, hpclbfl
heavy = lambda: [m for m in ("torch", "polars", "altair", "horovod", "pydantic") if m in sys.modules]
seen = [heavy()]
for name in ("ConfigError", "make_job", "read_run"):
    getattr(hpclbfl, name)
    seen.append(heavy())
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[[], [], ['pydantic'], ['polars', 'pydantic']]", done.stderr


def test_a_run_and_its_tables(result: hpclbfl.Result) -> None:
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.step, result.outcome.num_samples) == ("steps", 4, 32)
    assert (result.state, result.job.clients, repr(result)) == ("done", 2, f"<hpclbfl run {result.path}: done>")
    assert result.steps["step"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert result.steps["client"].to_list() == [0, 1] * 4
    assert result.steps["num_samples"].to_list() == [8, 8, 16, 16, 24, 24, 32, 32]
    assert result.evals["step"].to_list() == [1, 3]
    assert result.top1 == result.outcome.top1 == result.evals["top1"][-1]
    assert (len(result.plans), len(result.layers), len(result.problems)) == (0, 0, 0)
    assert result.events.columns == ["step", "kind", "text"]


@pytest.mark.slow
def test_the_same_run_from_the_command_line(result: hpclbfl.Result, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpclbfl", "train", str(result.path / "config.yaml"), "--run-dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    other = hpclbfl.read_run(tmp_path)
    assert other.steps["loss"].to_list() == result.steps["loss"].to_list()
    pairs = zip(other.model.state_dict().values(), result.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_a_folder_is_read_back(result: hpclbfl.Result) -> None:
    again = hpclbfl.read_run(str(result.path))
    assert again.outcome == result.outcome
    assert again.steps.equals(result.steps) and again.evals.equals(result.evals)
    states = again.model.state_dict(), result.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not again.model.training and not result.model.training
    assert again.job == result.job
    # It is done: nothing is trained.
    once_more = hpclbfl.run(again.job, again.path)
    assert (once_more.outcome, len(RunFolder(once_more.path).attempts())) == (result.outcome, 1)
    assert torch.equal(once_more.model(torch.ones(2, 3, 8, 8).double()), result.model(torch.ones(2, 3, 8, 8).double()))


def test_many_runs(result: hpclbfl.Result) -> None:
    frames = hpclbfl.load_runs(result.path.parent)
    assert frames.steps.collect()["loss"].sort().equals(result.steps["loss"].sort())
    row = hpclbfl.summarise(frames).row(0, named=True)
    assert (row["run"], row["steps"], row["top1"]) == ("run", 4, result.top1)


def test_it_prints_nothing_and_tells_the_logger(
    toy_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hpclbfl"):
        hpclbfl.run(toy(toy_set, stop={"steps": 1}), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert caplog.messages[0] == "2 clients on 1 rank (local, cpu), global batch 8, 96 training samples"
    assert caplog.messages == (tmp_path / "attempts" / "000" / "log").read_text().splitlines()
    logger = logging.getLogger("hpclbfl")
    assert [type(handler) for handler in logger.handlers] == [logging.NullHandler]


def test_the_scripts_state_is_its_own(toy_set: Path, tmp_path: Path) -> None:
    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)
    before = [signal.getsignal(signum) for signum in signums], sys.excepthook, threading.excepthook
    shown, environ, threads = warnings.showwarning, dict(os.environ), torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    hpclbfl.run(toy(toy_set, deterministic=True, stop={"steps": 1}), tmp_path)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert ([signal.getsignal(s) for s in signums], sys.excepthook, threading.excepthook) == before
    assert (warnings.showwarning, dict(os.environ), torch.get_num_threads()) == (shown, environ, threads)


def test_a_signal_saves_the_state_and_the_script_goes_on(
    toy_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: heard.append(signum))
    begin_record = loop.begin_record

    def begin(state: Any) -> Any:
        if state.counters.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin_record(state)

    monkeypatch.setattr(loop, "begin_record", begin)
    try:
        stopped = hpclbfl.run(toy(toy_set, stop={"steps": 6}), tmp_path)
        assert (stopped.outcome and stopped.outcome.reason, stopped.state) == ("asked to stop", "requeue")
        assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    step = stopped.outcome.step if stopped.outcome is not None else 0
    assert step in (3, 4)
    # Of the newest checkpoint.
    assert sum(p.numel() for p in stopped.model.parameters()) == 74_900
    monkeypatch.undo()
    done = hpclbfl.run(toy(toy_set, stop={"steps": 6}), tmp_path, resume="must")
    assert done.state == "done" and done.steps["step"].unique().to_list() == list(range(6))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("my net\nbroke"), hpclbfl.RunFailed, "step 2: ValueError: my net\nbroke"),
        (hpclbfl.DataError("x.h5: is torn"), hpclbfl.DataError, "x.h5: is torn"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_a_failure_comes_out_and_the_folder_says_so(
    toy_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    kind: type[BaseException],
    text: str,
) -> None:
    begin_record = loop.begin_record

    def begin(state: Any) -> Any:
        if state.counters.step == 2:
            raise error
        return begin_record(state)

    monkeypatch.setattr(loop, "begin_record", begin)
    with pytest.raises(kind) as raised:
        hpclbfl.run(toy(toy_set), tmp_path)
    assert str(raised.value) == text
    if kind is hpclbfl.RunFailed:
        assert raised.value.__cause__ is error
    status = json.loads((tmp_path / "status.json").read_text())
    line = "interrupted by SIGINT" if kind is KeyboardInterrupt else text.removeprefix("step 2: ")
    assert (status["state"], status["error"]) == ("failed", f"step 2: {line}")
    assert capfd.readouterr() == ("", "")
    # The steps before it are there, the folder is free, and the same call goes on.
    failed = hpclbfl.read_run(tmp_path)
    assert (failed.state, failed.outcome, failed.steps["step"].unique().to_list()) == ("failed", None, [0, 1])
    monkeypatch.undo()
    assert hpclbfl.run(toy(toy_set), tmp_path).state == "done"


def test_jobs_from_files(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("data: {name: packed, path: x.h5}\nmodel: {name: resnet8}\noptimizer: {lr: 0.5}\n")
    assert hpclbfl.load_job(path).data.path == str(tmp_path / "x.h5")
    by_key = hpclbfl.load_job(str(path), {"optimizer.lr": 1e-5, "stop": {"steps": 3}, "clients": np.int32(3)})
    by_word = hpclbfl.load_job(path, ["optimizer.lr=1e-5", "stop={steps: 3}", "clients=3"])
    assert by_key == by_word
    assert by_key.model_dump()["optimizer"]["lr"] == 1e-5
    assert hpclbfl.load_job(path, {"data.path": Path("y.h5")}).data.path == str(Path.cwd() / "y.h5")
    copied = hpclbfl.make_job(data=by_key.data, model={"name": "resnet8"}, clients=3)
    assert copied.data == by_key.data


@pytest.mark.parametrize(
    ("call", "kind", "line"),
    [
        (lambda: hpclbfl.make_job(data={"name": "digits"}), hpclbfl.ConfigError, "make_job: 'model' is missing"),
        (
            lambda: hpclbfl.make_job(data={"name": "digits"}, model={"name": "resnet9"}),
            hpclbfl.ConfigError,
            "make_job: model.name: 'resnet9' is not known: did you mean 'resnet8'? ",
        ),
        (
            lambda: hpclbfl.make_job({1: 2, "data": {"name": "digits"}, "model": {"name": "resnet8"}}),
            hpclbfl.ConfigError,
            "make_job: unknown key '1': valid here: name, ",
        ),
        (lambda: hpclbfl.load_job("none.yaml"), hpclbfl.ConfigError, "none.yaml: cannot be read: No such file"),
        (
            lambda: hpclbfl.load_job("none.yaml", "a=1"),
            hpclbfl.ConfigError,
            "overrides: a mapping or a list of texts, ",
        ),
        (lambda: hpclbfl.run("none.yaml"), hpclbfl.ConfigError, "none.yaml: cannot be read: No such file"),
        (lambda: hpclbfl.run({"modle": 1}), hpclbfl.ConfigError, "make_job: 'data' is missing; "),
        (lambda: hpclbfl.run({}, resume="yes"), hpclbfl.ConfigError, "resume: 'yes' is not known: auto, must, never"),
        (lambda: hpclbfl.read_run("/dev"), hpclbfl.DataError, "/dev: no run folder: it has no config.yaml; "),
        (lambda: hpclbfl.load_runs("/dev/none"), hpclbfl.DataError, "/dev/none: no such folder; "),
        (lambda: hpclbfl.plot("/dev", "curve"), hpclbfl.ConfigError, "plot: 'curve' is no figure: there are learning_"),
        (lambda: hpclbfl.plot("/dev", file="a.gif"), hpclbfl.ConfigError, "a.gif: a figure is a .png, .svg, .pdf file"),
    ],
)
def test_errors_are_exceptions_of_one_line(call: Any, kind: type[Exception], line: str) -> None:
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, hpclbfl.HpclbflError)


def test_another_experiment_is_refused_and_left_alone(result: hpclbfl.Result, toy_set: Path) -> None:
    before = (result.path / "status.json").read_bytes()
    with pytest.raises(hpclbfl.ConfigError, match="holds another experiment: seed was 0, now 1; "):
        hpclbfl.run(toy(toy_set, seed=1), result.path)
    assert (result.path / "status.json").read_bytes() == before


def test_without_a_model_or_its_data(toy_set: Path, tmp_path: Path) -> None:
    moved = tmp_path / "toy.h5"
    moved.write_bytes(toy_set.read_bytes())
    made = hpclbfl.run(toy(moved, stop={"steps": 1}), tmp_path / "run")
    moved.unlink()
    with pytest.raises(hpclbfl.DataError, match=r"toy\.h5"):
        hpclbfl.read_run(made.path).model  # noqa: B018
    (made.path / "config.yaml").write_text(":")
    with pytest.raises(hpclbfl.ConfigError, match=r"config\.yaml"):
        hpclbfl.read_run(made.path).job  # noqa: B018


@pytest.mark.parametrize("figure", ["learning_curves_steps", "time_shares", "final_accuracy"])
def test_a_figure(result: hpclbfl.Result, tmp_path: Path, figure: str) -> None:
    chart = hpclbfl.plot(result, figure, tmp_path / "a.svg")
    assert isinstance(chart, alt.TopLevelMixin)
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    rows = chart.to_dict()["datasets"]["rows"]
    if figure == "learning_curves_steps":
        assert [(row["x"], row["mean"]) for row in rows] == [
            (2, 100 * result.evals["top1"][0]),
            (4, 100 * (result.top1 or 0)),
        ]
    assert hpclbfl.plot(str(result.path), figure).to_dict()["datasets"]["rows"] == rows


def test_a_figure_of_nothing(result: hpclbfl.Result, tmp_path: Path) -> None:
    with pytest.raises(hpclbfl.DataError, match="holds nothing to draw for sharpness"):
        hpclbfl.plot(result, "sharpness", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_figures_of_several_tasks(tmp_path: Path) -> None:
    from tests.analysis.synthetic import make_run

    for net in ("resnet8", "vgg11"):
        for factor in (1, 2):
            run = tmp_path / f"{net}-{factor}"
            make_run(run, 0, factor, num_steps=20, evaluate_every=10)
            job = yaml.safe_load((run / "config.yaml").read_text())
            (run / "config.yaml").write_text(yaml.safe_dump({**job, "model": {"name": net}}))
    with pytest.raises(hpclbfl.ConfigError, match=r"the runs are of several tasks, give task=\.\.\.: resnet8; vgg11$"):
        hpclbfl.plot(tmp_path)
    with pytest.raises(hpclbfl.ConfigError, match=r"no runs of the task 'x'; there are: resnet8; vgg11$"):
        hpclbfl.plot(tmp_path, task="x")
    rows = hpclbfl.plot(tmp_path, task="vgg11").to_dict()["datasets"]["rows"]
    assert len({row["arm"] for row in rows}) == 2 and all("vgg11" in row["arm"] for row in rows)


@pytest.mark.slow
def test_the_example_of_the_docs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bsp: top-1 0.") and lines[1].startswith("fedavg: top-1 0.")
    assert lines[2] == "75290 parameters"
    assert "4 clients on 1 rank (local, cpu), global batch 128, 1438 training samples" in done.stderr
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert set(pl.DataFrame(hpclbfl.load_runs(tmp_path).runs)["run"]) == {"bsp", "fedavg"}
