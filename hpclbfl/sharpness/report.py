"""What `hpclbfl sharpness` prints: tables for people, JSON for machines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclbfl.core.progress import result_console
from hpclbfl.core.table import DataTable
from hpclbfl.sharpness.eigenpairs import Eigenpair
from hpclbfl.sharpness.spectrum import Spectrum, mean_and_error

_ENDS = 4
"""Parts that the table shows at either end of the spectrum."""


@dataclass(frozen=True)
class Result:
    """What was found about one state of a run."""

    run: Path
    path: Path
    """sharpness.h5."""
    title: str
    step: int
    num_parameters: int
    num_samples: int
    num_train: int
    seed: int
    pairs: list[Eigenpair]
    spectrum: Spectrum | None
    seconds: float


def as_json(result: Result) -> str:
    """One JSON object; numbers that are not finite are null."""
    values: dict[str, Any] = {
        "run": str(result.run),
        "step": result.step,
        "num_parameters": result.num_parameters,
        "num_samples": result.num_samples,
        "seed": result.seed,
        "eigenvalues": [
            {
                "index": index,
                "eigenvalue": _plain(pair.value),
                "residual": _plain(pair.residual),
                "iterations": pair.iterations,
                "has_settled": pair.has_settled,
            }
            for index, pair in enumerate(result.pairs)
        ],
        "seconds": round(result.seconds, 1),
        "file": str(result.path),
    }
    if result.spectrum is not None:
        parts = result.spectrum.weights()
        weights, errors = mean_and_error(parts.shares)
        columns = zip(parts.values, parts.low, parts.high, weights, errors, strict=True)
        names = ("eigenvalue", "low", "high", "weight", "error")
        values["spectrum"] = [dict(zip(names, map(_plain, row), strict=True)) for row in columns]
        trace, error = result.spectrum.trace()
        values["trace"] = {"value": _plain(trace), "error": _plain(error)}
        values["vectors"] = len(result.spectrum.quadratures)
    return json.dumps(values)


def print_result(result: Result, num_ranks: int) -> None:
    """Tables to stdout."""
    console = result_console(num_ranks)
    ranks = f"{num_ranks} ranks" if num_ranks > 1 else "1 rank"
    console.print(
        f"{result.title}, step {result.step}: loss over {result.num_samples} of {result.num_train} training samples, "
        f"{result.num_parameters:,} parameters; {ranks}, {result.seconds:.1f} s",
        soft_wrap=True,
    )
    table = DataTable(title="Top eigenvalues of the Hessian")
    for name in ("index", "eigenvalue", "residual", "products"):
        table.add_column(name, justify="right")
    table.add_column("settled")
    for index, pair in enumerate(result.pairs):
        numbers = (str(index), f"{pair.value:.5g}", f"{pair.residual:.2g}", str(pair.iterations))
        table.add_row(*numbers, "yes" if pair.has_settled else "no")
    console.print(table)
    if result.spectrum is not None:
        console.print(_spectrum(result.spectrum))
        trace, error = result.spectrum.trace()
        console.print(f"trace {trace:.4g}{_plus_minus(error)}", soft_wrap=True)
    console.print(str(result.path), soft_wrap=True)


def _spectrum(spectrum: Spectrum) -> DataTable:
    parts, vectors = spectrum.weights(), len(spectrum.quadratures)
    count, steps = len(parts.values), max(len(one.values) for one in spectrum.quadratures)
    title = f"Spectrum, {vectors} start vector{'s' * (vectors > 1)} of {steps} Lanczos steps"
    table = DataTable(title=title)
    for name in ("eigenvalue", "from", "to", "weight", "error"):
        table.add_column(name, justify="right")
    if count > 2 * _ENDS + 1:
        between = slice(_ENDS, count - _ENDS)
        groups = [*range(_ENDS), between, *range(count - _ENDS, count)]
    else:
        groups = [*range(count)]
    for group in groups[::-1]:
        weight, error = mean_and_error(parts.shares[:, group].reshape(vectors, -1).sum(axis=1))
        shares = f"{weight:.3g}", f"{error:.1g}" if math.isfinite(error) else "-"
        if isinstance(group, slice):
            table.add_row(f"{count - 2 * _ENDS} between", "", "", *shares)
        else:
            places = (parts.values[group], parts.low[group], parts.high[group])
            table.add_row(*(f"{place:.5g}" for place in places), *shares)
    return table


def _plus_minus(error: float) -> str:
    return f" ± {error:.2g}" if math.isfinite(error) else ""


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
