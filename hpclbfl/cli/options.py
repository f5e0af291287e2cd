"""Options and arguments of several commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from hpclbfl.core.diagnostics import Level, set_level
from hpclbfl.core.errors import ConfigError

LEVEL = "hpclbfl.level"
"""Key of the level of diagnostics in a command line's shared context."""

Job = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The experiment.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key.path=value]...", help="Override values of the job.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", metavar="D", help="The run folder [runs/<name>-<hash>].")]
Resume = Annotated[
    Literal["auto", "must", "never"],
    typer.Option("--resume", help="Resume from a checkpoint: if there is one, or fail, or start anew."),
]
Runs = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a folder of runs.")]
SweepDir = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep.")]
Hosts = Annotated[str | None, typer.Option("--hosts", metavar="H1:N,H2:N", help="Nodes and ranks on each.")]
NumRanks = Annotated[int | None, typer.Option("-np", "-n", min=1, help="Number of ranks, started by mpirun.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the complete resolved job and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _choose(context: typer.Context, level: Level) -> None:
    if context.meta.setdefault(LEVEL, level) != level:
        raise ConfigError("--quiet and --verbose do not go together")
    set_level(level)


def _be_quiet(context: typer.Context, given: bool) -> bool:
    if given:
        _choose(context, "warning")
    return given


def _be_verbose(context: typer.Context, given: bool) -> bool:
    if given:
        _choose(context, "debug")
    return given


# Handled by their callbacks, not by the commands.
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_be_quiet, help="Only warnings and errors on stderr.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_be_verbose, help="Also details on stderr: times, sizes, files."),
]


def words_of(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command line; None and False are left out, True is a flag."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [name] if value is True else [name, str(value)]
    return words
