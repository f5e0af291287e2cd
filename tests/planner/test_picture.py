"""What the picture's panels show, read from its specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpclbfl.batching.plan_file import Plan, RankPlan, job_fingerprint
from hpclbfl.planner.picture import chart
from hpclbfl.planner.store import ProbeRow, Role
from tests.planner.conftest import planned_job

SECONDS = {8: (0.1, 0.1, 0.2, 0.4, 0.9), 16: (0.2,) * 5, 32: (0.4,) * 5}


Points = list[dict[str, Any]]


@pytest.fixture
def panels(tmp_path: Path) -> dict[str, dict[str, Points]]:
    """The data of each panel by its title and by its marks."""
    rows = []
    for batch, found in SECONDS.items():
        role: Role = "held_out" if batch == 16 else "fit"
        for k, t_c in enumerate(found):
            parts = {"t_c_s": t_c, "t_mov_s": 0.01 * (k + 1), "t_local_s": t_c + 0.01 * (k + 1)}
            rows += [ProbeRow(name, batch, k, value, 0.3, role) for name, value in parts.items()]
        rows += [ProbeRow(name, batch, 0, 1e6 * batch, 1e6 * batch, role) for name in ("m_act_bytes", "m_batch_bytes")]
    rank = RankPlan(device="CPU", max_batch=32, t_fixed_s=0.05, t_per_sample_s=0.01, best_batch=16)
    plan = Plan(ranks=(rank,), job=job_fingerprint(planned_job(tmp_path / "x.h5")), num_train=320)
    specification = chart(plan, rows, "a plan")
    panels = [_layers(panel) for pair in specification["vconcat"] for panel in pair["hconcat"]]
    return {_title(layers): _marks(layers, specification["datasets"]) for layers in panels if layers}


def _layers(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return [leaf for layer in panel.get("layer", []) for leaf in (_layers(layer) or [layer])]


def _title(layers: list[dict[str, Any]]) -> str:
    return next(str(layer["title"]) for layer in layers if "title" in layer)


def _marks(layers: list[dict[str, Any]], datasets: dict[str, Points]) -> dict[str, Points]:
    return {layer["mark"]["type"]: datasets[layer["data"]["name"]] for layer in layers}


def test_fig_1_has_both_parts_and_their_sum(panels: dict[str, dict[str, Points]]) -> None:
    shown = {(p["what"], p["batch"]): p["value"] for p in panels["time of a step (Fig. 1)"]["point"]}
    assert shown["t_c", 8] == pytest.approx(200)
    assert shown["t_mov", 8] == pytest.approx(30)
    # The median of the sums as measured, 0.11, 0.12, 0.23, 0.44 and 0.95 s.
    assert shown["t_c + t_mov", 8] == pytest.approx(230)
    assert shown["t_c + t_mov", 16] == pytest.approx(230)
    lines = {p["what"] for p in panels["time of a step (Fig. 1)"]["line"]}
    assert lines == {"t_c", "t_mov", "t_c + t_mov"}


def test_fig_5_has_spread_and_a_plain_line(panels: dict[str, dict[str, Points]]) -> None:
    layers = panels["t_c, median and quartiles (Fig. 5)"]
    (first,) = [p for p in layers["rule"] if p["batch"] == 8]
    assert (first["low"], first["value"], first["high"]) == pytest.approx((100, 200, 400))
    # Least squares through 0.2 s at 8, 0.2 s at 16 and 0.4 s at 32: 0.1 + batch / 112.
    plain = {p["batch"]: p["value"] for p in layers["line"] if p["what"] == "plain line"}
    assert (plain[8], plain[16], plain[32]) == pytest.approx((100 + 1000 / 14, 100 + 1000 / 7, 100 + 2000 / 7))
    assert {p["value"] for p in layers["line"] if p["what"] == "fit"} == {300.0}


def test_fig_2_has_medians_and_quartiles_of_an_epoch(panels: dict[str, dict[str, Points]]) -> None:
    layers = panels["epoch of one rank alone, median and quartiles (Fig. 2)"]
    shown = {p["batch"]: (p["low"], p["value"], p["high"]) for p in layers["rule"]}
    assert shown[8] == pytest.approx((40 * 0.12, 40 * 0.23, 40 * 0.44))
    (best,) = layers["text"]
    assert best["batch"] == 16


def test_fig_4_stands_beside_it_whatever_the_ranks(panels: dict[str, dict[str, Points]]) -> None:
    shown = {(p["what"], p["batch"]): p for p in panels["activation and batch memory (Fig. 4)"]["point"]}
    assert shown["M_act", 8]["value"] == pytest.approx(8)
    assert (shown["M_batch", 16]["role"], shown["M_batch", 32]["role"]) == ("held out", "fitted")
