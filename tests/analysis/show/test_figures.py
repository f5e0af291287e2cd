"""Every figure's definition is valid, draws, and can be read without colour."""

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
from PIL import Image

from hpclbfl.analysis.measure import curves, plot_data, step_metrics
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show import convert
from hpclbfl.analysis.show.convert import converted
from hpclbfl.analysis.show.figures import FIGURES, definition
from hpclbfl.analysis.show.render import VEGALITE, figure_rows, filled
from hpclbfl.analysis.show.style import COLORS, DASHES, MAX_ARMS, PARTS, SHAPES, fill
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.sharpness.store import empty_tables, rows_of, save_sharpness
from tests.analysis.synthetic import make_run


def save_top_eigenvalue(run, step, value):
    columns = {"index": 0, "eigenvalue": value, "residual": 0.5, "iterations": 9, "num_samples": 64, "seed": 0}
    tables = {**empty_tables(), "eigenvalues": rows_of("eigenvalues", step, **columns)}
    save_sharpness(run / "sharpness.h5", tables, step, {"hash": run.name})


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("figures")
    for factor in (1, 2, 4):
        for seed in range(3):
            run = root / f"x{factor}-s{seed}"
            options = {"dynamic": factor == 4, "watched": factor != 4, "taught": factor != 1}
            make_run(run, seed, factor, num_steps=60, evaluate_every=10, **options)
            save_top_eigenvalue(root / f"x{factor}-s{seed}", 60, 20.0 / factor + seed)
    make_run(root / "x8-s0", 0, 8, num_steps=30, evaluate_every=10, state="running")
    make_run(root / "x8-s1", 1, 8, num_steps=30, evaluate_every=10, state="failed")
    return load(root)


@pytest.fixture(scope="module")
def rows(frames):
    return figure_rows(frames)


ARMS = ["no scaler", "X=2", "X=4", "X=8"]


@pytest.mark.parametrize("name", FIGURES)
def test_figure_draws(name, rows):
    spec = filled(name, rows[name], ARMS)
    json.dumps(spec, allow_nan=False)
    # Complete, with data and labels, it is valid, too.
    alt.Chart.from_dict(spec)
    picture = np.asarray(Image.open(io.BytesIO(converted(spec, VEGALITE, ["png"])[0])).convert("L"))
    assert picture.shape[0] > 200
    assert picture.shape[1] > 800
    assert 0.005 < (picture < 128).mean() < 0.5


@pytest.mark.parametrize("name", FIGURES)
def test_axes_have_titles_and_units(name):
    titles = {}

    def look(node):
        if isinstance(node, dict):
            for channel in ("x", "y"):
                encoding = node.get(channel)
                if isinstance(encoding, dict) and encoding.get("type") == "quantitative":
                    titles[encoding["field"]] = encoding.get("title")
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(definition(name))
    assert titles
    assert all(titles.values())


def test_arms_differ_in_colour_dash_and_shape():
    assert len(set(COLORS)) == len({tuple(d) for d in DASHES}) == len(set(SHAPES)) == MAX_ARMS
    # None is too light for white paper.
    assert max(grey(color) for color in COLORS) < 180


def test_parts_of_a_step_differ_in_grey():
    shades = [grey(color) for _, color in PARTS.values()]
    assert all(after - before > 50 for before, after in itertools.pairwise(shades[:4]))


def grey(color):
    red, green, blue = bytes.fromhex(color[1:])
    return (299 * red + 587 * green + 114 * blue) / 1000


def test_an_arm_keeps_its_colour_where_others_are_missing(rows):
    spec = filled("scale_factor", rows["scale_factor"], ARMS)
    found = []

    def look(node):
        if isinstance(node, dict):
            if node.get("field") == "label" and "range" in node.get("scale", {}):
                found.append(node["scale"])
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look({key: value for key, value in spec.items() if key != "datasets"})
    colors = next(scale for scale in found if scale["range"][0] in COLORS)
    assert [label.split(" (")[0] for label in colors["domain"]] == ["X=2", "X=4", "X=8"]
    assert colors["range"] == list(COLORS[1:4])


def test_fill_leaves_the_definition_as_it_is():
    spec = definition("final_accuracy")
    before = json.dumps(spec)
    fill(spec, [{"arm": "a", "label": "a (n=1)", "mean": 1.0, "kind": "mean"}], ["a"])
    assert json.dumps(spec) == before


def test_labels_state_n_and_what_is_unfinished(frames):
    runs = plot_data.figure_runs(frames)
    assert runs["label"].unique(maintain_order=True).to_list() == [
        "no scaler (n=3)",
        "X=2 (n=3)",
        "X=4 (n=3)",
        "X=8 (n=1, unfinished)",
    ]


def test_rows_of_learning_curves(rows):
    table = rows["learning_curves_steps"]
    overall = table.filter(pl.col("seed").is_null() & (pl.col("arm") == "X=2"))
    assert overall["x"].to_list() == [10, 20, 30, 40, 50, 60]
    single = table.filter(pl.col("seed").is_not_null() & (pl.col("arm") == "X=2"))
    assert single["label"].unique().sort().to_list() == [f"X=2 (seed {s})" for s in range(3)]
    means = single.group_by("x", maintain_order=True).agg(pl.col("mean").mean())
    assert overall["mean"].to_list() == pytest.approx(means.sort("x")["mean"].to_list())
    assert (overall["low"] <= overall["mean"]).all()
    assert overall["high"].null_count() == 0
    assert table.filter(pl.col("arm") == "X=8")["low"].null_count() == 6


def test_curves_in_seconds_share_a_grid_where_all_seeds_are(rows):
    table = rows["learning_curves_seconds"].filter(pl.col("arm") == "X=2")
    grids = table.group_by("seed", maintain_order=True).agg("x")["x"].to_list()
    assert len(grids) == 4
    assert all(grid == grids[0] for grid in grids)


def test_clients_of_equal_batches_are_one_line(rows):
    table = rows["batches_and_waits"].filter(pl.col("local_batch_size").is_not_null())
    lines = {arm: rows["clients"].unique(maintain_order=True).to_list() for (arm,), rows in table.group_by("arm")}
    assert lines["X=2"] == ["0-3"]
    assert lines["X=4"] == ["0-1", "2", "3"]


def test_time_shares_add_up(rows):
    sums = rows["time_shares"].group_by("label").agg(pl.col("share").sum())
    assert sums["share"].to_list() == pytest.approx([100.0] * len(sums))


def test_gradient_norms_are_drawn_as_they_are_and_summed(rows):
    norm, total, change = definition("gradient_norm")["concat"]
    lines = [norm["layer"][0]["layer"][0], total["layer"][0], change["layer"][1]["layer"][0]]
    assert [line["encoding"]["y"]["field"] for line in lines] == ["norm", "cumulative_norm", "change"]
    table = rows["gradient_norm"].filter(pl.col("seed").is_null() & (pl.col("arm") == "X=2"))
    # 60 steps in 30 stretches: each adds its mean norm twice.
    assert table["x"].to_list() == list(range(2, 61, 2))
    assert table["cumulative_norm"].to_list() == pytest.approx(np.cumsum(2 * table["norm"].to_numpy()))


@pytest.fixture(scope="module")
def rarely_scaled(tmp_path_factory):
    """Arm X=2 of three seeds, 10 steps each: one is scaled in 9 of them, two never; arm X=4 never; X=8 in all."""
    root = tmp_path_factory.mktemp("scale")
    firing = {2: (9, 0, 0), 4: (0, 0, 0), 8: (10, 10, 10)}
    for factor in firing:
        for seed in range(3):
            make_run(root / f"x{factor}-s{seed}", seed, factor, num_steps=10, evaluate_every=10)
    found = load(root)
    name = pl.col("run").cast(pl.String)
    scaled = pl.lit(0)
    for factor, counts in firing.items():
        for seed, count in enumerate(counts):
            scaled = pl.when(name == f"x{factor}-s{seed}").then(count).otherwise(scaled)
    factors = name.str.extract(r"x(\d+)").cast(pl.Float64)
    steps = found.steps.with_columns(scale=pl.when(pl.col("step") < scaled).then(factors).otherwise(1.0))
    frames = dataclasses.replace(found, steps=steps)
    return plot_data.scale_factor(frames, plot_data.figure_runs(frames))


def test_the_share_of_scaled_steps_is_a_mean_over_all_seeds(rarely_scaled):
    overall = rarely_scaled.filter(pl.col("seed").is_null())
    # Whole arms that are never scaled are left out, their seeds not.
    assert overall["label"].unique(maintain_order=True).to_list() == [
        "X=2 (n=3): 30 % of steps",
        "X=8 (n=3): 100 % of steps",
    ]
    at_two = overall.filter(pl.col("arm") == "X=2").sort((pl.col("factor") - 2).abs()).row(0, named=True)
    peak = 1 / (step_metrics.BANDWIDTH * np.sqrt(2 * np.pi))
    assert at_two["density"] == pytest.approx(0.3 * peak, rel=0.02)


def test_a_seed_that_was_never_scaled_has_no_mark(rarely_scaled):
    marks = rarely_scaled.filter(pl.col("arm") == "X=2").group_by("seed").agg(pl.col("mark").sum())
    assert dict(marks.rows()) == {None: 1, 0: 1, 1: 0, 2: 0}


def test_many_runs_have_fewer_points():
    def budget(count):
        return curves.points_per_curve(pl.DataFrame({"arm": range(count), "seed": [0] * count}))

    assert (budget(1), budget(1000), budget(100_000)) == (60, 30, 12)


def changes(value):
    """The rows of a run whose change is `value` in every stretch, and its norm 1e-9."""
    frame = pl.DataFrame({"norm": [1e-9], "change": [value]}, schema={"norm": pl.Float64, "change": pl.Float64})
    range_ = plot_data.CHANGE_RANGE
    return frame.with_columns(
        *plot_data._clipped("change", *range_), *plot_data._clipped("norm", plot_data.NORM_FLOOR, 1e9)
    ).row(0)


def test_what_lies_outside_a_logarithmic_axis_is_marked_at_its_end():
    assert changes(0.5) == (1e-7, 0.5, None, "below")
    assert changes(1e27) == (1e-7, 1e3, "above", "below")
    assert changes(0.0) == (1e-7, 1e-3, "below", "below")
    assert changes(None) == (1e-7, None, None, "below")


@pytest.fixture
def wild(tmp_path):
    """Two runs; the change of one is 6e26 in a stretch, and its norms fall to 1e-15."""
    for factor in (1, 2):
        make_run(tmp_path / f"x{factor}", 0, factor, num_steps=60, evaluate_every=20)
    found = load(tmp_path)
    is_wild = (pl.col("run").cast(pl.String) == "x2") & pl.col("step").is_between(20, 29)
    steps = found.steps.with_columns(
        pl.when(is_wild).then(6e26).otherwise("grad_change").alias("grad_change"),
        pl.when(is_wild).then(1e-30).otherwise("grad_sq_norm").alias("grad_sq_norm"),
    )
    return dataclasses.replace(found, steps=steps)


def test_no_outlier_stretches_the_axis_of_changes(wild):
    table = figure_rows(wild)["gradient_norm"]
    assert table["change"].min() >= 1e-3 and table["change"].max() == 1e3
    assert set(table.filter(pl.col("change_beyond") == "above")["arm"]) == {"X=2"}
    assert table["norm"].min() == 1e-7
    _, _, change = definition("gradient_norm")["concat"]
    scales = [layer["encoding"]["y"]["scale"] for layer in (change["layer"][0], change["layer"][1]["layer"][0])]
    assert {scale["type"] for scale in scales} == {"log"}
    svg = converted(filled("gradient_norm", table, ["no scaler", "X=2"]), VEGALITE, ["svg"])[0].decode()
    assert "e+26" not in svg and "e26" not in svg and "(log scale; grey: threshold)" in svg


def test_a_run_that_diverged_leaves_others_to_be_seen():
    spec = definition("gradient_norm")
    row = {"arm": "a", "label": "a", "x": 1.0, "norm": 1.0, "change": 1.0, "mark": True}

    def axis(*sums):
        drawn = fill(spec, [{**row, "cumulative_norm": value} for value in sums], ["a"])
        return drawn["concat"][1]["layer"][0]["encoding"]["y"]

    assert axis(1.0, 2.0, 3.0)["scale"] == {"zero": True}
    assert axis(1.0, 2.0, 3e30) | {"title": ""} == axis(1.0, 2.0, 3.0) | {"scale": {"type": "symlog"}, "title": ""}
    assert axis(1.0, 2.0, 3e30)["title"] == "cumulative gradient norm (log scale)"


def test_the_rows_of_a_figure_are_few_however_long_a_run_is(tmp_path):
    counts = []
    for steps in (400, 4000):
        make_run(tmp_path / f"{steps}" / "run", 0, 2, num_steps=steps, evaluate_every=1, slowdown=(1.0, 2.0))
        rows = figure_rows(load(tmp_path / f"{steps}"))
        counts.append({name: len(table) for name, table in rows.items()})
    assert counts[0] == counts[1]
    assert max(counts[0].values()) <= 100


@pytest.mark.slow
def test_pictures_are_the_same_whoever_draws_them(rows, monkeypatch):
    """By this process, or by several, in the order asked for."""
    specs = [filled(name, rows[name], ARMS) for name in ("time_shares", "final_accuracy", "scale_factor")] * 2
    alone = list(convert.convert_all(specs, VEGALITE, ["svg", "png"]))
    monkeypatch.setattr(convert, "FEW", 1)
    monkeypatch.setattr(convert.os, "sched_getaffinity", lambda _: {0, 1})
    assert list(convert.convert_all(specs, VEGALITE, ["svg", "png"])) == alone


@pytest.mark.slow
def test_processes_that_draw_end_with_their_parent():
    code = (
        "import os; from concurrent.futures import ProcessPoolExecutor; from multiprocessing import get_context\n"
        "from hpclbfl.analysis.show import convert\n"
        "pool = ProcessPoolExecutor(1, get_context('spawn'), initializer=convert._start)\n"
        "print(pool.submit(os.getpid).result(), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    end = time.monotonic() + 60
    while Path(f"/proc/{done.stdout.strip()}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


class Deadly(str):
    """A text that ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.slow
def test_a_process_that_ends_is_one_line(monkeypatch):
    monkeypatch.setattr(convert, "FEW", 0)
    monkeypatch.setattr(convert.os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(EnvironmentFault, match=r"^a process that draws figures has ended \(out of memory\?\)$"):
        list(convert.convert_all([{}], VEGALITE, [Deadly("svg")]))
