"""`hpclbfl sweep`, `status` and `cancel`: many runs, as Slurm jobs or on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpclbfl.cli.options import AsJson, Debug, Quiet, SweepDir, Verbose


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The experiments: a job and its axes.")],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="PROFILE",
            help="slurm-srun, slurm-mpirun, local, or a YAML file [slurm-srun where there is a Slurm, else local].",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print runs and batch scripts; start nothing.")] = False,
    directory: Annotated[Path | None, typer.Option("--dir", metavar="D", help="The folder [runs/<name>].")] = None,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a sweep as SLURM job arrays, or on this machine; repeated, only the unfinished runs."""
    from hpclbfl.slurm.sweep import sweep as run_sweep

    raise typer.Exit(run_sweep(file, cluster, dry_run, directory))


def status(directory: SweepDir, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Print the state of a sweep's runs: done, running, failed, waiting."""
    from hpclbfl.slurm.status import print_status

    print_status(directory, as_json)


def cancel(directory: SweepDir, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Cancel the running and queued runs of a sweep; their saved state stays."""
    from hpclbfl.slurm.cancel import cancel as cancel_sweep

    cancel_sweep(directory)
