"""The command line: its commands, their common options, and how errors are reported."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hpclbfl import __version__
from hpclbfl.cli import data, machine, planning, reports, sweeps, train
from hpclbfl.cli.options import LEVEL, Quiet, Verbose
from hpclbfl.core.diagnostics import on_terminal
from hpclbfl.core.errors import HpclbflError
from hpclbfl.core.lean_torch import defer_compiler
from hpclbfl.core.signals import Interrupted
from hpclbfl.core.text import make_streams_safe, say, say_error, say_traceback

OTHERS_WAIT_S = 5.0
"""How long ranks other than 0 delay an error before MPI has started, seconds."""


class _Commands(TyperGroup):
    """All commands. Diagnostics go to the terminal, and Ctrl-C acts like other signals."""

    def invoke(self, ctx: Any) -> Any:
        with on_terminal(ctx.meta.get(LEVEL)):
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                # typer would end it without a message.
                raise Interrupted(signal.SIGINT) from None


app = typer.Typer(
    cls=_Commands,
    name="hpclbfl",
    help="Large-batch federated and data-parallel training experiments on HPC clusters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Inspect data sets and pack them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

COMMANDS: tuple[Callable[..., None], ...] = (
    *(train.train, train.launch, reports.report, reports.watch, reports.export, planning.plan, planning.sharpness),
    *(sweeps.sweep, sweeps.status, sweeps.cancel, machine.doctor, machine.bench),
)
DATA_COMMANDS: tuple[Callable[..., None], ...] = (data.info, data.pack)
for _command in COMMANDS:
    app.command()(_command)
for _command in DATA_COMMANDS:
    data_app.command()(_command)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"hpclbfl {__version__}", sys.stdout)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    # The options are handled by their callbacks.
    pass


# From typer's own copy of click or from click itself, depending on typer's version.
_CLICK_ERRORS = (kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_COMMAND_LINE_ERROR: type[Exception] = next(_CLICK_ERRORS)


def _say_usage(error: Any) -> int:
    """Report an error in the command line, whose words may be untrusted; returns the exit code."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        lines = error.format_message().splitlines()
    else:
        usage = [] if context is None else context.get_usage().splitlines()
        more = [] if context is None else [f"Try '{context.command_path} --help' for help."]
        lines = [*usage, *more, f"hpclbfl: error: {error.format_message()}"]
    for line in lines:
        say(line)
    return int(error.exit_code)


def main() -> None:
    """Entry point: an error of ours is one line on stderr and an exit code."""
    from hpclbfl.core.launched import launched_rank

    make_streams_safe()
    defer_compiler()
    try:
        code = app(prog_name="hpclbfl", standalone_mode=False)
    except HpclbflError as error:
        if "--debug" in sys.argv:
            say_traceback(error)
        if launched_rank(os.environ):
            # Rank 0 most likely reports the same error, and the launcher ends all ranks soon after the first.
            time.sleep(OTHERS_WAIT_S)
        say_error(error)
        code = error.exit_code
    except _COMMAND_LINE_ERROR as error:
        code = _say_usage(error)
    sys.exit(code if isinstance(code, int) else 0)
