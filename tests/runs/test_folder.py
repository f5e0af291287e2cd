"""The run folder: attempts get distinct numbers, and no file is read half written."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.jsonfile import write_json
from hpclbfl.runs.folder import Done, RunFolder


def take_attempts(path, count, barrier, queue):
    folder = RunFolder(path)
    barrier.wait()
    queue.put([folder.next_attempt().number for _ in range(count)])


def test_layout(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    first, second = folder.next_attempt(), folder.next_attempt()
    folder.write_config("name: run\n")
    folder.write_status("running", step=3)
    first.write_provenance({"engine": "local"})
    folder.mark_done({"top1": 0.5})
    found = sorted(p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*"))
    assert found == sorted(
        [
            *("DONE.json", "attempts", "attempts/000", "attempts/000/provenance.json", "attempts/001", "checkpoints"),
            *("config.yaml", "status.json"),
        ]
    )
    assert second.rank_log(12) == folder.path / "attempts" / "001" / "rank00012.h5"
    assert second.log == folder.path / "attempts" / "001" / "log"
    assert folder.attempts() == [first, second] == [folder.attempt(0), folder.attempt(1)]


def test_status_and_done(tmp_path):
    folder = RunFolder(tmp_path)
    assert (folder.status(), folder.done()) == (None, None)
    folder.write_status("running", step=3)
    folder.write_status("failed", error="no data")
    status = folder.status()
    assert (status.state, status.error, status.step) == ("failed", "no data", None)
    assert status.time.endswith("+00:00")
    folder.mark_done({"reason": "steps", "step": 3, "epoch": 1.5, "num_samples": 9, "hash": "ab", "top1": 0.5})
    assert folder.done() == Done("steps", 3, 1.5, 9, "ab", top1=0.5)
    folder.clear_done()
    folder.clear_done()
    assert folder.done() is None


def test_next_attempt_after_a_gap(tmp_path):
    folder = RunFolder(tmp_path)
    for number in (0, 7, 1000):
        folder.attempt(number).path.mkdir(parents=True)
    assert folder.next_attempt().number == 1001


def test_next_attempt_race(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=take_attempts, args=(tmp_path, 40, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    taken = queue.get(timeout=30) + queue.get(timeout=30)
    for process in processes:
        process.join()
    assert sorted(taken) == list(range(80))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_status("running", step=1)

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentFault, match=r"status\.json: cannot be written: no space left on device"):
        folder.write_status("running", step=2)
    assert folder.status().step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_the_new_file_is_whole_before_it_has_its_name(tmp_path, monkeypatch):
    replace = Path.replace
    seen = []

    def look_first(self, target):
        seen.append((json.loads(self.read_text())["n"], json.loads(target.read_text())["n"]))
        return replace(self, target)

    write_json(tmp_path / "a.json", {"n": 1})
    monkeypatch.setattr(Path, "replace", look_first)
    write_json(tmp_path / "a.json", {"n": 2})
    assert seen == [(2, 1)]


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    for act in (RunFolder(tmp_path / "run").next_attempt, lambda: RunFolder(tmp_path / "run").write_config("a: 1\n")):
        with pytest.raises(
            EnvironmentFault, match=r"run.*: cannot be written: (not a directory|file exists)"
        ) as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentFault, match="cannot be written: permission denied"):
        RunFolder(tmp_path).next_attempt()


def test_unreadable_status_is_none(tmp_path):
    (tmp_path / "status.json").write_text("{")
    assert RunFolder(tmp_path).status() is None
