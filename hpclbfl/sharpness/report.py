"""What `hpclbfl sharpness` prints: tables for people, JSON for machines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.core.table import DataTable
from hpclbfl.progress import result_console
from hpclbfl.sharpness.hessian import Eigenpair, Spectrum

_ENDS = 4
"""Ritz values that the table shows at either end of the spectrum."""


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
            {"index": i, "eigenvalue": _plain(p.value), "residual": _plain(p.residual), "iterations": p.iterations}
            for i, p in enumerate(result.pairs)
        ],
        "seconds": round(result.seconds, 1),
        "file": str(result.path),
    }
    if result.spectrum is not None:
        columns = zip(result.spectrum.values, result.spectrum.weights, result.spectrum.residuals, strict=True)
        values["spectrum"] = [
            {"eigenvalue": _plain(value), "weight": _plain(weight), "residual": _plain(residual)}
            for value, weight, residual in columns
        ]
    return json.dumps(values)


def print_result(result: Result, num_ranks: int) -> None:
    """Tables to stdout."""
    console = result_console(num_ranks)
    ranks = f"{num_ranks} ranks" if num_ranks > 1 else "1 rank"
    console.print(
        f"{result.title}, step {result.step}: loss over {result.num_samples} of {result.num_train} training images, "
        f"{result.num_parameters:,} parameters; {ranks}, {result.seconds:.1f} s",
        soft_wrap=True,
    )
    table = DataTable(title="Top eigenvalues of the Hessian")
    for name in ("index", "eigenvalue", "residual", "products"):
        table.add_column(name, justify="right")
    for index, pair in enumerate(result.pairs):
        table.add_row(str(index), f"{pair.value:.5g}", f"{pair.residual:.2g}", str(pair.iterations))
    console.print(table)
    if result.spectrum is not None:
        console.print(_spectrum(result.spectrum))
    console.print(str(result.path), soft_wrap=True)


def _spectrum(spectrum: Spectrum) -> DataTable:
    count = len(spectrum.values)
    table = DataTable(title=f"Spectrum, {count} Lanczos steps")
    for name in ("Ritz value", "weight", "residual"):
        table.add_column(name, justify="right")
    places = range(count - 1, -1, -1)
    if count > 2 * _ENDS + 1:
        places_shown: list[int | None] = [*places[:_ENDS], None, *places[-_ENDS:]]
    else:
        places_shown = [*places]
    for place in places_shown:
        if place is None:
            between = np.sum(spectrum.weights[_ENDS:-_ENDS])
            table.add_row(f"{count - 2 * _ENDS} between", f"{between:.2g}", "")
            continue
        numbers = (spectrum.weights[place], spectrum.residuals[place])
        table.add_row(f"{spectrum.values[place]:.5g}", *(f"{number:.2g}" for number in numbers))
    return table


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
