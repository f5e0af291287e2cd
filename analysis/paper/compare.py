"""A table of the paper beside the runs that reproduce its rows: differences, and whether their order is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import polars as pl

from hpclbfl.analysis.measure import metrics, stats
from hpclbfl.analysis.paper.rows import PaperRow, PaperTable, paper_table, row_of
from hpclbfl.analysis.read.configs import as_text, describe_data, describe_partition, describe_sync
from hpclbfl.analysis.read.frames import Frames
from hpclbfl.core.errors import ConfigError

HOLDS, REVERSED = "as in the paper", "reversed"


@dataclass(frozen=True)
class Measured:
    """A row of the paper and the result of our runs; accuracies in percent, differences in percentage points."""

    row: PaperRow
    n: int
    """Seeds of complete runs."""
    top1: float | None = None
    """Mean over seeds of the final test accuracy; None: no run."""
    top5: float | None = None
    """From the same evaluations; None also if the logs have no top-5."""
    difference: float | None = None
    """top1 - the paper's."""
    low: float | None = None
    high: float | None = None
    """Student's t interval of the difference over seeds; None for fewer than stats.MIN_SEEDS."""
    run_as: str | None = None
    """Model, data, synchroniser with its H, partition, clients, batch, and X if there is one, of the complete runs, or
    else of another run."""


@dataclass(frozen=True)
class Pair:
    """Two rows of one model, the one with the higher accuracy in the paper first."""

    model: str
    higher: PaperRow
    lower: PaperRow
    n: int
    """Seeds that both rows have."""
    difference: float | None = None
    """Our difference, higher - lower, points; None: a row has no runs, or they share no seed."""
    low: float | None = None
    high: float | None = None
    p_holm: float | None = None
    """p of Student's paired test, corrected by Holm for all pairs of the table; None: nothing to test."""
    verdict: str = "-"
    """HOLDS or REVERSED if p_holm is at most 0.05, else the verdict of `stats.judged`."""

    @property
    def printed(self) -> float:
        """The paper's difference, points."""
        return self.higher.accuracy - self.lower.accuracy


@dataclass(frozen=True)
class Comparison:
    """A table of the paper beside our runs."""

    name: str
    table: PaperTable
    rows: list[Measured]
    """All rows, in the order of the table."""
    pairs: list[Pair]
    """All pairs of rows of one model with different accuracies in the paper, by model."""
    others: int
    """Runs in the folder that belong to no row."""
    unfinished: int
    """Runs of a row that are not complete; they do not count."""

    def order(self, model: str, ours: bool) -> list[str]:
        """Rows of a model by descending accuracy, the paper's or ours; of ours only those with runs."""
        found = [
            (r.top1 if ours else r.row.accuracy, self.table.within(r.row)) for r in self.rows if r.row.model == model
        ]
        return [name for _, name in sorted(((a, n) for a, n in found if a is not None), key=lambda pair: -pair[0])]


def compare_with_paper(frames: Frames, name: str) -> Comparison:
    """Compare runs with a table of the paper.

    Args:
        frames: runs; those that belong to no row are left out, see `paper_rows`.
        name: of the table.

    Raises:
        ConfigError: there is no such table, or runs that differ in more than their seed belong to one row.
    """
    table = paper_table(name)
    jobs = frames.runs.rows(named=True)
    keys = [found.key if (found := _row(job, name, table)) else None for job in jobs]
    runs = frames.runs.select("run", "arm", "seed", "complete").with_columns(pl.Series("row", keys, dtype=pl.String))
    mine = runs.drop_nulls("row")
    final = metrics.final(frames.evals).select("run", pl.col("top1", "top5") * 100)
    seeds = mine.filter("complete").join(final, on="run", how="inner").drop_nulls("top1")
    complete_last = sorted(zip(keys, jobs, strict=True), key=lambda pair: bool(pair[1]["complete"]))
    run_as = {key: _run_as(job) for key, job in complete_last if key is not None}
    for row in table.rows:
        _refuse_mixtures(row, table, seeds, frames)
    measured = [_measure(row, seeds.filter(pl.col("row") == row.key), run_as.get(row.key)) for row in table.rows]
    pairs = _pairs(table, seeds)
    return Comparison(name, table, measured, pairs, len(runs) - len(mine), int((~mine["complete"]).sum()))


def _row(job: Mapping[str, Any], name: str, table: PaperTable) -> PaperRow | None:
    return None if job["state"] == "unreadable" else row_of(job, name, table)


def _run_as(job: Mapping[str, Any]) -> str:
    limit, side, clients = job.get("data.limit"), job.get("data.resize"), job.get("clients")
    data = describe_data(job) if limit is None else f"{as_text(limit)} of {describe_data(job)}"
    parts = [
        as_text(job.get("model.name")),
        data if side is None else f"{data} at {as_text(side)} px",
        describe_sync(job),
        describe_partition(job),
        f"{as_text(clients)} client{'' if clients == 1 else 's'}",
        _batch(job),
    ]
    factor = job.get("gradients.scaler.factor")
    return ", ".join(parts if factor is None else [*parts, f"X={as_text(factor)}"])


def _batch(job: Mapping[str, Any]) -> str:
    policy = job.get("batching.policy")
    local, whole = job.get("batching.local_batch_size"), job.get("batching.global_batch_size")
    size = f"B={as_text(whole)}" if local is None else f"b={as_text(local)}"
    return size if policy in (None, "fixed") else f"{size} {policy}"


def _refuse_mixtures(row: PaperRow, table: PaperTable, seeds: pl.DataFrame, frames: Frames) -> None:
    arms = seeds.filter(pl.col("row") == row.key)["arm"].unique(maintain_order=True).cast(pl.String).to_list()
    if len(arms) > 1:
        what = f"{table.models[row.model].shown}, {table.within(row)}"
        raise ConfigError(
            f"{frames.root}: {len(arms)} different experiments belong to the row {what}: {'; '.join(arms[:3])}: "
            "report a folder that holds one of them"
        )


def _measure(row: PaperRow, seeds: pl.DataFrame, run_as: str | None) -> Measured:
    if seeds.is_empty():
        return Measured(row, 0, run_as=run_as)
    found = stats.over_seeds(seeds.with_columns(difference=pl.col("top1") - row.accuracy), "difference", by=("row",))
    (difference,) = found.rows(named=True)
    means = {name: stats.over_seeds(seeds, name, by=("row",))["mean"] for name in ("top1", "top5")}
    return Measured(
        row,
        n=difference["n"],
        top1=means["top1"][0],
        top5=means["top5"][0] if len(means["top5"]) else None,
        difference=difference["mean"],
        low=difference["low"],
        high=difference["high"],
        run_as=run_as,
    )


def _pairs(table: PaperTable, seeds: pl.DataFrame) -> list[Pair]:
    # `stats.compare` compares arms.
    sides = seeds.drop("arm").rename({"row": "arm"})
    pairs: list[Pair] = []
    compared: dict[str, pl.DataFrame] = {}
    for model in table.models:
        rows = sorted((row for row in table.rows if row.model == model), key=lambda row: -row.accuracy)
        for higher, lower in combinations(rows, 2):
            if higher.accuracy != lower.accuracy:
                both = sides.filter(pl.col("arm").is_in([higher.key, lower.key]))
                compared[str(len(pairs))] = stats.compare(both, "top1", lower.key)
                pairs.append(Pair(model, higher, lower, 0))
    judged = stats.judged(compared)
    return [_with_result(pair, judged[str(place)]) for place, pair in enumerate(pairs)]


def _with_result(pair: Pair, compared: pl.DataFrame) -> Pair:
    if compared.is_empty() or not compared["n"][0]:
        return pair
    (found,) = compared.rows(named=True)
    return replace(
        pair,
        **{name: found[name] for name in ("n", "difference", "low", "high", "p_holm")},
        verdict={"higher": HOLDS, "lower": REVERSED}.get(found["verdict"], found["verdict"]),
    )
