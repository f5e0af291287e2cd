"""`hpclbfl report`, `watch` and `export`: results of runs, from their logs. None of them loads torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hpclbfl.cli.options import AsJson, Quiet, Runs, Verbose
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import say

logger = Diagnostics(__name__, title="")


def report(
    directory: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="report.html", help="Also write tables and figures as a page.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="OUTDIR", help="Also write the figures as PNG, SVG and PDF.")
    ] = None,
    form: Annotated[
        Literal["text", "markdown", "latex"], typer.Option("--format", help="Format of the printed tables.")
    ] = "text",
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ARM", help="Label of the arm to compare with [the first].")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option("--target", min=0.0, max=1.0, help="Also print what it took to reach this test accuracy."),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option("--paper", metavar="TABLE", help="Compare the runs with a table of the paper: table1, table2."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print tables of runs from their logs; write them as a page and figures."""
    if paper is not None:
        from hpclbfl.analysis.measure.report import load_some
        from hpclbfl.analysis.paper.compare import compare_with_paper
        from hpclbfl.analysis.paper.report import print_paper, print_paper_json
        from hpclbfl.analysis.paper.rows import paper_table

        others = {"--out": out, "--figures": figures, "--baseline": baseline, "--target": target}
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"{given[0]}: does not go with --paper, which prints one table (--format, --json)")
        paper_table(paper)  # a wrong name is told before the runs are read
        compared = compare_with_paper(load_some(directory), paper)
        print_paper_json(compared) if as_json else print_paper(compared, form)
        return
    from hpclbfl.analysis.measure.report import load_some, make_report
    from hpclbfl.analysis.show.printing import print_json, print_report

    found = make_report(load_some(directory), baseline, target)
    print_json(found) if as_json else print_report(found, form)
    if out is not None:
        from hpclbfl.analysis.show.page import write_page

        write_page(out, found)
        logger.info(out)
    if figures is not None:
        from hpclbfl.analysis.show.render import write_figures

        for path, left_out in write_figures(found, figures):
            logger.info(f"{path}: {left_out}" if left_out else path)


def watch(
    directory: Runs,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and stop.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the runs of a folder while they train; without a terminal: their table every 30 s."""
    from hpclbfl.analysis.show.watch import watch as watch_runs

    watch_runs(directory, once)


def export(
    directory: Runs,
    form: Annotated[Literal["parquet", "csv"], typer.Option("--format", help="Format of the files.")] = "parquet",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write [DIR/tables].")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the logs of runs as tidy tables: runs, steps, evals, layers, plans, events, metrics, problems."""
    from hpclbfl.analysis.measure.report import load_some
    from hpclbfl.analysis.show.export import export as write_tables
    from hpclbfl.core.files import make_folder

    frames = load_some(directory)
    folder = directory / "tables"
    if out is None:
        # The default: an existing link there is not followed.
        make_folder(folder)
    for path, rows in write_tables(frames, out or folder, form):
        say(f"{path}: {rows} rows", sys.stdout)
