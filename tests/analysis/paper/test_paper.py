"""The paper's tables beside runs, with tables that are worked out by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from hpclbfl.analysis.paper.compare import Comparison, Measured, Pair, compare_with_paper
from hpclbfl.analysis.paper.report import order_table, rows_table, runs_table
from hpclbfl.analysis.paper.rows import known_tables, paper_table, row_of
from hpclbfl.analysis.read.configs import flatten
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.markup import TextTable, to_rich
from hpclbfl.cli.app import app
from hpclbfl.core.errors import ConfigError
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.writer import RunLog
from tests.analysis.synthetic import PROVENANCE

BSP = {"kind": "bsp"}
EPOCH = {"kind": "fedavg", "local_steps": None, "local_epochs": 1.0}
IID = {"kind": "iid", "reshuffle": False, "labels": None}
CIFAR10 = {"name": "packed", "path": "/data/cifar10.h5"}
CIFAR100 = {"name": "packed", "path": "/data/cifar100.h5"}
JOB: dict[str, Any] = {
    "name": "mine",
    "clients": 10,
    "data": CIFAR10,
    "partition": IID,
    "model": {"name": "resnet50"},
    "sync": BSP,
    "batching": {"local_batch_size": 32},
}
"""Stands for ResNet50, i.i.d., BSP."""
SMALL = {
    "model": {"name": "resnet8_gn"},
    "data": {**CIFAR10, "limit": 10000, "resize": 8},
    "batching": {"local_batch_size": 16},
}
SCALER = {"factor": 16.0, "threshold": 0.5, "when": "delta_ge"}


def fa(local_steps: int) -> dict[str, Any]:
    return {"kind": "fedavg", "local_steps": local_steps, "local_epochs": None}


def labels(count: int) -> dict[str, Any]:
    return {"kind": "labels_per_client", "labels": count}


def make_runs(root: Path, top1: Sequence[float], state: str = "done", **job: Any) -> None:
    """A run for each accuracy (0 to 1), seeds from 0; of JOB, unless the job says otherwise; top-5 is 0.05 above."""
    for seed, accuracy in enumerate(top1):
        whole = {**JOB, "lr": 0.1, **job}
        folder = RunFolder(root / f"run{len(list(root.glob('*')))}")
        attempt = folder.next_attempt()
        folder.write_config(yaml.safe_dump({**whole, "seed": seed}))
        attempt.write_provenance({**PROVENANCE, "num_ranks": 1})
        with RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": 0}) as log:
            for step, share in ((9, 0.1), (19, accuracy)):
                log.append(
                    "evals",
                    step=step,
                    split="test",
                    top1=share,
                    top5=share + 0.05,
                    loss=1.0,
                    elapsed_s=1.0,
                    num_samples=step,
                )
        folder.write_status(state)
        if state == "done":
            folder.mark_done({"reason": "steps", "elapsed_s": 1.0})


def measured(compared: Comparison, key: str) -> Measured:
    (found,) = (row for row in compared.rows if row.row.key == key)
    return found


def pair(compared: Comparison, higher: str, lower: str) -> Pair:
    (found,) = (p for p in compared.pairs if (p.higher.key, p.lower.key) == (higher, lower))
    return found


def printed(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_all_printed_numbers() -> None:
    assert known_tables() == ["table1", "table2"]
    first = {row.key: row.accuracy for row in paper_table("table1").rows}
    assert list(first.values()) == [82.54, 81.01, 65.35, 58.72, 83.91, 74.5, 71.01, 32.86, 67.1, 62.67, 66.6, 35.2]
    assert first["vgg11/non-iid/fa"] == 32.86
    second = {row.key: row.accuracy for row in paper_table("table2").rows}
    assert list(second.values()) == [78.07, 76.77, 67.31, 66.26, 75.96, 70.79, 31.24, 12.0, 61.14, 59.62, 23.8, 24.1]
    assert second["alexnet/non-iid/h1000"] == 24.1
    for name in known_tables():
        table = paper_table(name)
        wanted = [f"{m}/{p}/{s}" for m in table.models for p in ("iid", "non-iid") for s in table.methods]
        assert [row.key for row in table.rows] == wanted


@pytest.mark.parametrize(
    ("table", "job", "key"),
    [
        # By the job.
        ("table1", {"sync.kind": "bsp", "partition.kind": "iid"}, "resnet50/iid/bsp"),
        ("table1", {"sync.kind": "fedavg", "sync.local_epochs": 1.0}, "resnet50/iid/fa"),
        ("table1", {"sync.kind": "fedavg", "sync.local_steps": 250}, None),
        ("table2", {"sync.kind": "fedavg", "sync.local_steps": 250}, "resnet50/iid/h250"),
        ("table2", {"sync.kind": "bsp"}, None),
        ("table1", {"sync.kind": "bsp", "model.name": "resnet18"}, None),
        (
            "table1",
            {"sync.kind": "bsp", "partition.kind": "labels_per_client", "partition.labels": 1},
            "resnet50/non-iid/bsp",
        ),
        ("table1", {"sync.kind": "bsp", "partition.kind": "labels_per_client", "partition.labels": 2}, None),
        ("table1", {"sync.kind": "bsp", "partition.kind": "dirichlet"}, None),
        ("table1", {"clients": 1}, None),
        ("table1", {"gradients.scaler.factor": 16.0}, None),
        ("table1", {"data.path": "/data/food101.h5"}, None),
        ("table1", {"data.path": "/data/cifar100.h5"}, None),
        ("table1", {"data.name": "cifar10", "data.path": "/data"}, "resnet50/iid/bsp"),
        ("table1", {"data.name": "imagefolder", "data.path": "/data/cifar10"}, None),
        ("table1", {"data.limit": 10000}, None),
        ("table1", {"model.name": "vgg11", "data.path": "/data/cifar100.h5"}, "vgg11/iid/bsp"),
        ("table1", {"model.name": "alexnet", "data.path": "/data/caltech101.h5"}, "alexnet/iid/bsp"),
        ("table1", {"model.name": "vgg11"}, None),
        ("table1", {"batching.local_batch_size": None, "batching.global_batch_size": 1024}, "resnet50/iid/bsp"),
        ("table1", {"name": "fig3-resnet50"}, None),
        ("table1", {"name": "table2-resnet50"}, None),
        ("table1", {"name": "figments"}, "resnet50/iid/bsp"),
        # By the name, whatever else the job is.
        ("table1", {"name": "table1-resnet50-bsp", "clients": 1, "data.limit": 9}, "resnet50/iid/bsp"),
        ("table1", {"name": "table1-vgg11-bsp", "sync.kind": "bsp", "model.name": "tiny"}, "vgg11/iid/bsp"),
        ("table1", {"name": "table1-vgg11", "sync.kind": "bsp", "model.name": "tiny"}, "vgg11/iid/bsp"),
        ("table1", {"name": "table1-vgg11-fa", "sync.kind": "fedavg", "sync.local_steps": 6}, "vgg11/iid/fa"),
        ("table1", {"name": "table1-vgg11", "sync.kind": "fedavg", "sync.local_steps": 6}, None),
        ("table2", {"name": "table2-vgg11-h1000", "sync.kind": "fedavg", "sync.local_steps": 250}, "vgg11/iid/h1000"),
        # A name that says what the job is not, or nothing.
        ("table1", {"name": "table1-vgg11-fa", "sync.kind": "bsp"}, None),
        ("table1", {"name": "table1-lenet-bsp", "sync.kind": "bsp"}, None),
        ("table1", {"name": "table1-vgg11-sgd", "sync.kind": "bsp"}, None),
        ("table1", {"name": "table1-vgg11-bsp-more", "sync.kind": "bsp"}, None),
        ("table1", {"name": "table1", "sync.kind": "bsp"}, None),
        ("table1", {"name": "table2-vgg11-h250", "sync.kind": "bsp", "model.name": "tiny"}, None),
    ],
)
def test_rows_that_runs_stand_for(table: str, job: dict[str, Any], key: str | None) -> None:
    found = row_of({**flatten(JOB), **job}, table, paper_table(table))
    assert (found.key if found else None) == key


def test_differences_from_the_paper(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.80, 0.82, 0.84])
    make_runs(tmp_path, [0.85, 0.85, 0.85], sync=EPOCH)
    make_runs(tmp_path, [0.5, 0.6], name="table1-vgg11-fa", sync=fa(6), partition=labels(1), **SMALL)
    make_runs(tmp_path, [0.9], state="failed", partition=labels(1))
    make_runs(tmp_path, [0.9, 0.9], model={"name": "lenet"})
    make_runs(tmp_path, [0.7], name="table1-alexnet-bsp", partition=labels(10), gradients={"scaler": SCALER})
    compared = compare_with_paper(load(tmp_path), "table1")
    assert (compared.others, compared.unfinished) == (2, 1)
    assert len(compared.rows) == 12
    bsp = measured(compared, "resnet50/iid/bsp")
    assert bsp.n == 3
    assert bsp.top1 == pytest.approx(82.0) and bsp.top5 == pytest.approx(87.0)
    assert bsp.difference == pytest.approx(82.0 - 82.54)
    # Three values 2 points apart, t(2) = 4.3027.
    assert bsp.low == pytest.approx(-0.54 - 4.3027 * 2 / 3**0.5, abs=1e-3)
    assert bsp.high == pytest.approx(-0.54 + 4.3027 * 2 / 3**0.5, abs=1e-3)
    assert bsp.run_as == "resnet50, cifar10, bsp, iid, 10 clients, b=32"
    vgg = measured(compared, "vgg11/non-iid/fa")
    assert (vgg.n, vgg.low, vgg.high) == (2, None, None)
    assert vgg.difference == pytest.approx(55.0 - 32.86)
    assert vgg.run_as == "resnet8_gn, 10000 of cifar10 at 8 px, fedavg H=6, 1 label/client, 10 clients, b=16"
    scaled = measured(compared, "alexnet/non-iid/bsp")
    assert scaled.run_as == "resnet50, cifar10, bsp, 10 labels/client, 10 clients, b=32, X=16"
    failed, missing = measured(compared, "resnet50/non-iid/bsp"), measured(compared, "alexnet/iid/bsp")
    assert (failed.n, failed.top1) == (0, None)
    assert failed.run_as == "resnet50, cifar10, bsp, 1 label/client, 10 clients, b=32"
    assert (missing.n, missing.top1, missing.difference, missing.run_as) == (0, None, None, None)
    rows = rows_table(compared).rows
    assert rows[1] == ("ResNet50 CIFAR10", "IID FA", "81.01", "85.00", "90.00", "+3.99 [+3.99, +3.99]", "3")
    assert rows[2][3:] == ("-", "-", "-", "0")
    assert rows[8] == ("AlexNet CalTech101", "IID BSP", "67.1", "-", "-", "-", "-")
    ran = runs_table(compared).rows
    assert [row[:2] for row in ran] == [row[:2] for row in rows if row[-1] != "-"]
    assert ran[0] == ("ResNet50 CIFAR10", "IID BSP", bsp.run_as)


def test_order_of_the_rows(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.80, 0.82, 0.84])  # IID BSP
    make_runs(tmp_path, [0.86, 0.87, 0.91], sync=EPOCH)  # IID FA: higher for every seed, by 6, 5, 7
    make_runs(tmp_path, [0.60, 0.99, 0.70], partition=labels(1))  # Non-IID BSP: lower but for one seed
    compared = compare_with_paper(load(tmp_path), "table1")
    reversed_ = pair(compared, "resnet50/iid/bsp", "resnet50/iid/fa")
    assert reversed_.printed == pytest.approx(1.53)
    assert reversed_.n == 3 and reversed_.difference == pytest.approx(-6.0)
    assert reversed_.high == pytest.approx(-6 + 4.3027 / 3**0.5, abs=1e-3)
    # p = 0.0091 alone, of three pairs that can be tested.
    assert reversed_.verdict == "reversed" and reversed_.p_holm == pytest.approx(3 * 0.009134, rel=1e-3)
    assert pair(compared, "resnet50/iid/bsp", "resnet50/non-iid/bsp").verdict == "no difference seen"
    absent = pair(compared, "resnet50/iid/fa", "resnet50/non-iid/fa")
    assert (absent.n, absent.difference, absent.verdict) == (0, None, "-")
    # Six pairs of four rows for each of three nets.
    assert len(compared.pairs) == 18
    assert compared.order("resnet50", ours=False) == ["IID BSP", "IID FA", "Non-IID BSP", "Non-IID FA"]
    assert compared.order("resnet50", ours=True) == ["IID FA", "IID BSP", "Non-IID BSP"]
    note = order_table(compared).notes[0]
    assert "ours IID FA > IID BSP > Non-IID BSP" in note
    assert "0 of 3 pairs as in the paper, 1 reversed, 2 without a significant difference" in note
    assert order_table(compared).notes[1] == "VGG11 CIFAR100: no complete run."


def test_an_order_that_holds(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.30, 0.31, 0.32], name="table2-alexnet-h250", sync=fa(10), **SMALL)
    make_runs(tmp_path, [0.20, 0.22, 0.22], name="table2-alexnet-h1000", sync=fa(40), **SMALL)
    compared = compare_with_paper(load(tmp_path), "table2")
    assert pair(compared, "alexnet/iid/h250", "alexnet/iid/h1000").verdict == "as in the paper"
    # The paper's own order of the two other rows is the reverse of its rule.
    assert compared.order("alexnet", ours=False)[2:] == ["Non-IID 1000", "Non-IID 250"]


def test_one_seed_says_nothing(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.9])
    make_runs(tmp_path, [0.8], sync=EPOCH)
    compared = compare_with_paper(load(tmp_path), "table1")
    found = pair(compared, "resnet50/iid/bsp", "resnet50/iid/fa")
    assert found.difference == pytest.approx(10.0) and found.low is None
    assert found.verdict == "not enough seeds to say"
    assert "An interval needs 3 seeds." in rows_table(compared).notes[-1]


def test_unlike_experiments_for_one_row_are_refused(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.9])
    make_runs(tmp_path, [0.8], lr=0.2)
    with pytest.raises(
        ConfigError, match=r"2 different experiments belong to the row ResNet50 CIFAR10, IID BSP: lr=0.1"
    ):
        compare_with_paper(load(tmp_path), "table1")


def test_runs_of_a_figure_stand_for_no_row(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.9], name="table1-resnet50")
    figure = {"clients": 1, "batching": {"global_batch_size": 1024}, "gradients": {"scaler": SCALER}}
    make_runs(tmp_path, [0.8], name="fig7-resnet50", data={"name": "packed", "path": "/data/food101.h5"}, **figure)
    make_runs(tmp_path, [0.7], name="again", **figure)
    compared = compare_with_paper(load(tmp_path), "table1")
    assert (measured(compared, "resnet50/iid/bsp").top1, compared.others) == (pytest.approx(90.0), 2)


def test_a_run_of_another_kind_of_h_beside_them_changes_nothing(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.9], sync=fa(250))
    make_runs(tmp_path, [0.8], sync={"kind": "fedavg", "local_steps": "proportional", "local_epochs": None})
    compared = compare_with_paper(load(tmp_path), "table2")
    assert (measured(compared, "resnet50/iid/h250").n, compared.others) == (1, 1)


def test_what_was_run_is_told_of_the_runs_that_count(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.9])
    make_runs(tmp_path, [0.8], state="failed", batching={"global_batch_size": 1024, "policy": "dynamic"})
    found = measured(compare_with_paper(load(tmp_path), "table1"), "resnet50/iid/bsp")
    assert (found.n, found.run_as) == (1, "resnet50, cifar10, bsp, iid, 10 clients, b=32")
    failed = tmp_path / "failed"
    make_runs(failed, [0.8], state="failed", batching={"global_batch_size": 1024, "policy": "dynamic"})
    found = measured(compare_with_paper(load(failed), "table1"), "resnet50/iid/bsp")
    assert (found.n, found.run_as) == (0, "resnet50, cifar10, bsp, iid, 10 clients, B=1024 dynamic")


def at_100_columns(table: TextTable) -> list[str]:
    console = Console(width=100, file=io.StringIO(), highlight=False)
    console.print(to_rich(table))
    assert isinstance(console.file, io.StringIO)
    return [line for line in console.file.getvalue().splitlines() if line.strip()]


def test_tables_fit_into_100_columns(tmp_path: Path) -> None:
    for h in (250, 1000):
        for name in ("resnet50", "vgg11", "alexnet"):
            for partition in (IID, labels(1)):
                make_runs(
                    tmp_path,
                    [0.1, 0.3, 0.4 + h / 5000],
                    name=f"table2-{name}-h{h}",
                    sync=fa(h // 25),
                    **SMALL,
                    partition=partition,
                )
    compared = compare_with_paper(load(tmp_path), "table2")
    rows = at_100_columns(rows_table(compared))
    # A title of two lines, heads of two with a rule, and the rows; numbers as printed.
    assert len(rows) == 5 + 12
    assert "AlexNet CalTech101   Non-IID 1000    24.1 (2)   33.33   38.33     +9.23 [−53.28, +71.75]" in rows[-1]
    assert "VGG11 CIFAR100       Non-IID 1000        12.0   33.33" in rows[12]
    order = at_100_columns(order_table(compared))
    assert len(order) == 3 + 18 and order[-1].rstrip().endswith("no difference seen")
    assert "10000 of cifar10 at 8 px" in "\n".join(at_100_columns(runs_table(compared)))
    assert "…" not in "\n".join([*rows, *order])


def test_the_command_prints_all_forms(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.80, 0.82, 0.84])
    code, text = printed(str(tmp_path), "--paper", "table1")
    assert code == 0 and text.count("CIFAR100") > 4 and "82.00   87.00   −0.54 [" in text
    assert "What was run" in text and "resnet50, cifar10, bsp, iid, 10 clients, b=32" in text
    assert "against the text, by which more frequent averaging is better" in text
    code, markdown = printed(str(tmp_path), "--paper", "table1", "--format", "markdown")
    assert code == 0 and markdown.count("| ResNet50 CIFAR10 | IID BSP | 82.54 | 82.00 | 87.00 |") == 1
    assert markdown.count("| ResNet50 CIFAR10 | IID BSP | resnet50, cifar10, bsp, iid, 10 clients, b=32 |") == 1
    code, latex = printed(str(tmp_path), "--paper", "table1", "--format", "latex")
    assert code == 0 and latex.count(r"\begin{table}") == 3
    assert "ResNet50 CIFAR10 & IID BSP & 82.54 & 82.00 & 87.00 &" in latex
    code, machine = printed(str(tmp_path), "--paper", "table1", "--json")
    found = json.loads(machine)
    assert code == 0 and [len(found["rows"]), len(found["pairs"])] == [12, 18]
    first = found["rows"][0]
    assert (first["accuracy"], first["n"], first["configuration"]) == (82.54, 3, "ResNet50 CIFAR10")
    assert first["difference"] == pytest.approx(-0.54) and first["top5"] == pytest.approx(87.0)
    assert found["rows"][1]["top1"] is None and found["pairs"][0]["printed"] == pytest.approx(1.53)
    assert found["orders"]["resnet50"]["ours"] == ["IID BSP"]


def test_wrong_use_is_told_in_one_line(tmp_path: Path) -> None:
    make_runs(tmp_path, [0.8])
    for words, message in (
        (("--paper", "table9"), "--paper table9: no such table, known are table1, table2"),
        (("--paper", "table1", "--target", "0.5"), "--target: does not go with --paper"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            printed(str(tmp_path), *words)
        assert error.value.exit_code == 2 and "\n" not in str(error.value)
