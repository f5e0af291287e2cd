"""What `hpclbfl plan` prints: tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hpclbfl.batching.cost_model import Line, medians
from hpclbfl.batching.plan_file import LineFit, MemoryPlan, Plan, RankPlan
from hpclbfl.core.memory import shown_size
from hpclbfl.core.table import DataTable
from hpclbfl.planner.network import usual_batch
from hpclbfl.planner.recommend import predictions
from hpclbfl.planner.store import ProbeRow, plain_line_errors

QUANTITIES = {
    "t_c_s": "t_c: forward, backward, update",
    "t_mov_s": "t_mov: loading, moving",
    "t_local_s": "t_c + t_mov",
    "m_act_bytes": "M_act",
    "m_batch_bytes": "M_batch",
    "m_total_bytes": "M_total: peak of a step",
    "t_sync_s": "t_sync: reductions",
    "t_step_s": "t_step on all ranks (Eq. 2)",
}
_BOUNDS = {"memory": "memory", "data": "training set", "time": "--max-step"}
_LEFT = ("", "device", "bound by")


def print_plan(plan: Plan, rows: Sequence[ProbeRow], title: str, files: list[Path], console: Console) -> None:
    """Tables: batch sizes by rank, memory by component, times by batch, steps by ranks, errors of the predictions."""
    _show(console, title, _ranks(plan), "step = a + b * batch: loading, forward, backward and update, no network")
    seen: list[tuple[str, float]] = []
    for rank in plan.ranks:
        # Identical devices have the same memory and times; one table for each kind is enough.
        if (rank.device, rank.slowdown) in seen:
            continue
        seen.append((rank.device, rank.slowdown))
        name = rank.device if len(plan.ranks) == 1 else f"rank {rank.rank}, {rank.device}"
        if rank.memory is not None:
            free = f"of the limit of {shown_size(rank.memory.limit_bytes)} {100 * rank.memory.margin:.0f} % stay free"
            reserved, straight = rank.memory.reserved_bytes, rank.memory.total_from_batch
            free += f", and {shown_size(reserved)} for communication" if reserved else ""
            ran = f"{rank.max_batch} was run" + (f", {rank.failed_batch} ran out" if rank.failed_batch else "")
            if rank.bound == "time":
                ran += f"; memory would take about {_by_memory(rank.memory)}"
            note = f"other: program, images, work space; total: the peak, straight from {straight} on; {free}; {ran}"
            _show(console, f"Memory of {name}, MB", _memory(rank, rank.memory), note)
        note = f"* not seen by the fit, which is straight from batch {rank.t_straight_from} on"
        _show(console, f"Times of {name}", _times(plan, rank, rows), note)
    network = plan.network
    if network is not None:
        note = (
            f"ring of {shown_size(network.num_bytes)}, fitted on {network.num_ranks} ranks ({network.engine}): "
            f"{shown_size(network.bandwidth_bytes_per_s)}/s, {1e6 * network.hop_s:.0f} us per hop"
        )
        _show(console, "Step of ranks like these, with their shares (Eq. 2), ms", _steps(plan), note)
    note = "M_batch at batch 1: memory comes in whole pages, whatever one image needs" if plan.ranks[0].threads else ""
    _show(console, "Errors of the predictions, at sizes that the fits have not seen", _errors(plan), note)
    title = "Errors of one plain line, at the batch sizes that it was fitted to (as in the paper's Fig. 4b and 5)"
    _show(console, title, _plain_errors(rows), "no prediction of the planner's: ordinary least squares, no bend")
    if plan.ranks[0].local_batch_size is None:
        most = sum(rank.max_batch for rank in plan.ranks)
        console.print(f"a global batch of {plan.global_batch_size} does not fit: the ranks take {most} at most")
    console.print(" ".join(str(file) for file in files), soft_wrap=True)


def plan_json(plan: Plan, rows: Sequence[ProbeRow], files: list[Path]) -> str:
    """The plan, predictions of Eq. 2, errors of plain lines and the files, as one JSON object."""
    values: dict[str, Any] = plan.model_dump(mode="json")
    values["predictions"] = predictions(plan)
    values["plain_line_errors"] = {e.quantity: asdict(e) for e in plain_line_errors(rows)}
    values["files"] = [str(file) for file in files]
    return json.dumps(values)


def memory_parts(memory: MemoryPlan, batch: int) -> dict[str, float]:
    """Eq. 3 at a batch size, bytes; `other` is what the peak of a step has beyond its terms."""
    parts = {
        "M_model": float(memory.model_bytes),
        "M_grad": float(memory.gradient_bytes),
        "M_opt": float(memory.optimizer_bytes),
        "M_act": at(memory.activation, batch),
        "M_batch": at(memory.batch, batch),
    }
    return {**parts, "other": max(0.0, at(memory.total, batch) - sum(parts.values()))}


def at(fit: LineFit, batch: float) -> float:
    """Value of a line at a batch size."""
    return Line(fit.fixed, fit.per_sample)(batch)


def _show(console: Console, title: str, table: DataTable, note: str = "") -> None:
    console.print(title, style="bold")
    console.print(table)
    if note:
        console.print(note, style="dim")
        console.print()


def _ranks(plan: Plan) -> DataTable:
    table = _table(
        "rank", "largest", "bound by", "best", f"share of {plan.global_batch_size}", "a, ms", "b, ms", "device"
    )
    for rank in plan.ranks:
        slower = f", {rank.slowdown:g} times slower" if rank.slowdown != 1 else ""
        threads = f", {rank.threads} thread{'s' if rank.threads != 1 else ''}" if rank.threads else ""
        table.add_row(
            str(rank.rank),
            str(rank.max_batch),
            _BOUNDS[rank.bound] + ("" if rank.is_verified else ", not met"),
            str(rank.best_batch or "-"),
            f"{rank.local_batch_size or '-'} of {plan.global_batch_size}",
            f"{1e3 * rank.t_fixed_s:.1f}",
            f"{1e3 * rank.t_per_sample_s:.3f}",
            f"{rank.device}{threads}{slower}",
        )
    return table


def _memory(rank: RankPlan, memory: MemoryPlan) -> DataTable:
    usual = usual_batch(rank)
    batches = sorted({usual, rank.best_batch or usual, rank.max_batch})
    table = _table("", "fixed", "per sample", *(f"at {batch}" for batch in batches))
    lines = {"M_act": memory.activation, "M_batch": memory.batch}
    columns = [memory_parts(memory, batch) for batch in batches]
    for name in columns[0]:
        line = lines.get(name)
        fixed = line.fixed if line else columns[0][name]
        shown = ["", ""] if name == "other" else [_mb(fixed), f"{line.per_sample / 1e6:.4f}" if line else ""]
        table.add_row(name, *shown, *(_mb(column[name]) for column in columns), end_section=name == "other")
    total = memory.total
    table.add_row("total", _mb(total.fixed), f"{total.per_sample / 1e6:.4f}", *(_mb(at(total, b)) for b in batches))
    return table


def _by_memory(memory: MemoryPlan) -> int:
    """The largest batch that the fit has within the limit and its margin."""
    allowed = (memory.limit_bytes - memory.reserved_bytes) * (1 - memory.margin)
    return Line(memory.total.fixed, memory.total.per_sample).batch_of(allowed) if memory.total.per_sample > 0 else 0


def _times(plan: Plan, rank: RankPlan, rows: Sequence[ProbeRow]) -> DataTable:
    table = _table("batch", "t_mov, ms", "t_c, ms", "step, ms", "predicted", "error", "epoch alone, s")
    found: dict[str, dict[int, float]] = {}
    for quantity in ("t_mov_s", "t_c_s", "t_local_s"):
        found[quantity] = medians((r.batch, r.measured) for r in rows if r.quantity == quantity and r.rank == rank.rank)
    held_out = {r.batch for r in rows if r.quantity == "t_local_s" and r.rank == rank.rank and r.role == "held_out"}
    for batch, seconds in found["t_local_s"].items():
        predicted = rank.seconds(batch)
        table.add_row(
            f"{'*' if batch in held_out else ''}{batch}",
            f"{1e3 * found['t_mov_s'][batch]:.2f}",
            f"{1e3 * found['t_c_s'][batch]:.1f}",
            f"{1e3 * seconds:.1f}",
            f"{1e3 * predicted:.1f}",
            f"{100 * (predicted / seconds - 1):+.1f} %",
            f"{(plan.num_train or 0) / batch * predicted:.1f}{' best' if batch == rank.best_batch else ''}",
        )
    return table


def _steps(plan: Plan) -> DataTable:
    rows = predictions(plan)
    periods = sorted({int(row["local_steps"]) for row in rows})
    table = _table("ranks", *(f"H = {h}" for h in periods))
    for count in sorted({int(row["num_ranks"]) for row in rows}):
        found = {int(row["local_steps"]): row["t_step_s"] for row in rows if row["num_ranks"] == count}
        table.add_row(str(count), *(f"{1e3 * found[h]:.1f}" for h in periods))
    return table


def _errors(plan: Plan) -> DataTable:
    table = _table("", "median", "worst", "sizes")
    for quantity, meaning in QUANTITIES.items():
        found = plan.fits.get(quantity)
        if found is not None:
            shares = f"{100 * found['median']:.1f} %", f"{100 * found['worst']:.1f} %"
            table.add_row(meaning, *shares, str(found["num_sizes"]))
    return table


def _plain_errors(rows: Sequence[ProbeRow]) -> DataTable:
    table = _table("", "least", "worst", "sizes")
    for found in plain_line_errors(rows):
        shares = f"{100 * found.least:.1f} %", f"{100 * found.worst:.1f} %"
        table.add_row(QUANTITIES[found.quantity], *shares, str(found.num_sizes))
    return table


def _table(*columns: str) -> DataTable:
    table = DataTable()
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right")
    return table


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"
