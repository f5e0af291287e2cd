"""The summary of run folders, against numbers worked out by hand."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpclbfl.analysis.tables import (
    WIDTH,
    describe_partition,
    describe_sync,
    find_runs,
    print_summary,
    summary_rows,
)
from hpclbfl.errors import DataError
from hpclbfl.runfolder import RunFolder
from hpclbfl.runlog.writer import RunLog

ONE_LABEL = "partition: {kind: labels_per_client, labels: 1}\n"


def make_run(path, sync="{kind: bsp}", partition="", state="done", num_steps=20):
    """Two ranks, one client each with 30 and 10 samples per step; client c's loss in step s is 10 * c + s."""
    folder = RunFolder(path)
    attempt = folder.next_attempt()
    folder.write_config(f"name: a\nclients: 2\nsync: {sync}\n{partition}")
    attempt.write_provenance({"engine": "horovod", "num_ranks": 2})
    for rank, size in enumerate((30, 10)):
        with RunLog(attempt.rank_log(rank), {"rank": rank, "attempt": 0, "resumed_from_step": 0}) as log:
            for step in range(num_steps):
                log.append(
                    "steps",
                    step=step,
                    round=step,
                    epoch=(step + 1) * 0.1,
                    client=rank,
                    local_batch_size=size,
                    num_samples=(step + 1) * 40,
                    loss=10.0 * rank + step,
                    t_data_s=0.1,
                    t_compute_s=0.6,
                    t_sync_s=0.3,
                    t_step_s=1.0,
                )
            if rank == 0:
                for step, top1 in ((9, 0.75), (19, 0.71234)):
                    common = {"step": step, "num_samples": (step + 1) * 40, "elapsed_s": step + 1.5}
                    log.append("evals", **common, split="test", loss=1.0, top1=top1, top5=0.9)
                    log.append("evals", **common, split="train", loss=1.0, top1=0.99, top5=1.0)
    folder.write_status(state, **({"error": "rank 1: out of memory"} if state == "failed" else {}))
    if state == "done":
        folder.mark_done({})
    return attempt


def test_rows_by_hand(tmp_path):
    make_run(tmp_path / "runs" / "b", "{kind: fedavg, local_steps: 250, local_epochs: null}", ONE_LABEL)
    (row,) = summary_rows(find_runs(tmp_path))
    # The last 10 % of 20 steps: 18 and 19, 30 samples at the step's number, 10 at ten more.
    assert row.pop("train_loss") == pytest.approx((30 * 18 + 10 * 28 + 30 * 19 + 10 * 29) / 80)
    assert row.pop("epochs") == pytest.approx(2.0)
    shares = [row.pop(f"share_{part}") for part in ("data", "compute", "sync")]
    assert shares == pytest.approx([0.1, 0.6, 0.3])
    assert row == {
        "run": "b",
        "path": str(tmp_path / "runs" / "b"),
        "sync": "fedavg H=250",
        "partition": "1 label/client",
        "clients": 2,
        "ranks": 2,
        "engine": "horovod",
        "steps": 20,
        "top1": 0.71234,
        "best_top1": 0.75,
        "top5": 0.9,
        "elapsed_s": 20.5,
        "state": "done",
        "problems": [],
    }


def test_find_runs(tmp_path):
    for name in ("runs/b", "runs/a", "deep/down/runs/c"):
        RunFolder(tmp_path / name).create()
        RunFolder(tmp_path / name).write_config("clients: 1\n")
    (tmp_path / "runs" / "a" / "checkpoints" / "config.yaml").write_text("")
    assert [p.relative_to(tmp_path).as_posix() for p in find_runs(tmp_path)] == ["deep/down/runs/c", "runs/a", "runs/b"]
    assert find_runs(tmp_path / "runs" / "a") == [tmp_path / "runs" / "a"]


def test_printed_table(tmp_path, capsys):
    make_run(tmp_path / "runs" / "bsp-iid")
    make_run(tmp_path / "runs" / "fedavg-one-label", "{kind: fedavg, local_epochs: 1}", ONE_LABEL)
    failed = make_run(tmp_path / "runs" / "failed", state="failed")
    failed.rank_log(1).write_bytes(failed.rank_log(1).read_bytes()[:30000])
    print_summary(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= WIDTH for line in lines if tmp_path.name not in line)
    head, *rows = [re.split(r"  +", line.strip()) for line in lines if re.search("accuracy| %", line)]
    assert head == ["sync", "partition", "test accuracy", "seconds", "state", "run"]
    assert rows[0] == ["bsp", "iid", "71.2 %", "20.5", "done", "runs/bsp-iid"]
    assert [row[-2:] for row in rows[1:]] == [["failed", "runs/failed"], ["done", "runs/fedavg-one-label"]]
    assert rows[2][:2] == ["fedavg H=1 ep", "1 label/client"]
    assert f"logs: {tmp_path}/<run>/attempts/*/rank*.h5" in lines
    assert "runs/failed: failed: rank 1: out of memory" in lines
    assert sum("rank00001.h5: is torn" in line for line in lines) == 1


def test_printed_table_of_one_run(tmp_path, capsys):
    make_run(tmp_path / "alone")
    print_summary(tmp_path / "alone")
    out = capsys.readouterr().out
    assert f"logs: {tmp_path}/alone/attempts/*/rank*.h5" in out
    assert "state" not in out


def test_json(tmp_path, capsys):
    RunFolder(tmp_path / "a").next_attempt()
    RunFolder(tmp_path / "a").write_config("clients: 3\n")
    make_run(tmp_path / "b")
    print_summary(tmp_path, as_json=True)
    unfinished, whole = json.loads(capsys.readouterr().out)
    assert (unfinished["clients"], unfinished["top1"], unfinished["train_loss"]) == (3, None, None)
    assert (unfinished["state"], whole["state"], whole["top1"]) == ("unknown", "done", 0.71234)


def test_a_run_that_cannot_be_read_is_a_row(tmp_path, capsys):
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("a: [")
    good, bad = summary_rows(find_runs(tmp_path))
    assert (bad["state"], bad.keys()) == ("unreadable", good.keys())
    assert math.isnan(bad["top1"])
    print_summary(tmp_path)
    assert "config.yaml cannot be read" in capsys.readouterr().out


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        print_summary(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        print_summary(tmp_path / "none")


@pytest.mark.parametrize(
    ("config", "sync", "partition"),
    [
        ({}, "bsp", "iid"),
        ({"sync": {"kind": "fedavg", "local_epochs": 0.5}}, "fedavg H=0.5 ep", "iid"),
        ({"partition": {"kind": "dirichlet", "alpha": 0.1}}, "bsp", "dirichlet 0.1"),
        ({"partition": {"kind": "labels_per_client", "labels": 2}}, "bsp", "2 labels/client"),
    ],
)
def test_descriptions(config, sync, partition):
    assert (describe_sync(config), describe_partition(config)) == (sync, partition)


def test_loads_neither_torch_nor_horovod(tmp_path):
    make_run(tmp_path / "a")
    code = (
        "import sys; from hpclbfl.analysis.tables import print_summary; print_summary(sys.argv[1]); "
        "print({'torch', 'horovod', 'mpi4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_no_other_import_name():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", "import analysis"], capture_output=True, text=True, cwd=root)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: this folder is the package hpclbfl.analysis; it cannot be imported as 'analysis'"
