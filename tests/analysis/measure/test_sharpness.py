"""sharpness.h5 files of a folder of runs as a tidy frame and as a figure."""

import h5py
import numpy as np
import pytest

from hpclbfl.analysis.measure import plot_data
from hpclbfl.analysis.measure.eigenvalues import read_all
from hpclbfl.analysis.measure.report import make_report
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.page import page
from hpclbfl.analysis.show.render import figure_rows, write_figures
from hpclbfl.sharpness.store import empty_tables, rows_of, save_sharpness
from tests.analysis.conftest import two_client_run


def add_sharpness(run, step, values, residual=0.5, run_hash="ab", has_settled=1):
    table = rows_of(
        "eigenvalues",
        step,
        index=range(len(values)),
        eigenvalue=values,
        residual=residual,
        iterations=7,
        num_samples=64,
        seed=0,
        has_settled=has_settled,
    )
    save_sharpness(run / "sharpness.h5", {**empty_tables(), "eigenvalues": table}, step, {"hash": run_hash})


@pytest.fixture
def root(tmp_path):
    """Two arms of two seeds, evaluated after 10 and 20 steps: 75 % and 71.234 % on test, 99 % on train images."""
    for sync in ("bsp", "fedavg"):
        for seed in range(2):
            two_client_run(
                tmp_path / f"{sync}-{seed}", sync=f"{{kind: {sync}}}", seed=seed, state="done" if seed else "failed"
            )
    return tmp_path


def test_the_frame_has_a_row_per_eigenvalue_with_the_accuracy_of_its_step(root):
    add_sharpness(root / "bsp-1", 20, [12.0, -3.0])
    add_sharpness(root / "bsp-1", 15, [10.0])
    add_sharpness(root / "bsp-1", 5, [8.0])
    add_sharpness(root / "fedavg-1", 10, [2.0])
    found, problems = read_all(load(root))
    assert problems == []
    found = found.with_columns(found["run"].cast(str))
    assert found.select("run", "step", "index", "eigenvalue").rows() == [
        ("bsp-1", 5, 0, 8.0),
        ("bsp-1", 15, 0, 10.0),
        ("bsp-1", 20, 0, 12.0),
        ("bsp-1", 20, 1, -3.0),
        ("fedavg-1", 10, 0, 2.0),
    ]
    # After 15 steps: on the line half way between the evaluations after 10 and after 20; after 5 there is none yet.
    between = (0.75 + 0.71234) / 2
    assert found["top1"].to_list() == [None, pytest.approx(between), *[pytest.approx(0.71234)] * 2, 0.75]
    # Train minus test at the last step that was evaluated on both.
    assert found["iterations"].unique().to_list() == [7]


def test_whether_it_has_settled_is_known_or_not(root, tmp_path):
    for name, value in (("bsp-0", 1), ("bsp-1", 0), ("fedavg-1", -1)):
        add_sharpness(root / name, 20, [12.0], has_settled=value)
    frames = load(root)
    found = read_all(frames)[0]
    assert found["has_settled"].to_list() == [True, False, None]
    list(write_figures(make_report(frames), tmp_path / "out", ["svg"]))
    drawn = (tmp_path / "out" / "sharpness.svg").read_text()
    # The run that failed has no end to be drawn at.
    assert drawn.count('opacity="0.3"') == 1


def test_without_files_there_is_no_row_and_no_figure(root):
    frames = load(root)
    found, problems = read_all(frames)
    assert found.is_empty()
    assert problems == []
    assert "sharpness" not in figure_rows(frames)


def test_the_figure_has_a_mark_per_run_at_its_last_step(root):
    add_sharpness(root / "bsp-1", 10, [9.0])
    add_sharpness(root / "bsp-1", 20, [12.0, -3.0])
    add_sharpness(root / "fedavg-1", 20, [2.0])
    frames = load(root)
    rows = plot_data.sharpness_points(frames, plot_data.figure_runs(frames))
    over_all = rows.filter(rows["seed"].is_null())
    assert over_all.select("run", "eigenvalue", "low", "high").rows() == [
        ("bsp-1", 12.0, 11.5, 12.5),
        ("fedavg-1", 2.0, 1.5, 2.5),
    ]
    np.testing.assert_allclose(over_all["top1"], 71.234)


def test_single_seeds_can_be_chosen(root):
    for seed in range(2):
        run = two_client_run(root / f"more-{seed}", sync="{kind: post_local}", seed=seed).path.parents[1]
        add_sharpness(run, 20, [5.0 + seed])
    frames = load(root)
    rows = plot_data.sharpness_points(frames, plot_data.figure_runs(frames))
    assert sorted(rows.filter(rows["seed"] == 1).select("run", "eigenvalue").rows()) == [("more-1", 6.0)]
    assert rows.filter(rows["seed"].is_null())["eigenvalue"].to_list() == [5.0, 6.0]


def test_page_and_files_show_it(root, tmp_path):
    for name, value in (("bsp-1", 12.0), ("fedavg-1", 2.0)):
        add_sharpness(root / name, 20, [value])
    frames = load(root)
    report = make_report(frames)
    html = page(report)
    assert "Sharpness and accuracy" in html
    assert "top eigenvalue of the training loss" in html
    written = {path.name: left_out for path, left_out in write_figures(report, tmp_path / "out", ["svg"])}
    assert written["sharpness.svg"] == ""
    assert "test accuracy (%)" in (tmp_path / "out" / "sharpness.svg").read_text()


def test_what_a_logarithmic_axis_has_no_place_for_is_told(root, tmp_path):
    add_sharpness(root / "bsp-1", 20, [-4.0])
    add_sharpness(root / "fedavg-1", 20, [2.0], residual=3.0)
    frames = load(root)
    rows = plot_data.sharpness_points(frames, plot_data.figure_runs(frames))
    # The residual is larger than the eigenvalue: the bar begins at a tenth of it.
    assert rows.filter(rows["run"] == "fedavg-1").select("low", "high").row(0) == (pytest.approx(0.2), 5.0)
    list(write_figures(make_report(frames), tmp_path / "out", ["svg"]))
    assert "runs without a positive eigenvalue, not drawn: 1" in (tmp_path / "out" / "sharpness.svg").read_text()


TORN = (
    "is torn, HDF5 cannot open it (Unable to synchronously open file (file signature not found)); "
    "delete it and run 'hpclbfl sharpness' again"
)


def of_another_version(path):
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 99


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"torn"), TORN),
        (of_another_version, "has version 99, this program reads 1 to 2; delete it and run 'hpclbfl sharpness' again"),
    ],
)
def test_a_file_that_cannot_be_read_is_left_out_and_told(root, spoil, reason):
    add_sharpness(root / "bsp-1", 20, [12.0])
    add_sharpness(root / "fedavg-1", 20, [2.0])
    spoil(root / "bsp-1" / "sharpness.h5")
    frames = load(root)
    found, problems = read_all(frames)
    assert found.select("run", "eigenvalue").rows() == [("fedavg-1", 2.0)]
    assert problems == [("bsp-1", "bsp-1/sharpness.h5", reason)]
    assert figure_rows(frames)["sharpness"]["run"].to_list() == ["fedavg-1"]


def test_a_file_of_another_experiment_is_left_out_and_told(root):
    # The folder was used anew; another run's hash is not known, and it takes the file as its own.
    attempt = two_client_run(root / "bsp-2", seed=2)
    attempt.write_provenance({"engine": "horovod", "num_ranks": 2, "hash": "0123456789"})
    add_sharpness(root / "bsp-2", 20, [12.0], run_hash="aaaaaaaaaa")
    add_sharpness(root / "fedavg-1", 20, [2.0], run_hash="aaaaaaaaaa")
    found, problems = read_all(load(root))
    assert found.select("run", "eigenvalue").rows() == [("fedavg-1", 2.0)]
    reason = "is of experiment aaaaaaaaaa, this run of 0123456789; run 'hpclbfl sharpness' again, it replaces the file"
    assert problems == [("bsp-2", "bsp-2/sharpness.h5", reason)]
    # The command replaces what is there.
    add_sharpness(root / "bsp-2", 20, [3.0], run_hash="0123456789")
    found, problems = read_all(load(root))
    assert found.select("run", "eigenvalue").rows() == [("bsp-2", 3.0), ("fedavg-1", 2.0)]
    assert problems == []


def test_a_run_loaded_by_itself_names_its_file(root):
    (root / "bsp-1" / "sharpness.h5").write_bytes(b"torn")
    assert [problem[:2] for problem in read_all(load(root / "bsp-1"))[1]] == [("bsp-1", "sharpness.h5")]
