"""What a start does with a run folder that holds something: go on, leave alone, refuse, or set aside."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from hpclbfl.algorithms.client import Client
from hpclbfl.analysis.read.load import load
from hpclbfl.config.job import parse_job
from hpclbfl.core.jsonfile import write_json
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job
from tests.training.test_checkpoint import cut_at, untimed
from tests.training.test_checkpoint import job_of as checkpoint_job

FEW = {"stop": {"steps": 6}, "evaluate": {"every_steps": 4}, "checkpoint": {"every_steps": 100}}


def job_of(toy_set: Path, **sections: Any) -> Any:
    return make_job(toy_set, **{**FEW, **sections})


def refused(job: Any, folder: Path, capfd: pytest.CaptureFixture[str], **options: Any) -> tuple[Any, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_job(job, folder, **options)
    return ended.value.code, capfd.readouterr().err.splitlines()[-1]


def files(folder: Path) -> dict[str, str]:
    """Checksums of all files but the lock's."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "lease"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def steps_of(folder: Path) -> dict[Any, bytes]:
    """The rows of the steps, without times."""
    return {key: value for key, value in untimed(read_run(folder)).items() if key[0] == "steps"}


def weights_of(folder: Path) -> list[bytes]:
    return [value.numpy().tobytes() for value in torch.load(folder / "model.pt").values()]


@pytest.mark.parametrize("state", ["done", "failed", "stopped at the first step"])
def test_another_job_is_refused_whatever_the_state(
    tmp_path: Path, toy_set: Path, state: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if state != "done":
            cut_at(patch, 3 if state == "failed" else 0)
            with pytest.raises(SystemExit):
                run_job(job_of(toy_set), tmp_path)
        else:
            run_job(job_of(toy_set), tmp_path)
    before = files(tmp_path)
    other = job_of(toy_set, optimizer={"lr": 0.5, "momentum": 0.9, "weight_decay": 5e-4}, seed=3)
    for resume in ("auto", "must"):
        assert refused(other, tmp_path, capfd, resume=resume) == (
            2,
            f"hpclbfl: error: step 0: {tmp_path}: holds another experiment: optimizer.lr was 0.02, now 0.5; seed was "
            "0, now 3; give another --run-dir, or '--resume never', which sets it aside",
        )
        assert files(tmp_path) == before
    # Set aside, nothing is lost.
    run_job(other, tmp_path, resume="never")
    assert files(tmp_path / "earlier" / "000") == before
    found = read_run(tmp_path)
    assert (found.num_attempts, found.config["optimizer"]["lr"], found.torn) == (1, 0.5, [])


def test_a_folder_that_does_not_tell_what_it_holds_is_refused(
    tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job(job_of(toy_set), tmp_path)
    (tmp_path / "config.yaml").unlink()
    for file in tmp_path.glob("attempts/*/provenance.json"):
        file.write_text("{")
    before = files(tmp_path)
    code, line = refused(job_of(toy_set), tmp_path, capfd)
    assert code == 2 and "cannot tell which experiment this run folder holds" in line
    assert files(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "more"),
    [
        ({"steps": 6}, {"steps": 11}),
        ({"epochs": 1}, {"epochs": 1.8}),
        ({"samples": 96}, {"samples": 170}),
        ({"seconds": 1e-6, "steps": 11}, {"seconds": 1000, "steps": 11}),
        ({"top1": 1e-6, "steps": 11}, {"top1": 1.0, "steps": 11}),
    ],
)
@pytest.mark.parametrize("sync", [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 4}])
def test_a_finished_run_goes_on_where_stop_has_grown(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], first: dict[str, Any], more: dict[str, Any]
) -> None:
    scaler = {"scaler": {"factor": 2.0, "threshold": 0.3}}
    short = run_job(job_of(toy_set, sync=sync, gradients=scaler, stop=first), tmp_path / "grown")
    run_job(job_of(toy_set, sync=sync, gradients=scaler, stop=more), tmp_path / "whole")
    grown = run_job(job_of(toy_set, sync=sync, gradients=scaler, stop=more), tmp_path / "grown")
    assert short.step < grown.step == 11
    assert steps_of(tmp_path / "grown") == steps_of(tmp_path / "whole")
    assert weights_of(tmp_path / "grown") == weights_of(tmp_path / "whole")
    found = read_run(tmp_path / "grown")
    assert (found.num_attempts, found.torn, found.config["stop"]["steps"]) == (2, [], more.get("steps"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "more"),
    [
        # 96 images at B = 8: epochs, after which the policy may let B grow, end after 12 steps.
        ("growing", {"steps": 12}, {"steps": 30}),
        ("growing", {"epochs": 1}, {"epochs": 3}),
        ("post-local", {"steps": 6}, {"steps": 14}),
        ("post-local", {"steps": 7}, {"steps": 14}),
        ("selsync", {"steps": 7}, {"steps": 14}),
        ("fedavg-skewed", {"steps": 7}, {"steps": 14}),
        ("extrapolated", {"steps": 7}, {"steps": 14}),
    ],
)
def test_a_grown_run_is_one_that_never_ended(
    tmp_path: Path, toy_set: Path, name: str, first: dict[str, Any], more: dict[str, Any]
) -> None:
    sections = {"evaluate": {"every_steps": 4}, "checkpoint": {"every_steps": 100}}
    run_job(checkpoint_job(toy_set, name, stop=first, **sections), tmp_path / "grown")
    run_job(checkpoint_job(toy_set, name, stop=more, **sections), tmp_path / "grown")
    run_job(checkpoint_job(toy_set, name, stop=more, **sections), tmp_path / "whole")
    grown, whole = (untimed(read_run(tmp_path / which)) for which in ("grown", "whole"))
    # The end of the first part has an evaluation of its own.
    assert all(grown[key] == value for key, value in whole.items() if key[0] != "evals")
    assert weights_of(tmp_path / "grown") == weights_of(tmp_path / "whole")
    frames = load(tmp_path)
    assert (
        frames.plans.filter(pl.col("run") == "grown")
        .drop("run")
        .equals(frames.plans.filter(pl.col("run") == "whole").drop("run"))
    )


def test_a_finished_run_is_left_alone(tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run_job(job_of(toy_set), tmp_path)
    before = files(tmp_path)
    met = (("auto", {"steps": 6}), ("must", {"steps": 6}), ("auto", {"steps": 4}), ("must", {"epochs": 1}))
    for resume, stop in met:
        assert run_job(job_of(toy_set, stop=stop), tmp_path, resume=resume) == outcome
        assert "already done, at step 6" in capfd.readouterr().err
    assert files(tmp_path) == before


def test_a_schedule_that_ends_with_the_run_is_stated_and_cannot_grow(
    tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cosine = {"kind": "cosine"}
    run_job(job_of(toy_set, schedule=cosine), tmp_path)
    # B = 16 of 96 images.
    assert read_run(tmp_path).config["schedule"]["total_epochs"] == 1.0
    code, line = refused(job_of(toy_set, schedule=cosine, stop={"steps": 12}), tmp_path, capfd)
    assert code == 2 and "schedule.total_epochs was 1.0, now 2.0" in line
    # Stated, it may be passed.
    grown = job_of(toy_set, schedule={"kind": "cosine", "total_epochs": 1}, stop={"steps": 8})
    assert run_job(grown, tmp_path).step == 8


def test_killed_between_the_last_checkpoint_and_done_it_trains_no_further(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The accuracy is met before the number of steps, so that it must be remembered.
    job = job_of(toy_set, stop={"top1": 1e-6, "steps": 50})
    whole = run_job(job, tmp_path / "whole")

    def killed(self: RunFolder, summary: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "mark_done", killed)
        with pytest.raises(SystemExit):
            run_job(job, tmp_path / "cut")
    again = run_job(job, tmp_path / "cut")
    assert (again.reason, again.step, again.top1, again.loss) == ("top1", 4, whole.top1, whole.loss)
    assert untimed(read_run(tmp_path / "cut")) == untimed(read_run(tmp_path / "whole"))
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


def test_a_damaged_done_is_told_and_written_anew(
    tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run_job(job_of(toy_set), tmp_path)
    path = tmp_path / "DONE.json"
    path.write_text(path.read_text().replace('"step": 6', '"step": 9'))
    again = run_job(job_of(toy_set), tmp_path)
    assert "DONE.json: is damaged: its content does not match its checksum" in capfd.readouterr().err
    assert (again.step, again.top1) == (6, outcome.top1) and json.loads(path.read_text())["step"] == 6


ANEW = {"kind": "iid", "reshuffle": True}


def make_older(folder: Path, job: Any) -> None:
    """Make a run folder what version 0.1 left: no checksums, no last checkpoint, digests that cover `stop`.

    It knew no `partition.reshuffle`; `iid` was what this means now.
    """
    done = json.loads((folder / "DONE.json").read_text())
    fingerprint = json.loads((folder / "attempts/000/provenance.json").read_text())["data_fingerprint"]
    for key in ("checksum", "files", "num_train"):
        del done[key]
    done["hash"] = job.former_digest(fingerprint)
    (folder / "DONE.json").write_text(json.dumps(done))
    provenance = json.loads((folder / "attempts/000/provenance.json").read_text())
    del provenance["checksum"], provenance["identity"]
    provenance["hash"] = done["hash"]
    (folder / "attempts/000/provenance.json").write_text(json.dumps(provenance))
    config = job.model_dump(mode="json")
    del config["partition"]["reshuffle"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    last = RunFolder(folder).checkpoints / f"step-{done['step']:09d}"
    shutil.rmtree(last)
    for path in folder.glob("checkpoints/*/MANIFEST.json"):
        manifest = json.loads(path.read_text())
        del manifest["checksum"], manifest["identity"]["partition"]["reshuffle"]
        manifest["identity"]["stop"] = job.stop.model_dump(mode="json")
        manifest["identity"]["schedule"] = job.schedule.model_dump(mode="json")
        path.write_text(json.dumps(manifest))


def test_folders_of_older_versions_are_recognised(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(toy_set, partition=ANEW, schedule={"kind": "cosine"}, checkpoint={"every_steps": 4})
    run_job(job, Path("new"))
    make_older(Path("new"), job)
    fingerprint = json.loads(Path("new/attempts/000/provenance.json").read_text())["data_fingerprint"]
    Path("runs").mkdir()
    former = Path("runs") / f"toy-{job.former_digest(fingerprint)}"
    Path("new").rename(former)
    assert run_job(job).step == 6
    assert f"{former}: already done" in capfd.readouterr().err
    # More steps than before would have bent the cosine; as many epochs as it had do not.
    code, line = refused(job_of(toy_set, partition=ANEW, schedule={"kind": "cosine"}, stop={"steps": 9}), former, capfd)
    assert code == 2 and "schedule.total_epochs was 1.0, now 1.5" in line
    grown = job_of(toy_set, partition=ANEW, schedule={"kind": "cosine", "total_epochs": 1}, stop={"steps": 9})
    assert run_job(grown, former).step == 9
    assert "resumes after step 4" in capfd.readouterr().err


@pytest.mark.parametrize("told_by", ["config.yaml", "the provenance"])
def test_older_iid_runs_dealt_all_samples_anew(
    tmp_path: Path, toy_set: Path, told_by: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    anew, fixed = job_of(toy_set, partition=ANEW, checkpoint={"every_steps": 4}), job_of(toy_set)
    run_job(anew, Path("run"))
    provenance = json.loads(Path("run/attempts/000/provenance.json").read_text())
    fingerprint = provenance["data_fingerprint"]
    make_older(Path("run"), anew)
    if told_by == "the provenance":
        del provenance["checksum"], provenance["identity"]["partition"]["reshuffle"]
        Path("run/attempts/000/provenance.json").write_text(json.dumps(provenance))
    assert read_run("run").config["partition"]["reshuffle"] is True
    assert load(Path("run")).runs["partition.reshuffle"].to_list() == [True]
    assert fixed.digest(fingerprint) != anew.digest(fingerprint) and fixed.former_digest(fingerprint) != (
        anew.former_digest(fingerprint)
    )
    for resume in ("auto", "must"):
        code, line = refused(fixed, Path("run"), capfd, resume=resume)
        assert code == 2 and "holds another experiment: partition.reshuffle was True, now False; give another" in line
    assert run_job(job_of(toy_set, partition=ANEW, stop={"steps": 9}), Path("run")).step == 9
    assert "resumes after step 4" in capfd.readouterr().err


def test_an_older_finished_run_without_a_checkpoint_cannot_go_on(
    tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = job_of(toy_set, partition=ANEW)
    run_job(job, tmp_path)
    make_older(tmp_path, job)
    code, line = refused(job_of(toy_set, partition=ANEW, stop={"steps": 9}), tmp_path, capfd)
    assert code == 2 and "is done at step 6 and kept no checkpoint from which it could go on" in line


@pytest.mark.parametrize("when", ["removed", "replaced"])
def test_a_run_folder_that_is_removed_in_training_fails_the_run(
    tmp_path: Path, toy_set: Path, when: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = Client.forward_backward
    folder = tmp_path / "run"

    def removing(client: Client, state: Any, *rest: Any) -> None:
        if state.counters.step == 3 and folder.exists():
            shutil.rmtree(folder)
            if when == "replaced":
                (folder / "attempts" / "000").mkdir(parents=True)
                (folder / "attempts" / "000" / "rank00000.h5").write_text("another's")
        taken(client, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "forward_backward", removing)
        code, line = refused(job_of(toy_set), folder, capfd)
    assert code == 1
    assert f"rank00000.h5: the log cannot be written: it was {when} while it was written" in line
    assert not (folder / "DONE.json").exists() and not (folder / "model.pt").exists()


def test_every_checkpoint_damaged_starts_anew_only_when_told(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = job_of(toy_set, checkpoint={"every_steps": 2})
    with monkeypatch.context() as patch:
        cut_at(patch, 5)
        with pytest.raises(SystemExit):
            run_job(job, tmp_path)
    for path in tmp_path.glob("checkpoints/*/shared.pt"):
        path.write_bytes(path.read_bytes()[:-7])
    for resume in ("auto", "must"):
        code, line = refused(job, tmp_path, capfd, resume=resume)
        assert code == 2 and "no checkpoint can be used" in line and "--resume never" in line
    assert run_job(job, tmp_path, resume="never").step == 6
    assert sorted(p.name for p in (tmp_path / "earlier" / "000" / "checkpoints").iterdir()) == [
        "step-000000002",
        "step-000000004",
    ]


def test_a_link_in_place_of_the_checkpoints_is_refused(
    tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "step-000000001").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "precious")
    code, line = refused(job_of(toy_set), tmp_path / "run", capfd)
    assert code == 2 and "cannot tell which experiment this run folder holds" in line
    (tmp_path / "precious" / "step-000000001").rmdir()
    code, line = refused(job_of(toy_set), tmp_path / "run", capfd)
    assert code == 1 and f"{tmp_path}/run/checkpoints: is a link" in line
    # Set aside, the link goes with the rest, and what it points to stays.
    (tmp_path / "precious" / "step-000000001").mkdir()
    run_job(job_of(toy_set), tmp_path / "run", resume="never")
    assert [p.name for p in (tmp_path / "precious").iterdir()] == ["step-000000001"]


def test_digest_without_stop() -> None:
    values = {"clients": 2, "data": {"name": "digits"}, "model": {"name": "resnet8"}, "stop": {"steps": 3}}
    short = parse_job(values, "a")
    long = parse_job({**values, "stop": {"steps": 4}}, "a")
    assert short.digest("f" * 64) == long.digest("f" * 64)
    assert short.former_digest("f" * 64) != long.former_digest("f" * 64)


@pytest.mark.slow
@pytest.mark.parametrize("data", [5, [], "x", None])
@pytest.mark.parametrize("where", ["provenance", "manifest"])
def test_a_damaged_fingerprint_is_skipped(
    tmp_path: Path, toy_set: Path, where: str, data: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job(job_of(toy_set, checkpoint={"every_steps": 4}), tmp_path)
    name = "attempts/000/provenance.json" if where == "provenance" else "checkpoints/step-000000006/MANIFEST.json"
    values = json.loads((tmp_path / name).read_text())
    write_json(tmp_path / name, {**values, "identity": {**values["identity"], "data": data}})
    assert run_job(job_of(toy_set, stop={"steps": 9}), tmp_path).step == 9
    told = capfd.readouterr().err
    assert f"resumes after step {6 if where == 'provenance' else 4}" in told
    assert where == "provenance" or "passed over: its fingerprint is not valid" in told


@pytest.mark.parametrize("epoch", [5e-324, 1e-300, 1e308, -1.0])
def test_a_done_of_impossible_numbers_is_no_traceback(tmp_path: Path, toy_set: Path, epoch: float) -> None:
    run_job(job_of(toy_set), tmp_path)
    done = json.loads((tmp_path / "DONE.json").read_text())
    write_json(tmp_path / "DONE.json", {**done, "num_train": None, "epoch": epoch, "num_samples": 2**52})
    assert run_job(job_of(toy_set, stop={"steps": 9}), tmp_path).step == 9


def test_what_a_kill_left_of_a_set_aside_is_set_aside_to_the_same_place(tmp_path: Path, toy_set: Path) -> None:
    run_job(job_of(toy_set), tmp_path)
    before = files(tmp_path)
    (tmp_path / "earlier" / "000").mkdir(parents=True)
    for name in ("DONE.json", "model.pt", "status.json", "checkpoints"):
        (tmp_path / name).rename(tmp_path / "earlier" / "000" / name)
    run_job(job_of(toy_set), tmp_path, resume="never")
    assert files(tmp_path / "earlier" / "000") == before
    assert [path.name for path in (tmp_path / "earlier").iterdir()] == ["000"]


def test_a_text_log_that_is_removed_in_training_fails_the_run(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = Client.forward_backward

    def removing(*arguments: Any) -> None:
        (tmp_path / "attempts" / "000" / "log").unlink(missing_ok=True)
        taken(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "forward_backward", removing)
        code, line = refused(job_of(toy_set), tmp_path, capfd)
    assert (code, "attempts/000/log: was removed while it was written" in line) == (1, True)
