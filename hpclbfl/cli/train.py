"""`hpclbfl train` and `launch`: one run. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hpclbfl.cli.options import Debug, Hosts, Job, Overrides, PrintConfig, Quiet, Resume, RunDir, Verbose
from hpclbfl.core.errors import REQUEUE_CODE
from hpclbfl.core.streams import tolerate_closed_output
from hpclbfl.launch.children import module_command


def train(
    job: Job,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = "auto",
    print_config: PrintConfig = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run one experiment, in the surrounding MPI job (mpirun, horovodrun, srun) or in one process."""
    from hpclbfl.config.job import load_job
    from hpclbfl.core.launched import launched_size

    config = load_job(job, overrides, run_dir if resume != "never" else None)
    if print_config:
        sys.stdout.write(config.resolved(launched_size(os.environ)).to_printed())
        return
    tolerate_closed_output()
    if launched_size(os.environ) > 1:
        from hpclbfl.launch.parent import end_with_parent

        # Needed where mpirun was started by hand.
        end_with_parent()
    from hpclbfl.training.loop import STOPPED
    from hpclbfl.training.session import run_job

    outcome = run_job(config, run_dir, debug, resume)
    if outcome.reason == STOPPED:
        raise typer.Exit(REQUEUE_CODE)


def launch(
    job: Job,
    overrides: Overrides = None,
    num_ranks: Annotated[int, typer.Option("-np", "-n", min=1, help="Number of ranks.")] = 2,
    hosts: Hosts = None,
    run_dir: RunDir = None,
    resume: Resume = "auto",
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run one experiment through mpirun, with the right flags and thread counts."""
    from hpclbfl.config.job import load_job
    from hpclbfl.launch.postmortem import launch_run

    # Errors in the job are reported here, once, before any rank starts.
    config = load_job(job, overrides, run_dir if resume != "never" else None).resolved(num_ranks)
    command = module_command("hpclbfl", "train", str(job), *(overrides or []))
    command += ["--run-dir", str(run_dir)] if run_dir is not None else []
    command += ["--resume", resume]
    command += ["--debug"] if debug else []
    raise typer.Exit(launch_run(config, run_dir, num_ranks, command, hosts, resume != "never", debug))
