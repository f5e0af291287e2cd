"""The output of `hpclbfl plan`: tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hpclbfl.batching.cost_model import Line, medians
from hpclbfl.batching.plan_file import LineFit, MemoryPlan, NetworkPlan, Plan, RankPlan
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
        # Identical devices have the same memory and times: one table per kind of device.
        if (rank.device, rank.slowdown) in seen:
            continue
        seen.append((rank.device, rank.slowdown))
        name = rank.device if len(plan.ranks) == 1 else f"rank {rank.rank}, {rank.device}"
        if rank.memory is not None:
            free = (
                f"of the limit of {shown_size(rank.memory.limit_bytes)} {100 * rank.memory.margin:.0f} % is left free"
            )
            reserved, straight = rank.memory.reserved_bytes, rank.memory.total_from_batch
            free += f", and {shown_size(reserved)} for communication" if reserved else ""
            ran = f"{rank.max_batch} was run" + (
                f", {rank.failed_batch} ran out of memory" if rank.failed_batch else ""
            )
            if rank.bound == "time":
                ran += f"; memory would allow about {_largest_by_memory(rank.memory)}"
            note = f"other: program, images, work space; total: the peak, linear from {straight} on; {free}; {ran}"
            _show(console, f"Memory of {name}, MB", _memory(rank, rank.memory), note)
        note = f"* held out of the fit, which is linear from batch {rank.t_straight_from} on"
        _show(console, f"Times of {name}", _times(plan, rank, rows), note)
    network = plan.network
    if network is not None:
        note = (
            f"{_message(network)}, fitted on {network.num_ranks} ranks ({network.engine}): "
            f"{shown_size(network.bandwidth_bytes_per_s)}/s, {1e6 * network.hop_s:.0f} us per hop"
        )
        _show(console, "Step of ranks like these, with their shares (Eq. 2), ms", _steps(plan), note)
    note = (
        "M_batch at batch 1: memory is allocated in whole pages, however small one image is"
        if plan.ranks[0].threads
        else ""
    )
    fits = {name: (found["median"], found["worst"], found["num_sizes"]) for name, found in plan.fits.items()}
    _show(console, "Errors of the predictions, at sizes that were held out of the fits", _errors("median", fits), note)
    title = "Errors of one straight line at the batch sizes that it was fitted to (as in the paper's Fig. 4b and 5)"
    plain = {e.quantity: (e.least, e.worst, e.num_sizes) for e in plain_line_errors(rows)}
    _show(console, title, _errors("least", plain), "not used by the planner: ordinary least squares, no bend")
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


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]], sections: Container[str] = ()) -> DataTable:
    """A table; texts of the columns in _LEFT are on the left, a rule follows each row whose first cell is a section."""
    table = DataTable()
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right")
    for row in rows:
        table.add_row(*row, end_section=row[0] in sections)
    return table


def _ranks(plan: Plan) -> DataTable:
    share = f"share of {plan.global_batch_size}"
    rows = []
    for rank in plan.ranks:
        slower = f", {rank.slowdown:g} times slower" if rank.slowdown != 1 else ""
        threads = f", {rank.threads} thread{'s' if rank.threads != 1 else ''}" if rank.threads else ""
        bound = _BOUNDS[rank.bound] + ("" if rank.is_verified else ", not met")
        sizes = str(rank.rank), str(rank.max_batch), bound, str(rank.best_batch or "-")
        own = f"{rank.local_batch_size or '-'} of {plan.global_batch_size}"
        times = f"{1e3 * rank.t_fixed_s:.1f}", f"{1e3 * rank.t_per_sample_s:.3f}"
        rows.append((*sizes, own, *times, f"{rank.device}{threads}{slower}"))
    return _table(("rank", "largest", "bound by", "best", share, "a, ms", "b, ms", "device"), rows)


def _memory(rank: RankPlan, memory: MemoryPlan) -> DataTable:
    usual = usual_batch(rank)
    batches = sorted({usual, rank.best_batch or usual, rank.max_batch})
    lines = {"M_act": memory.activation, "M_batch": memory.batch, "total": memory.total}
    columns = [{**memory_parts(memory, batch), "total": at(memory.total, batch)} for batch in batches]
    rows = []
    for name in columns[0]:
        line, values = lines.get(name), [_mb(column[name]) for column in columns]
        fixed = "" if name == "other" else _mb(line.fixed) if line else values[0]
        rows.append((name, fixed, f"{line.per_sample / 1e6:.4f}" if line else "", *values))
    return _table(("", "fixed", "per sample", *(f"at {batch}" for batch in batches)), rows, ("other",))


def _largest_by_memory(memory: MemoryPlan) -> int:
    """The largest batch that the fit predicts to stay within the limit and its margin."""
    allowed = (memory.limit_bytes - memory.reserved_bytes) * (1 - memory.margin)
    return Line(memory.total.fixed, memory.total.per_sample).batch_of(allowed) if memory.total.per_sample > 0 else 0


def _times(plan: Plan, rank: RankPlan, rows: Sequence[ProbeRow]) -> DataTable:
    own = [row for row in rows if row.rank == rank.rank]
    names = ("t_mov_s", "t_c_s", "t_local_s")
    found = {name: medians((row.batch, row.measured) for row in own if row.quantity == name) for name in names}
    held_out = {row.batch for row in own if row.quantity == "t_local_s" and row.role == "held_out"}
    cells = []
    for batch, seconds in found["t_local_s"].items():
        predicted = rank.seconds(batch)
        loading, computing = f"{1e3 * found['t_mov_s'][batch]:.2f}", f"{1e3 * found['t_c_s'][batch]:.1f}"
        error = f"{100 * (predicted / seconds - 1):+.1f} %"
        epoch = f"{(plan.num_train or 0) / batch * predicted:.1f}{' best' if batch == rank.best_batch else ''}"
        name = f"{'*' if batch in held_out else ''}{batch}"
        cells.append((name, loading, computing, f"{1e3 * seconds:.1f}", f"{1e3 * predicted:.1f}", error, epoch))
    return _table(("batch", "t_mov, ms", "t_c, ms", "step, ms", "predicted", "error", "epoch alone, s"), cells)


def _steps(plan: Plan) -> DataTable:
    found = {(row["num_ranks"], row["local_steps"]): f"{1e3 * row['t_step_s']:.1f}" for row in predictions(plan)}
    counts, periods = (sorted({int(key[place]) for key in found}) for place in (0, 1))
    rows = [(str(count), *(found[count, h] for h in periods)) for count in counts]
    return _table(("ranks", *(f"H = {h}" for h in periods)), rows)


def _errors(least: str, found: Mapping[str, tuple[float, float, int]]) -> DataTable:
    """Relative errors by quantity: the least or the median, the worst, and the number of sizes."""
    names = [name for name in QUANTITIES if name in found]
    rows = [
        (QUANTITIES[name], f"{100 * low:.1f} %", f"{100 * worst:.1f} %", str(sizes))
        for name, (low, worst, sizes) in ((name, found[name]) for name in names)
    ]
    return _table(("", least, "worst", "sizes"), rows)


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _message(network: NetworkPlan) -> str:
    """What the job reduces at once, in words."""
    if not network.gathered_bytes:
        return f"ring of {shown_size(network.num_bytes)}"
    payload = shown_size(network.gathered_bytes)
    return f"payloads of {payload}, gathered where a ring of {shown_size(network.num_bytes)} sends more"
