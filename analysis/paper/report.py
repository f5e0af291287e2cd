"""What `hpclbfl report DIR --paper table1` prints: the paper's numbers beside ours, and whether their order agrees."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

from hpclbfl.analysis.measure.stats import LEVEL, MIN_SEEDS
from hpclbfl.analysis.paper.compare import HOLDS, REVERSED, Comparison, Measured, Pair
from hpclbfl.analysis.paper.rows import PaperTable
from hpclbfl.analysis.show.markup import TextTable, signed
from hpclbfl.analysis.show.printing import Format, print_tables


def print_paper(compared: Comparison, form: Format = "text") -> None:
    """Print a table of the paper beside our runs to stdout."""
    tables = (rows_table(compared), runs_table(compared), order_table(compared))
    print_tables([table for table in tables if table.rows], form)


def print_paper_json(compared: Comparison) -> None:
    """Print `as_plain` to stdout."""
    sys.stdout.write(json.dumps(as_plain(compared), indent=2) + "\n")


def rows_table(compared: Comparison) -> TextTable:
    """All rows of the table: the paper's accuracy, our top-1 and top-5, and the difference of top-1."""
    table = compared.table
    numbers = ("paper (%)", "ours (%)", "top-5 (%)", "ours - paper (points)", "seeds")
    marked = [row for row in table.rows if row.note]
    rows: list[tuple[str, ...]] = []
    for found in compared.rows:
        mark = f" ({marked.index(found.row) + 1})" if found.row.note else ""
        rows.append(
            (
                *_labels(compared, found),
                f"{found.row.accuracy}{mark}",
                *("-" if share is None else f"{share:.2f}" for share in (found.top1, found.top5)),
                _interval(found),
                str(found.n) if found.run_as else "-",
            )
        )
    notes = [f"({place}) {row.note}" for place, row in enumerate(marked, 1)]
    if compared.unfinished:
        notes.append(f"Runs that are not complete and do not count: {compared.unfinished}.")
    if compared.others:
        notes.append(f"Runs that belong to no row: {compared.others}.")
    notes.append("Ours: mean top-1 over seeds; beside it our top-5.")
    few = any(0 < found.n < MIN_SEEDS for found in compared.rows)
    notes.append(_intervals() + (f" An interval needs {MIN_SEEDS} seeds." if few else ""))
    return TextTable(
        title=f"{table.source}: {table.title}",
        head=(*_label_heads(table), *numbers),
        rows=rows,
        left=frozenset(_label_heads(table)),
        notes=tuple(notes),
    )


def runs_table(compared: Comparison) -> TextTable:
    """What was run for each row that has runs."""
    head = (*_label_heads(compared.table), "run as")
    rows: list[tuple[str, ...]] = [(*_labels(compared, found), found.run_as) for found in compared.rows if found.run_as]
    return TextTable(title="What was run", head=head, rows=rows, left=frozenset(head))


def order_table(compared: Comparison) -> TextTable:
    """All pairs of rows of one model: the paper's difference, ours, and whether the order is the same."""
    table = compared.table
    head = ("model", "higher", "lower", "paper", "ours", "n", "order")
    rows: list[tuple[str, ...]] = [
        (
            pair.model,
            table.within(pair.higher),
            table.within(pair.lower),
            f"{pair.printed:.2f}",
            _interval(pair),
            str(pair.n) if pair.n else "-",
            pair.verdict,
        )
        for pair in compared.pairs
    ]
    notes = [line for model in table.models for line in _orders(compared, model)]
    return TextTable(
        title="Order of the rows of each model, the paper's higher one first; differences in points",
        head=head,
        rows=rows,
        left=frozenset({"model", "higher", "lower", "order"}),
        notes=(
            *notes,
            "Ours: n pairs by seed. "
            + _intervals()
            + " The order is judged by Student's paired test, corrected by Holm for all pairs.",
        ),
    )


def as_plain(compared: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; accuracies in percent, differences in points, None: not measured."""
    table = compared.table
    rows = []
    for found in compared.rows:
        ours = {key: value for key, value in asdict(found).items() if key != "row"}
        rows.append({**found.row.model_dump(), "configuration": table.models[found.row.model].shown, **ours})
    pairs = [
        {**asdict(pair), "higher": pair.higher.key, "lower": pair.lower.key, "printed": round(pair.printed, 10)}
        for pair in compared.pairs
    ]
    orders = {m: {"paper": compared.order(m, ours=False), "ours": compared.order(m, ours=True)} for m in table.models}
    return {
        "paper": compared.name,
        "title": table.title,
        "source": table.source,
        "rows": rows,
        "pairs": pairs,
        "orders": orders,
        "unfinished": compared.unfinished,
        "others": compared.others,
    }


def _label_heads(table: PaperTable) -> tuple[str, str]:
    return "Configuration", f"Partition ({table.column})"


def _labels(compared: Comparison, found: Measured) -> tuple[str, str]:
    return compared.table.models[found.row.model].shown, compared.table.within(found.row)


def _orders(compared: Comparison, model: str) -> list[str]:
    shown = compared.table.models[model].shown
    ours = compared.order(model, ours=True)
    if not ours:
        return [f"{shown}: no complete run."]
    counts = Counter(pair.verdict for pair in compared.pairs if pair.model == model and pair.n)
    pairs = sum(counts.values())
    undecided = pairs - counts[HOLDS] - counts[REVERSED]
    summary = (
        f"{counts[HOLDS]} of {pairs} pairs as in the paper, {counts[REVERSED]} reversed, "
        f"{undecided} without a significant difference"
    )
    return [f"{shown}: paper {' > '.join(compared.order(model, ours=False))}; ours {' > '.join(ours)}; {summary}."]


def _interval(found: Measured | Pair) -> str:
    if found.difference is None:
        return "-"
    if found.low is None or found.high is None:
        return signed(found.difference, 2)
    return f"{signed(found.difference, 2)} [{signed(found.low, 2)}, {signed(found.high, 2)}]"


def _intervals() -> str:
    return f"In brackets: {100 * LEVEL:.0f} % Student's t interval over seeds."
