"""What `hpclbfl report` prints, against numbers worked out by hand."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpclbfl.analysis.measure.arm_summary import ranked_arms, summarise_arms
from hpclbfl.analysis.measure.report import make_report, summarise, summary_rows
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.read.scan import find_runs
from hpclbfl.analysis.show.markup import TextTable, to_html, to_latex, to_markdown
from hpclbfl.analysis.show.printing import WIDTH
from hpclbfl.analysis.show.tables import arms_table, comparison_table
from hpclbfl.cli.app import app
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.yamlfile import write_sealed
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.writer import RunLog
from tests.analysis.conftest import ONE_LABEL, print_folder, two_client_run
from tests.analysis.synthetic import make_run


def rows_of(root):
    frames = load(root)
    return summary_rows(make_report(frames))


def test_rows_by_hand(tmp_path):
    two_client_run(tmp_path / "runs" / "b", "{kind: fedavg, local_steps: 250, local_epochs: null}", ONE_LABEL)
    (row,) = rows_of(tmp_path)
    # The last 10 % of 20 steps: 18 and 19, 30 samples at the step's number, 10 at ten more.
    assert row.pop("train_loss") == pytest.approx((30 * 18 + 10 * 28 + 30 * 19 + 10 * 29) / 80)
    assert row.pop("epochs") == pytest.approx(2.0)
    assert row.pop("gap_top1") == pytest.approx(0.99 - 0.71234)
    assert row.pop("samples_per_s") == pytest.approx(800 / 20.5)
    shares = [row.pop(f"share_{part}") for part in ("data", "compute", "sync")]
    assert shares == pytest.approx([0.1, 0.6, 0.3])
    expected = {"run": "runs/b", "path": str(tmp_path / "runs" / "b"), "arm": "a", "seed": 0, "state": "done"}
    expected |= {"complete": True, "sync": "fedavg H=250", "partition": "1 label/client", "clients": 2, "ranks": 2}
    expected |= {"engine": "horovod", "steps": 20, "num_samples": 800, "top1": 0.71234, "best_top1": 0.75}
    expected |= {"top5": 0.9, "loss": 1.0, "elapsed_s": 20.5, "share_wait": None, "share_scaled": None, "problems": []}
    assert row == expected


def test_find_runs(tmp_path):
    for name in ("runs/b", "runs/a", "deep/down/runs/c"):
        RunFolder(tmp_path / name).create()
        RunFolder(tmp_path / name).write_config("clients: 1\n")
    (tmp_path / "runs" / "a" / "checkpoints" / "config.yaml").write_text("")
    assert [p.relative_to(tmp_path).as_posix() for p in find_runs(tmp_path)] == ["deep/down/runs/c", "runs/a", "runs/b"]
    assert find_runs(tmp_path / "runs" / "a") == [tmp_path / "runs" / "a"]


def test_printed_table(tmp_path, capsys):
    two_client_run(tmp_path / "runs" / "bsp-iid")
    two_client_run(tmp_path / "runs" / "fedavg-one-label", "{kind: fedavg, local_epochs: 1}", ONE_LABEL)
    failed = two_client_run(tmp_path / "runs" / "failed", state="failed", seed=1)
    failed.rank_log(1).write_bytes(failed.rank_log(1).read_bytes()[:30000])
    print_folder(tmp_path)
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


def test_runs_of_a_sweep_that_have_not_started_are_counted(tmp_path, capsys):
    two_client_run(tmp_path / "runs" / "a")
    (tmp_path / "sweep.json").write_text('{"runs": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}')
    print_folder(tmp_path)
    assert "2 runs of the sweep: not started" in capsys.readouterr().out.splitlines()


def test_printed_table_of_one_run(tmp_path, capsys):
    two_client_run(tmp_path / "alone")
    print_folder(tmp_path / "alone")
    out = capsys.readouterr().out
    assert f"logs: {tmp_path}/alone/attempts/*/rank*.h5" in out
    assert "state" not in out
    assert "Arms" not in out


def test_json(tmp_path, capsys):
    RunFolder(tmp_path / "a").next_attempt()
    RunFolder(tmp_path / "a").write_config("clients: 3\n")
    two_client_run(tmp_path / "b")
    print_folder(tmp_path, as_json=True)
    unfinished, whole = json.loads(capsys.readouterr().out)
    assert (unfinished["clients"], unfinished["top1"], unfinished["train_loss"]) == (3, None, None)
    assert (unfinished["state"], whole["state"], whole["top1"]) == ("unknown", "done", 0.71234)
    assert unfinished["steps"] == 0


def test_a_run_that_cannot_be_read_is_a_row(tmp_path, capsys):
    two_client_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("a: !!bool foo")
    good, bad = rows_of(tmp_path)
    assert (bad["state"], bad["sync"], bad["top1"], bad.keys()) == ("unreadable", "?", None, good.keys())
    print_folder(tmp_path)
    assert "config.yaml: line 1: not valid YAML: 'foo' is not of type bool" in capsys.readouterr().out


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        print_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        print_folder(tmp_path / "none")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """No scaler and X = 4 with three seeds each, and X = 4 of twice the batch with two."""
    root = tmp_path_factory.mktemp("seeds")
    for factor, batch, count in ((1, 32, 3), (4, 32, 3), (4, 64, 2)):
        for seed in range(count):
            make_run(
                root / "runs" / f"x{factor}-b{batch}-s{seed}", seed, factor, batch, num_steps=60, evaluate_every=10
            )
    make_run(root / "runs" / "x4-b64-s2", 2, 4, 64, num_steps=30, evaluate_every=10, state="failed")
    return root


@pytest.fixture(scope="module")
def head(seeds):
    frames = load(seeds)
    return summarise_arms(frames, summarise(frames), target=0.7)[0]


def test_headline(head, seeds):
    assert head.baseline == "b=32, no scaler"
    assert head.arms.select("arm", "runs", "complete", "n").rows() == [
        ("b=32, no scaler", 3, 3, 3),
        ("b=32, X=4", 3, 3, 3),
        ("b=64, X=4", 3, 2, 2),
    ]
    # All take 60 steps; those of half the batch have seen half the samples.
    assert (head.points["steps"], head.points["samples"]) == (60, 60 * 4 * 32)
    final, at_samples = head.arms["top1"].to_list(), head.arms["at_samples"].to_list()
    assert final[:2] == at_samples[:2]
    assert at_samples[2] < final[2]
    assert head.arms["top1_low"].is_null().to_list() == [False, False, True]
    assert head.comparisons["at_samples"].select("arm", "n", "verdict").rows() == [
        ("b=32, X=4", 3, "higher"),
        ("b=64, X=4", 2, "not enough seeds to say"),
    ]
    frames = load(seeds)
    with pytest.raises(ConfigError, match="no arm is called 'X=3'; there are: b=32, no scaler; b=32, X=4"):
        summarise_arms(frames, summarise(frames), baseline="X=3")


def test_speed_up_in_the_table(tmp_path):
    make_run(tmp_path / "c1", slowdown=(1.0,), num_steps=20, evaluate_every=10)
    make_run(tmp_path / "c2", slowdown=(1.0, 1.0), num_steps=20, evaluate_every=10)
    make_run(tmp_path / "c2-b64", slowdown=(1.0, 1.0), batch=64, num_steps=20, evaluate_every=10)
    frames = load(tmp_path)
    (found,) = summarise_arms(frames, summarise(frames))
    one, two, other = found.arms.select("arm", "samples_per_s", "speed_up", "efficiency").rows()
    assert (one[0], one[2:]) == ("clients=1, b=32", (1.0, 1.0))
    assert two[2] == pytest.approx(two[1] / one[1])
    assert two[3] == pytest.approx(two[2] / 2)
    # No single client has that batch.
    assert other[2:] == (None, None)
    table = arms_table(found)
    assert table.head[-2:] == ("speed-up", "efficiency (%)")
    assert "Speed-up: samples per second against one client." in table.notes


def test_speed_up_needs_one_size_per_arm(tmp_path):
    for seed, num_ranks in ((0, 1), (1, 2), (2, 2)):
        make_run(tmp_path / f"a{seed}", seed, batch=16, num_steps=4, evaluate_every=2)
        make_run(tmp_path / f"b{seed}", seed, batch=32, num_steps=4, evaluate_every=2)
        for path in (tmp_path / f"a{seed}" / "attempts" / "000" / "provenance.json",):
            path.write_text(path.read_text().replace('"num_ranks": 1', f'"num_ranks": {num_ranks}'))
    frames = load(tmp_path)
    (found,) = summarise_arms(frames, summarise(frames))
    assert found.size == "num_ranks"
    assert found.arms.select("arm", "speed_up", "efficiency").rows() == [("b=16", None, None), ("b=32", 1.0, 1.0)]


def add_evals(path, seed, seconds):
    """A finished run of `seed` that was evaluated at those seconds, with accuracies 0.1, 0.2, ..."""
    folder = RunFolder(path)
    attempt = folder.next_attempt()
    folder.write_config(f"name: a\nseed: {seed}\nclients: 1\nbatching: {{local_batch_size: {path.name[1]}}}\n")
    with RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": 0}) as log:
        log.append("steps", step=0, round=0, client=0, local_batch_size=1, num_samples=1)
        for place, second in enumerate(seconds):
            log.append("evals", step=place, num_samples=1, elapsed_s=second, split="test", top1=0.1 * (place + 1))
    folder.mark_done({})


def test_equal_seconds_leave_out_no_slow_seed(tmp_path, capsys):
    # The common point is 10 s. One seed of b = 1 was first evaluated after it.
    for seed, first in enumerate((8.0, 9.0, 9.5, 10.5)):
        add_evals(tmp_path / f"b1-{seed}", seed, (first, 20.0))
        add_evals(tmp_path / f"b2-{seed}", seed, (5.0, 10.0))
    frames = load(tmp_path)
    (found,) = summarise_arms(frames, summarise(frames))
    assert found.points["seconds"] == 10.0
    assert found.arms["n"].to_list() == [4, 4]
    assert found.arms["at_seconds"].to_list() == [None, pytest.approx(0.2)]
    assert found.comparisons["at_seconds"].is_empty()
    table = arms_table(found)
    assert dict(zip(table.head, table.rows[0], strict=True))["at 10 s (%)"] == "-"
    assert "Equal points without a number: not all runs of the arm had been evaluated by then." in table.notes


def test_each_net_is_compared_with_itself(tmp_path, capsys):
    for net, factor, num_steps in (("a", 1, 20), ("a", 4, 20), ("b", 1, 10), ("b", 4, 10)):
        for seed in range(3):
            path = tmp_path / f"{net}-x{factor}-s{seed}"
            make_run(path, seed, factor, num_steps=num_steps, evaluate_every=5)
            config = path / "config.yaml"
            write_sealed(config, config.read_text().rpartition("#")[0].replace("resnet18", f"net_{net}"))
    frames = load(tmp_path)
    first, second = summarise_arms(frames, summarise(frames))
    assert (first.title, first.labels) == ("net_a", ["net_a, no scaler", "net_a, X=4"])
    assert (first.points["steps"], second.points["steps"]) == (20, 10)
    assert (first.baseline, second.baseline) == ("net_a, no scaler", "net_b, no scaler")
    assert second.comparisons["top1"]["arm"].to_list() == ["net_b, X=4"]
    # An arm that is asked for by name is compared with all.
    (one,) = summarise_arms(frames, summarise(frames), baseline="net_a, X=4")
    assert one.points["steps"] == 10
    assert one.comparisons["top1"]["arm"].to_list() == ["net_a, no scaler", "net_b, no scaler", "net_b, X=4"]
    print_folder(tmp_path)
    out = capsys.readouterr().out
    assert out.index("net_a: means over seeds") < out.index("Top-1 against net_a") < out.index("net_b: means over")


def test_terminal_with_a_target_or_unlike_batches(tmp_path, capsys):
    make_run(tmp_path / "a", num_steps=20, evaluate_every=10)
    print_folder(tmp_path)
    assert "Arms" not in capsys.readouterr().out
    print_folder(tmp_path, target=0.05)
    assert "steps to 5 %" in capsys.readouterr().out.replace("\n", " ").replace("steps to 5", "steps to 5")
    make_run(tmp_path / "b", batch=64, num_steps=20, evaluate_every=10)
    print_folder(tmp_path)
    assert "at 2,560" in capsys.readouterr().out


def test_json_tells_what_a_target_took_and_the_speed_up(tmp_path, capsys):
    make_run(tmp_path / "c1", slowdown=(1.0,), num_steps=20, evaluate_every=10)
    make_run(tmp_path / "c2", slowdown=(1.0, 1.0), num_steps=20, evaluate_every=10)
    print_folder(tmp_path, as_json=True, target=0.01)
    one, two = json.loads(capsys.readouterr().out)
    assert (one["target_steps"], one["target_samples"]) == (10, 320)
    assert (one["speed_up"], two["efficiency"]) == (1.0, pytest.approx(two["speed_up"] / 2))


def test_ranked_arms(head):
    assert ranked_arms(head, 3) == ["b=32, no scaler", "b=32, X=4", "b=64, X=4"]
    assert ranked_arms(replace(head, baseline="b=64, X=4"), 2) == ["b=32, X=4", "b=64, X=4"]


def test_arms_table(head):
    table = arms_table(head)
    columns = dict(zip(table.head, zip(*table.rows, strict=True), strict=True))
    assert columns["seeds"] == ("3", "3", "2 (1 run left out)")
    assert re.fullmatch(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", columns["final top-1 (%)"][0])
    assert re.fullmatch(r"\d\d\.\d", columns["final top-1 (%)"][2])
    assert "at 7,680 samples (%)" in columns
    assert "At equal steps (60): as 'final top-1 (%)'." in table.notes
    assert all(re.fullmatch(r"\d+(\.\d)?( \(\d of 3\))?", cell) for cell in columns["steps to 70 %"])
    assert "train - test (points)" not in arms_table(head, brief=True).head


def test_comparison_table(head):
    table = comparison_table(head)
    assert [row[:3] for row in table.rows if row[1] == "steps"] == [
        ("b=32, X=4", "steps", "3"),
        ("b=64, X=4", "steps", "2"),
    ]
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\]", table.rows[0][3])


def test_terminal_with_seeds(seeds, capsys):
    print_folder(seeds)
    out = capsys.readouterr().out
    assert out.index("Arms: means over seeds") < out.index("Top-1 against b=32, no scaler") < out.index("Runs in")
    assert "not enough seeds to say" in out
    assert "…" not in out


def test_single_seeds_have_no_verdict(tmp_path, capsys):
    make_run(tmp_path / "a", 0, 1, num_steps=20, evaluate_every=10)
    make_run(tmp_path / "b", 0, 4, num_steps=20, evaluate_every=10)
    print_folder(tmp_path, form="markdown")
    out = capsys.readouterr().out
    assert "| X=4 | 1 |" in out
    assert "Top-1 against no scaler: not enough seeds to say; a difference needs 3 seeds that both arms have." in out
    assert "[" not in out


def test_markdown_and_latex(seeds, capsys):
    print_folder(seeds, form="markdown")
    out = capsys.readouterr().out
    assert "**Arms: means over seeds of complete runs**\n\n| arm | seeds |" in out
    print_folder(seeds, form="latex")
    out = capsys.readouterr().out
    assert out.count(r"\begin{tabular}") == out.count(r"\end{tabular}") == 2
    assert r"final top-1 (\%)" in out


def test_forms_of_a_table():
    table = TextTable("50 % of a_b", ("name", "n | m"), [("x<y & z", "−1.5")], frozenset({"name"}), ("Note.",))
    assert to_markdown(table) == (
        "**50 % of a\\_b**\n\n| name | n \\| m |\n|---|---:|\n| x\\<y & z | −1.5 |\n\nNote.\n"
    )
    latex = to_latex(table)
    assert r"\caption{50 \% of a\_b. Note.}" in latex
    assert r"    x\textless{}y \& z & $-$1.5 \\" in latex
    html = to_html(table, "t")
    assert '<th scope="row" class="text">x&lt;y &amp; z</th><td class="number">−1.5</td>' in html


def test_loads_neither_torch_nor_horovod(tmp_path):
    two_client_run(tmp_path / "a")
    code = (
        "import sys; from tests.analysis.conftest import print_folder; print_folder(sys.argv[1]); "
        "print({'torch', 'horovod', 'mpi4py', 'altair', 'vl_convert'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_command_writes_page_and_figures(seeds, tmp_path):
    words = ["report", str(seeds), "-o", str(tmp_path / "r.html"), "--figures", str(tmp_path / "figures")]
    # In this process: what draws figures takes seconds to start.
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "Arms: means over seeds" in done.stdout
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(names) == 24
    heads = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(heads[path.suffix[1:]])
    assert str(tmp_path / "figures" / "scale_factor.pdf") in done.stderr.splitlines()


def test_no_other_import_name():
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", "import analysis"], capture_output=True, text=True, cwd=root)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: this folder is the package hpclbfl.analysis; it cannot be imported as 'analysis'"


def test_a_torn_sharpness_file_is_said_and_does_no_harm(tmp_path, capsys):
    two_client_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / "sharpness.h5").write_bytes(b"torn")
    print_folder(tmp_path)
    out = capsys.readouterr().out
    assert f"runs/a: {tmp_path}/runs/a/sharpness.h5: " in out
    assert "71.2 %" in out


def run_without_classes(path, lr, losses):
    """A run that is evaluated as often as there are losses; its loss reports a metric."""
    folder = RunFolder(path)
    attempt = folder.next_attempt()
    folder.write_config(f"name: text\nclients: 2\noptimizer: {{lr: {lr}}}\nsync: {{kind: bsp}}\n")
    attempt.write_provenance({"engine": "local", "num_ranks": 1, "num_test": 7})
    with RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": 0}) as log:
        for step, loss in enumerate(losses):
            log.append(
                "steps", step=step, round=step, client=0, local_batch_size=4, num_samples=4 * step + 4, loss=loss
            )
            common = {"step": step, "num_samples": 4 * step + 4, "elapsed_s": step + 1.0}
            log.append("evals", **common, split="test", loss=loss)
            for split, value in (("train", 0.9), ("test", 1 / loss)):
                log.append("metrics", step=step, client=-1, name=f"{split} accuracy", value=value)
    folder.mark_done({"step": len(losses), "top1": None})


def test_runs_without_classes_show_their_loss_and_its_metrics(tmp_path, capsys):
    run_without_classes(tmp_path / "runs" / "a", 0.1, (4.0, 2.0))
    run_without_classes(tmp_path / "runs" / "b", 0.2, (4.0, 3.0, 2.5))
    rows = rows_of(tmp_path)
    assert [(row["top1"], row["best_top1"], row["loss"], row["metric accuracy"]) for row in rows] == [
        (None, None, 2.0, 0.5),
        (None, None, 2.5, 0.4),
    ]
    (task,) = summarise_arms(load(tmp_path), summarise(load(tmp_path)))
    table = arms_table(task)
    assert table.head == ("arm", "seeds", "final loss", "final accuracy", "samples/s", "seconds")
    assert [row[2:4] for row in table.rows] == [("2", "0.5"), ("2.5", "0.4")]
    assert table.notes == ()
    print_folder(tmp_path)
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sync", "partition", "arm", "test", "loss", "accuracy", "seconds", "run"] in words
    assert ["bsp", "iid", "lr=0.2", "2.5", "0.4", "3.0", "runs/b"] in words


def test_a_page_and_tables_of_runs_without_classes(tmp_path):
    run_without_classes(tmp_path / "runs" / "a", 0.1, (4.0, 2.0))
    run_without_classes(tmp_path / "runs" / "b", 0.2, (4.0, 3.0))
    for words in (
        ["report", str(tmp_path), "-o", str(tmp_path / "r.html")],
        ["export", str(tmp_path), "--format", "csv"],
    ):
        assert CliRunner().invoke(app, words).exit_code == 0
    lines = (tmp_path / "tables" / "metrics.csv").read_text().splitlines()
    assert lines[0] == "run,step,client,name,value" and lines[1] == "runs/a,0,-1,test accuracy,0.25" and len(lines) == 9
    assert (tmp_path / "r.html").stat().st_size > 1000
