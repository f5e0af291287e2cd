"""A run folder read whole: ranks and attempts merged."""

import json
import shutil

import numpy as np
import pytest

from hpclbfl.core.errors import DataError
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.reader import read_run
from tests.attempts import add_attempt


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_config("clients: 2\n")
    return folder


def test_attempts_by_hand(folder):
    # Resumed at 4, killed, resumed at 2 (the checkpoint at 4 was damaged), finished.
    add_attempt(folder, 0, [range(6), range(5)], evals=[1, 3, 5], events=[5])
    add_attempt(folder, 4, [range(4, 8), range(4, 8)], evals=[5, 7])
    add_attempt(folder, 2, [range(2, 5), range(2, 5)], evals=[3])
    run = read_run(folder.path)
    steps = run.tables["steps"]
    expected = [(0, 0, 0), (0, 1, 1000), (1, 0, 1), (1, 1, 1001)]
    expected += [(step, rank, 20000 + rank * 1000 + step) for step in (2, 3, 4) for rank in (0, 1)]
    assert list(zip(steps["step"], steps["client"], steps["loss"], strict=True)) == expected
    assert run.tables["evals"][["step", "top1"]].tolist() == [(1, 0.0), (3, 2.0)]
    assert run.tables["layers"]["step"].tolist() == [0, 1, 2, 3, 4]
    assert run.tables["plans"]["reason"].tolist() == [b"0.0", b"1.0", b"2.0"]
    assert len(run.tables["events"]) == 0
    assert (run.num_attempts, run.torn, run.config) == (3, [], {"clients": 2})
    assert run.provenance["attempt"] == 2
    assert (run.status, run.done) == ({}, None)


def test_resumed_at_the_checkpoint_keeps_what_came_before(folder):
    add_attempt(folder, 0, [range(7)], evals=[3, 5])
    add_attempt(folder, 4, [range(4, 6)], evals=[5])
    run = read_run(folder.path)
    assert run.tables["steps"]["loss"].tolist() == [0, 1, 2, 3, 10004, 10005]
    assert run.tables["evals"]["top1"].tolist() == [0, 1]


def test_started_anew_drops_all_that_was(folder):
    add_attempt(folder, 0, [range(7)], evals=[3])
    add_attempt(folder, 0, [range(2)])
    run = read_run(folder.path)
    assert run.tables["steps"]["loss"].tolist() == [10000, 10001]
    assert len(run.tables["evals"]) == 0
    assert run.tables["plans"]["reason"].tolist() == [b"1.0"]


def test_equal_events_stand_once(folder):
    add_attempt(folder, 0, [range(3), range(3)], events=[2, 1])
    assert run_events(folder) == [(1, b"note", b"attempt 0"), (2, b"note", b"attempt 0")]


def run_events(folder):
    return read_run(folder.path).tables["events"].tolist()


def test_torn_and_missing_files_are_listed(folder):
    attempt = add_attempt(folder, 0, [range(300), range(300), range(300)])
    torn, missing = attempt.rank_log(1), attempt.rank_log(2)
    torn.write_bytes(torn.read_bytes()[:30000])
    missing.unlink()
    (folder.path / "status.json").write_text('{"state": ')
    run = read_run(folder.path)
    assert np.unique(run.tables["steps"]["client"]).tolist() == [0]
    assert [t.path for t in run.torn] == [folder.path / "status.json", torn, attempt.path]
    assert "1 of 3 ranks left no log" in str(run.torn[2])
    assert all("\n" not in str(t) for t in run.torn)


def torn(folder):
    """Path, seen from the run folder, and reason of all that is missing."""
    return [(t.path.relative_to(folder.path).as_posix(), t.reason) for t in read_run(folder.path).torn]


def test_a_run_that_is_done_and_left_no_log(folder):
    attempt = add_attempt(folder, 0, [range(3), range(3)])
    folder.mark_done({"step": 3})
    assert torn(folder) == []
    for rank in (0, 1):
        attempt.rank_log(rank).unlink()
    assert torn(folder) == [("attempts", "no log has the rows of steps 0 to 2")]
    shutil.rmtree(folder.path / "attempts")
    assert torn(folder) == [("attempts", "no log has the rows of steps 0 to 2")]
    folder.clear_done()
    folder.write_status("requeue")
    assert torn(folder) == []


def test_an_attempt_that_is_gone(folder):
    first = add_attempt(folder, 0, [range(6), range(4)])
    add_attempt(folder, 4, [range(4, 9), range(4, 8)])
    last = add_attempt(folder, 8, [range(8, 10), range(8, 10)])
    folder.mark_done({"step": 10})
    assert torn(folder) == []
    shutil.rmtree(folder.path / "attempts" / "001")
    reasons = ["lacks the rows of steps 6 to 7", "lacks the rows of steps 4 to 7"]
    assert torn(folder) == [(f"attempts/000/rank0000{rank}.h5", reason) for rank, reason in enumerate(reasons)]
    shutil.rmtree(first.path)
    assert torn(folder) == [("attempts", "no log has the rows of steps 0 to 7")]
    shutil.rmtree(last.path)
    assert torn(folder) == [("attempts", "no log has the rows of steps 0 to 9")]


def test_a_log_that_ends_before_the_run(folder):
    add_attempt(folder, 0, [range(5), range(4)])
    assert torn(folder) == []
    folder.mark_done({"step": 5})
    assert torn(folder) == [("attempts/000/rank00001.h5", "lacks the rows of step 4")]


def test_status_and_done(folder):
    folder.write_status("failed", error="no data")
    folder.mark_done({"top1": 0.5})
    run = read_run(folder.path)
    assert (run.status["state"], run.status["error"], run.done["top1"]) == ("failed", "no data", 0.5)
    assert run.num_attempts == 0
    json.dumps([run.status, run.done])


@pytest.mark.parametrize("text", [None, "- 1\n", "a: [\n"])
def test_not_a_run_folder(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match="not a run folder") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rank00001.h5", "rank999999999999.h5"])
def test_a_log_under_another_name_does_not_count_twice(tmp_path, name):
    folder = RunFolder(tmp_path)
    folder.write_config("name: a\n")
    attempt = add_attempt(folder, 0, [range(4)])
    shutil.copy(attempt.rank_log(0), attempt.path / name)
    (tmp_path / "attempts" / "001").mkdir()
    shutil.copy(attempt.rank_log(0), tmp_path / "attempts" / "001" / "rank00000.h5")
    run = read_run(tmp_path)
    assert run.tables["steps"]["step"].tolist() == [0, 1, 2, 3]
    assert {torn.path.name: torn.reason for torn in run.torn if "is the log of" in torn.reason} == {
        name: "is the log of rank 0 in attempt 0, which does not match its name",
        "rank00000.h5": "is the log of rank 0 in attempt 0, which does not match its name",
    }
