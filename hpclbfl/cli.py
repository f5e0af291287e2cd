"""The command line. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer

from hpclbfl import __version__
from hpclbfl.errors import ConfigError, HpclbflError

app = typer.Typer(
    name="hpclbfl",
    help="Large-batch federated and data-parallel training experiments on HPC clusters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look into data sets and pack them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

OTHERS_WAIT_S = 5.0
"""How long ranks other than 0 hold back an error that comes before MPI has started."""

Job = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The experiment.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key.path=value]...", help="Replace values of the job.")
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="D", help="The run folder [runs/<name>-<hash> by default].")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the whole resolved job and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"hpclbfl {__version__}")
        raise typer.Exit


@app.command()
def train(
    job: Job,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    print_config: PrintConfig = False,
    debug: Debug = False,
) -> None:
    """Run one experiment, in the MPI job it finds itself in (mpirun, horovodrun, srun) or in one process."""
    from hpclbfl.comm.base import launched_size
    from hpclbfl.config import load_job

    config = load_job(job, overrides)
    if print_config:
        print(config.resolved(launched_size(os.environ)).to_yaml(), end="")
        return
    from hpclbfl.run import run_job

    run_job(config, run_dir, debug)


@app.command()
def launch(
    job: Job,
    overrides: Overrides = None,
    num_ranks: Annotated[int, typer.Option("-np", "-n", min=1, help="Number of ranks.")] = 2,
    hosts: Annotated[str | None, typer.Option("--hosts", metavar="H1:N,H2:N", help="Nodes and ranks on each.")] = None,
    run_dir: RunDir = None,
    debug: Debug = False,
) -> None:
    """Run one experiment through mpirun, with the right flags and thread counts."""
    from hpclbfl.config import load_job
    from hpclbfl.launch import run_mpirun

    # Errors in the job come from here, once, and before any rank starts.
    load_job(job, overrides).resolved(num_ranks)
    command = [sys.executable, "-m", "hpclbfl", "train", str(job), *(overrides or [])]
    command += ["--run-dir", str(run_dir)] if run_dir is not None else []
    command += ["--debug"] if debug else []
    raise typer.Exit(run_mpirun(num_ranks, command, hosts=hosts))


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a folder of runs.")],
    as_json: AsJson = False,
) -> None:
    """Print a table of runs, read back from their logs."""
    from hpclbfl.analysis.tables import print_summary

    print_summary(directory, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Print what this machine has (MPI, Horovod, Slurm, GPUs, HDF5) and what to do about what is missing."""
    from hpclbfl.doctor import run

    raise typer.Exit(run(as_json))


@data_app.command("info")
def data_info(
    file: Annotated[Path, typer.Argument(metavar="JOB.yaml|FILE.h5", help="A job, or a packed file.")],
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PICTURE", help="Draw it, too (.png or .svg).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the clients' label counts of a job, or what a packed file holds."""
    from hpclbfl.data import info

    if file.suffix in (".h5", ".hdf5"):
        if overrides or plot:
            raise ConfigError(f"{file}: a packed file takes no overrides and no --plot; give a job")
        info.print_packed_info(file, as_json)
        return
    from hpclbfl.config import load_job

    job = load_job(file, overrides)
    info.print_info(job, as_json)
    if plot is not None:
        info.plot(job, plot)


@data_app.command("pack")
def data_pack(
    name: Annotated[str, typer.Argument(help="A data set by name, or imagefolder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.h5", help="The packed file to write.")],
    path: Annotated[Path | None, typer.Option("--path", help="Where the set lies.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a set that is not there.")] = False,
) -> None:
    """Write a data set or a folder of images as one packed file."""
    from hpclbfl.data.pack import pack
    from hpclbfl.sections import DataConfig

    pack(DataConfig(name=name, path=str(path) if path is not None else None, download=download), out)
    print(out)


def main() -> None:
    """Entry point: errors of ours are one line on stderr and an exit code."""
    from hpclbfl.comm.base import launched_rank

    try:
        app(prog_name="hpclbfl")
    except HpclbflError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if launched_rank(os.environ):
            # Rank 0 most likely has the same to say; the launcher ends all ranks soon after the first has gone.
            time.sleep(OTHERS_WAIT_S)
        print(f"hpclbfl: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
