"""Run folders as frames: golden rows, attempts, damage, and what is read again."""

import shutil

import h5py
import numpy as np
import polars as pl
import pytest

from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.read.scan import find_runs
from hpclbfl.core.errors import DataError
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.reader import read_run
from hpclbfl.runs.log.schema import DTYPES, SCHEMA_VERSION
from hpclbfl.runs.log.writer import RunLog
from tests.analysis.conftest import make_old, two_client_run
from tests.attempts import add_attempt


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.create()
    folder.write_config("clients: 2\n")
    return folder


def rows(frame, *columns):
    return frame.lazy().sort("run", "step").select(*columns).collect().rows()


def test_golden_frames(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "b")
    attempt = folder.next_attempt()
    folder.write_config(
        "name: golden\nseed: 3\nclients: 1\noptimizer: {lr: 0.1, betas: [0.9, 0.99]}\nsync: {kind: bsp}\n"
        "stop: {top1: null}\n"
    )
    about = {"engine": "mpi", "num_ranks": 1, "host": "node7", "gpus": ["A", "B"], "argv": ["hpclbfl", "train"]}
    versions = {"git": {"commit": "abc", "dirty": True}, "versions": {"torch": "2.1"}, "hash": "0123456789"}
    attempt.write_provenance(about | versions)
    with RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": 0}) as log:
        log.append("steps", step=0, round=0, client=0, local_batch_size=8, num_samples=8, loss=2.5, lr=0.1)
        log.append("evals", step=0, num_samples=8, split="test", top1=0.25, elapsed_s=1.5)
        log.append("layers", step=0, layer="conv.weight", grad_sq_norm=4.0)
        log.append("plans", step=0, client=0, local_batch_size=8, reason="start")
        log.append("events", step=0, kind="note", text="größer")
    folder.write_status("done")
    folder.mark_done({"elapsed_s": 1.75, "reason": "steps"})
    frames = load(tmp_path)

    assert frames.runs.shape[0] == 1
    row = frames.runs.row(0, named=True)
    expected = {"run": "runs/b", "path": str(folder.path), "state": "done", "complete": True, "error": None}
    expected |= {"reason": "steps", "hash": "0123456789", "num_attempts": 1, "num_ranks": 1, "engine": "mpi"}
    expected |= {"elapsed_s": 1.75, "host": "node7", "gpus": "A, B", "torch": "2.1", "commit": "abc", "dirty": True}
    expected |= {"command": "hpclbfl train", "arm": "golden", "name": "golden", "seed": 3, "clients": 1}
    expected |= {"optimizer.lr": 0.1, "optimizer.betas": "[0.9,0.99]", "sync.kind": "bsp", "stop.top1": None}
    assert {key: row[key] for key in expected} == expected
    assert frames.runs.schema["seed"] == pl.Int64
    steps = frames.steps.collect()
    assert steps.columns == ["run", "rank", *DTYPES["steps"].names]
    step = steps.row(0, named=True)
    assert [step[k] for k in ("run", "rank", "step", "client", "local_batch_size", "loss")] == [
        "runs/b",
        0,
        0,
        0,
        8,
        2.5,
    ]
    assert np.isnan(step["grad_change"])
    assert frames.evals.row(0)[:5] == ("runs/b", 0, pytest.approx(float("nan"), nan_ok=True), 8, 1.5)
    assert frames.evals["split"].to_list() == ["test"]
    assert frames.layers.collect().rows() == [("runs/b", 0, "conv.weight", 4.0)]
    assert frames.plans.rows() == [("runs/b", 0, 0, 8, "start")]
    assert frames.events.rows() == [("runs/b", 0, "note", "größer")]
    assert frames.problems.is_empty()
    assert len({frame.collect_schema()["run"] for frame in (frames.runs, frames.steps, frames.problems)}) == 1


def test_attempts_are_merged_as_the_reader_does(folder, tmp_path):
    # Resumed at 4, killed, resumed at 2 (the checkpoint at 4 was damaged), finished.
    add_attempt(folder, 0, [range(6), range(5)], evals=[1, 3, 5], events=[5, 1])
    add_attempt(folder, 4, [range(4, 8), range(4, 8)], evals=[5, 7])
    add_attempt(folder, 2, [range(2, 5), range(2, 5)], evals=[3])
    frames, whole = load(tmp_path), read_run(folder.path).tables
    assert frames.runs["num_attempts"].to_list() == [3]
    for name in ("steps", "evals", "layers", "plans", "events"):
        frame = getattr(frames, name).lazy().drop("run").collect()
        frame = frame.drop("rank") if "rank" in frame.columns else frame
        keys = [key for key in ("step", "client") if key in frame.columns]
        expected = [tuple(v.decode() if isinstance(v, bytes) else v for v in row) for row in whole[name].tolist()]
        found = frame.sort(keys, maintain_order=True).rows()
        assert [str(row) for row in found] == [str(row) for row in expected], name
    assert rows(frames.evals, "step", "top1") == [(1, 0.0), (3, 2.0)]
    assert rows(frames.events, "step", "text") == [(1, "attempt 0")]


def test_torn_and_missing_files_are_listed(folder, tmp_path):
    attempt = add_attempt(folder, 0, [range(300), range(300), range(300)])
    torn, missing = attempt.rank_log(1), attempt.rank_log(2)
    torn.write_bytes(torn.read_bytes()[:30000])
    missing.unlink()
    (folder.path / "status.json").write_text('{"state": ')
    folder.mark_done({})
    frames = load(tmp_path)
    assert frames.steps.select(pl.col("client").unique()).collect()["client"].to_list() == [0]
    found = {row["path"]: row for row in frames.problems.rows(named=True)}
    assert list(found) == ["runs/a/status.json", "runs/a/attempts/000/rank00001.h5", "runs/a/attempts/000"]
    assert found["runs/a/attempts/000"]["reason"] == "1 of 3 ranks left no log"
    assert "is torn" in found["runs/a/attempts/000/rank00001.h5"]["reason"]
    assert [row["rows_lost"] for row in found.values()] == [False, True, True]
    # Done, but never part of an average.
    assert frames.runs.select("state", "complete").rows() == [("done", False)]


def test_damage_that_a_later_attempt_made_good_does_not_count(folder, tmp_path):
    first = add_attempt(folder, 0, [range(300), range(300)])
    first.rank_log(1).write_bytes(b"")
    add_attempt(folder, 0, [range(3), range(3)])
    folder.mark_done({})
    frames = load(tmp_path)
    assert frames.problems["rows_lost"].to_list() == [False]
    assert frames.runs["complete"].to_list() == [True]


def test_a_rank_that_never_started_costs_nothing_where_the_next_attempt_began_at_the_same_step(folder, tmp_path):
    add_attempt(folder, 0, [range(5), range(4)])
    killed = add_attempt(folder, 4, [(), ()])
    killed.rank_log(1).unlink()
    last = add_attempt(folder, 4, [range(4, 8), range(4, 8)])
    folder.mark_done({"step": 8})
    frames = load(tmp_path)
    assert frames.problems.rows() == [("runs/a", "runs/a/attempts/001", "1 of 2 ranks left no log", False)]
    assert frames.runs["complete"].to_list() == [True]
    # The same damage in the attempt that trained the steps.
    last.rank_log(1).unlink()
    frames = load(tmp_path)
    assert frames.problems["rows_lost"].to_list() == [False, True]
    assert frames.runs["complete"].to_list() == [False]


def missing(tmp_path):
    """Path, reason and loss of each problem, and whether the run is complete; the same with all logs in the cache."""
    first, again = load(tmp_path), load(tmp_path)
    assert again.problems.equals(first.problems)
    assert again.runs.equals(first.runs)
    return first.problems.drop("run").rows(), first.runs["complete"].item()


@pytest.mark.parametrize("gone", ["logs", "attempts"])
@pytest.mark.parametrize("done", [{"step": 3}, {}])
def test_a_run_that_is_done_without_logs_is_not_complete(folder, tmp_path, gone, done):
    attempt = add_attempt(folder, 0, [range(3), range(3)])
    folder.mark_done(done)
    make_old(tmp_path)
    assert missing(tmp_path) == ([], True)
    if gone == "attempts":
        shutil.rmtree(folder.path / "attempts")
    else:
        for rank in (0, 1):
            attempt.rank_log(rank).unlink()
    which = "steps 0 to 2" if done else "any step"
    assert missing(tmp_path) == ([("runs/a/attempts", f"no log has the rows of {which}", True)], False)


@pytest.mark.parametrize("state", ["running", "failed", "requeue"])
def test_a_run_that_is_not_done_needs_no_logs(folder, tmp_path, state):
    folder.next_attempt().write_provenance({"num_ranks": 2, "resumed_from_step": 0})
    folder.write_status(state)
    assert missing(tmp_path) == ([], False)


def test_attempts_that_are_gone_are_missed(folder, tmp_path):
    add_attempt(folder, 0, [range(6), range(4)])
    add_attempt(folder, 4, [range(4, 9), range(4, 8)])
    add_attempt(folder, 8, [range(8, 10), range(8, 10)])
    folder.mark_done({"step": 10})
    make_old(tmp_path)
    assert missing(tmp_path) == ([], True)
    shutil.rmtree(folder.path / "attempts" / "001")
    reasons = ["lacks the rows of steps 6 to 7", "lacks the rows of steps 4 to 7"]
    expected = [(f"runs/a/attempts/000/rank0000{rank}.h5", reason, True) for rank, reason in enumerate(reasons)]
    assert missing(tmp_path) == (expected, False)
    shutil.rmtree(folder.path / "attempts" / "000")
    assert missing(tmp_path) == ([("runs/a/attempts", "no log has the rows of steps 0 to 7", True)], False)


def test_a_log_that_ends_before_the_run_is_missed(folder, tmp_path):
    add_attempt(folder, 0, [range(5), range(4)])
    folder.mark_done({"step": 5})
    make_old(tmp_path)
    assert missing(tmp_path) == ([("runs/a/attempts/000/rank00001.h5", "lacks the rows of step 4", True)], False)


def test_an_attempt_that_had_nothing_left_to_train(folder, tmp_path):
    add_attempt(folder, 0, [range(5), range(5)])
    add_attempt(folder, 5, [(), ()]).rank_log(1).unlink()
    folder.mark_done({"step": 5})
    assert missing(tmp_path) == ([("runs/a/attempts/001", "1 of 2 ranks left no log", False)], True)


def test_another_version_of_the_schema_is_listed(folder, tmp_path):
    attempt = add_attempt(folder, 0, [range(3), range(3)])
    attempt.rank_log(1).unlink()
    with h5py.File(attempt.rank_log(1), "w", libver="latest") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION + 1
    two_client_run(tmp_path / "runs" / "b")
    frames = load(tmp_path)
    assert frames.problems["reason"].to_list() == ["has log schema 4; this version reads schema 2 and 3"]
    assert frames.problems["path"].to_list() == ["runs/a/attempts/000/rank00001.h5"]
    assert frames.runs.select("run", "complete").rows() == [("runs/a", False), ("runs/b", True)]


def test_a_config_that_cannot_be_read(tmp_path):
    two_client_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("a: [")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("- 1\n")
    frames = load(tmp_path)
    assert frames.runs.select("run", "state", "arm").rows() == [
        ("a", "done", "a"),
        ("b", "unreadable", None),
        ("c", "unreadable", None),
    ]
    assert frames.problems.select("run", "rows_lost").rows() == [("b", True), ("c", True)]


def test_empty_folder(tmp_path):
    frames = load(tmp_path)
    assert [len(f.lazy().collect()) for f in (frames.runs, frames.steps, frames.evals, frames.layers)] == [0] * 4
    assert [len(f) for f in (frames.plans, frames.events, frames.problems)] == [0] * 3
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "none")


def test_links_to_folders_of_runs_are_followed(tmp_path):
    scratch, root = tmp_path / "scratch", tmp_path / "root"
    two_client_run(scratch / "a", num_steps=3)
    two_client_run(root / "here" / "b", num_steps=5)
    two_client_run(tmp_path / "beside")
    (root / "runs").symlink_to(scratch)
    # Loops: back to itself, to the root, and to what holds it and other runs; a link that leads nowhere.
    (scratch / "self").symlink_to(scratch)
    (root / "here" / "root").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "nowhere").symlink_to(tmp_path / "gone")
    assert find_runs(root) == [root / "here" / "b", root / "runs" / "a"]
    frames = load(root)
    assert frames.runs["run"].to_list() == ["here/b", "runs/a"]
    assert frames.steps.group_by("run").len().collect().sort("run").rows() == [("here/b", 10), ("runs/a", 6)]
    assert frames.problems.is_empty()
    # The link itself is a folder of runs, too.
    assert find_runs(root / "runs") == [root / "runs" / "a"]


def test_a_run_that_is_linked_to_is_found_once(tmp_path):
    scratch, root = tmp_path / "scratch", tmp_path / "root"
    two_client_run(root / "runs" / "a")
    two_client_run(scratch / "b")
    (root / "best").symlink_to(root / "runs" / "a")
    for name in ("second", "first"):
        (root / name).symlink_to(scratch / "b")
    (root / ".hidden").symlink_to(scratch)
    assert find_runs(root) == [root / "first", root / "runs" / "a"]
    assert load(root).runs["run"].to_list() == ["first", "runs/a"]


def test_a_run_itself(tmp_path):
    two_client_run(tmp_path / "alone")
    before = sorted(tmp_path.rglob("*"))
    frames = load(tmp_path / "alone")
    assert frames.runs["run"].to_list() == ["alone"]
    assert len(frames.steps.collect()) == 40
    assert sorted(tmp_path.rglob("*")) == before


def all_steps(frames):
    return frames.steps.collect().sort("run", "step", "client")


def test_only_changed_files_are_read_again(tmp_path, reads):
    runs = {name: two_client_run(tmp_path / name, state="running") for name in ("a", "b")}
    make_old(tmp_path)
    first = load(tmp_path)
    assert sorted(reads) == ["a/rank00000.h5", "a/rank00001.h5", "b/rank00000.h5", "b/rank00001.h5"]
    reads.clear()
    again = load(tmp_path)
    assert reads == []
    assert all_steps(again).equals(all_steps(first), null_equal=True)
    assert again.runs.equals(first.runs)

    # A second attempt: the files of the first stay read. A status of its own changes no log.
    add_attempt(RunFolder(tmp_path / "b"), 10, [range(10, 12), range(10, 12)])
    RunFolder(tmp_path / "a").write_status("failed", error="out of memory")
    frames = load(tmp_path)
    assert reads == ["b/rank00000.h5", "b/rank00001.h5"]
    assert frames.runs["state"].to_list() == ["failed", "running"]
    assert frames.steps.group_by("run").len().collect().sort("run").rows() == [("a", 40), ("b", 24)]
    assert runs["b"].path.exists()

    # Written just now, they may change again without a new time.
    reads.clear()
    load(tmp_path)
    assert reads == ["b/rank00000.h5", "b/rank00001.h5"]


def test_a_run_that_is_gone_is_gone(tmp_path, reads):
    two_client_run(tmp_path / "a")
    two_client_run(tmp_path / "b")
    make_old(tmp_path)
    load(tmp_path)
    (tmp_path / "a").rename(tmp_path / "c")
    reads.clear()
    frames = load(tmp_path)
    assert frames.runs["run"].to_list() == ["b", "c"]
    assert frames.steps.group_by("run").len().collect().sort("run").rows() == [("b", 40), ("c", 40)]


def test_torn_files_are_looked_at_again(tmp_path, reads):
    attempt = two_client_run(tmp_path / "a")
    log = attempt.rank_log(1)
    whole = log.read_bytes()
    log.write_bytes(whole[:1000])
    make_old(tmp_path)
    assert len(load(tmp_path).problems) == 1
    reads.clear()
    assert len(load(tmp_path).problems) == 1
    assert reads == ["a/rank00001.h5"]
    log.write_bytes(whole)
    frames = load(tmp_path)
    assert (len(frames.problems), len(frames.steps.collect())) == (0, 40)


def losses(tmp_path):
    """Number of rows, and the losses of step 0, by run."""
    frame = load(tmp_path).steps.collect().sort("run", "step", "client")
    return {
        run: (len(rows), rows.filter(step=0)["loss"].to_list())
        for (run,), rows in frame.group_by("run", maintain_order=True)
    }


def test_a_new_run_does_not_get_the_rows_of_a_deleted_one(tmp_path):
    for name, num_steps in (("a", 3), ("b", 5)):
        two_client_run(tmp_path / name, num_steps=num_steps)
    make_old(tmp_path)
    assert losses(tmp_path) == {"a": (6, [0.0, 10.0]), "b": (10, [0.0, 10.0])}
    # The one with the highest numbers, in a piece that the other one keeps alive.
    shutil.rmtree(tmp_path / "b")
    assert losses(tmp_path) == {"a": (6, [0.0, 10.0])}
    add_attempt(fresh := RunFolder(tmp_path / "c"), 0, [[0], [0]])
    fresh.write_config("clients: 2\n")
    assert losses(tmp_path) == {"a": (6, [0.0, 10.0]), "c": (2, [0.0, 1000.0])}


def test_a_log_that_was_torn_for_a_while_has_its_rows_once(tmp_path):
    attempt = two_client_run(tmp_path / "a", num_steps=3)
    log = attempt.rank_log(1)
    whole = log.read_bytes()
    make_old(tmp_path)
    assert losses(tmp_path) == {"a": (6, [0.0, 10.0])}
    log.write_bytes(whole[:1000])
    assert losses(tmp_path) == {"a": (3, [0.0])}
    log.write_bytes(whole)
    assert losses(tmp_path) == {"a": (6, [0.0, 10.0])}


def test_reading_while_a_run_writes(tmp_path):
    folder = RunFolder(tmp_path / "a")
    attempt = folder.next_attempt()
    folder.write_config("clients: 1\n")
    with RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": 0}) as log:
        for step in range(250):
            log.append("steps", step=step, round=0, client=0, local_batch_size=1, num_samples=step)
            if step in (120, 249):
                log.flush()
                assert len(load(tmp_path).steps.collect()) == step + 1
