"""The results of `hpclbfl sharpness`: rows of sharpness.h5, tables for people, JSON for machines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.core.progress import result_console
from hpclbfl.core.table import DataTable
from hpclbfl.sharpness.eigenpairs import Eigenpair
from hpclbfl.sharpness.spectrum import Spectrum, mean_and_error
from hpclbfl.sharpness.store import Tables, empty_tables, rows_of

_ENDS = 4
"""Number of parts that the table shows at each end of the spectrum."""


@dataclass(frozen=True)
class Result:
    """Eigenvalues and spectrum of one state of a run."""

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

    def tables(self, density: bool = False) -> Tables:
        """The rows of sharpness.h5."""
        tables, step = empty_tables(), self.step
        tables["eigenvalues"] = rows_of(
            "eigenvalues",
            step,
            index=range(len(self.pairs)),
            num_samples=self.num_samples,
            seed=self.seed,
            **{name: [getattr(pair, name) for pair in self.pairs] for name in _PAIR},
        )
        if self.spectrum is None:
            return tables
        rows = []
        for vector, one in enumerate(self.spectrum.quadratures):
            columns = {"eigenvalue": one.values, "weight": one.weights, "residual": one.residuals}
            rows.append(rows_of("spectrum", step, vector=vector, index=range(len(one.values)), **columns))
        tables["spectrum"] = np.concatenate(rows)
        parts = self.spectrum.weights()
        weight, error = mean_and_error(parts.shares)
        places = {"eigenvalue": parts.values, "low": parts.low, "high": parts.high}
        tables["weights"] = rows_of("weights", step, **places, weight=weight, error=error)
        trace, error_of_trace = self.spectrum.trace()
        tables["trace"] = rows_of("trace", step, trace=trace, error=error_of_trace, vectors=len(rows))
        if density:
            tables["density"] = rows_of("density", step, **self.spectrum.density())
        return tables


_PAIR = ("eigenvalue", "residual", "iterations", "has_settled")
"""Fields of an eigenpair that are columns, too."""


def as_json(result: Result) -> str:
    """One JSON object; numbers that are not finite are null."""
    keys = ("step", "num_parameters", "num_samples", "seed")
    pairs = [
        {"index": index, **{name: _plain(getattr(pair, name)) for name in _PAIR}}
        for index, pair in enumerate(result.pairs)
    ]
    values: dict[str, Any] = {"run": str(result.run), **{key: getattr(result, key) for key in keys}}
    values |= {"eigenvalues": pairs, "seconds": round(result.seconds, 1), "file": str(result.path)}
    if result.spectrum is not None:
        tables = result.tables()
        names = ("eigenvalue", "low", "high", "weight", "error")
        values["spectrum"] = [{name: _plain(row[name]) for name in names} for row in tables["weights"]]
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
    table.add_column("converged")
    for index, pair in enumerate(result.pairs):
        numbers = (str(index), f"{pair.eigenvalue:.5g}", f"{pair.residual:.2g}", str(pair.iterations))
        table.add_row(*numbers, "yes" if pair.has_settled else "no")
    console.print(table)
    if result.spectrum is not None:
        console.print(_spectrum(result.spectrum))
        trace, error = result.spectrum.trace()
        spread = f" ± {error:.2g}" if math.isfinite(error) else ""
        console.print(f"trace {trace:.4g}{spread}", soft_wrap=True)
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


def _plain(value: Any) -> Any:
    """A number as JSON has it."""
    if isinstance(value, bool | int):
        return value
    return float(value) if math.isfinite(value) else None
