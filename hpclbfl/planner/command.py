"""`hpclbfl plan` on one rank: a single process, or one rank of the MPI job around it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from hpclbfl.batching.bounds import check_batches
from hpclbfl.batching.plan_file import Plan, save_plan
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.files import prepare_output
from hpclbfl.core.precision import autocast_of
from hpclbfl.core.progress import result_console
from hpclbfl.data.datasets import load_dataset
from hpclbfl.planner.recommend import make_plan
from hpclbfl.planner.report import plan_json, print_plan
from hpclbfl.planner.runner import Probe, run_probe
from hpclbfl.planner.store import ProbeRow, save_probes
from hpclbfl.planner.study import Options
from hpclbfl.training.failure import fail

logger = Diagnostics(__name__, "plan")
plain = Diagnostics(__name__, title="")

QUICK = Options(budget_s=12.0, min_rounds=1, max_step_s=3.0, repetitions=2)
"""`--quick`."""


def run_plan(
    job: JobConfig,
    options: Options,
    out: Path,
    plot: Path | None = None,
    as_json: bool = False,
    debug: bool = False,
    probe: Probe = run_probe,
) -> Plan:
    """Make a plan, write plan.yaml and plan.h5 and print it from rank 0; does not return if this rank fails.

    Args:
        out: plan.yaml, or a folder for it; plan.h5 is written next to it under the same name.
        plot: picture to draw, .png or .svg; None: none.
    """
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise ConfigError(f"{plot}: a plot is a .png or an .svg")
    comm = communicator(job.comm)
    try:
        if comm.rank == 0:
            # Fails now rather than after a minute of probing.
            for file in (*_plan_files(out), *([plot] if plot is not None else [])):
                prepare_output(file)
        plan, rows, files = _plan(job.resolved(comm.size), comm, options, out, plot, probe)
        if comm.rank == 0:
            if as_json:
                sys.stdout.write(plan_json(plan, rows, files) + "\n")
            else:
                print_plan(plan, rows, _title(job, plan), files, result_console(comm.size))
            if plan.warnings:
                plain.warning(f"warning: {plan.doubts()}; plan again while nothing else runs here, and without --quick")
    # A rank that just ended, for any reason, would leave the others waiting.
    except BaseException as error:
        fail(comm, error, debug)
    comm.close()
    return plan


def _plan(
    job: JobConfig, comm: Communicator, options: Options, out: Path, plot: Path | None, probe: Probe
) -> tuple[Plan, list[ProbeRow], list[Path]]:
    begin = time.monotonic()

    def say(line: str) -> None:
        if comm.rank == 0:
            logger.info(f"{time.monotonic() - begin:4.0f} s: {line}")

    if job.data.downloads:
        load_dataset(job.data, is_downloader=comm.local_rank == 0, wait=comm.barrier)
    num_train = len(load_dataset(job.data.without_download()).train)
    check_batches(job.batching, job.local_batch_sizes(), num_train)
    is_gpu = torch.cuda.is_available()
    autocast_of(job.precision, torch.device("cuda" if is_gpu else "cpu"))
    plan, rows, first = make_plan(job, comm, is_gpu, probe, options, say)
    if comm.rank:
        return plan, rows, []
    files = list(_plan_files(out))
    save_plan(plan, files[0])
    attributes = {"config": job.to_yaml(), "num_train": plan.num_train, "fingerprint": plan.made["data"]}
    save_probes(files[1], rows, job.model.name, f"{job.data.title} {first.sample_text}", attributes)
    if plot is not None:
        from hpclbfl.planner.picture import draw

        draw(plan, rows, _title(job, plan), plot)
        files.append(plot)
    say("done")
    return plan, rows, files


def _plan_files(out: Path) -> tuple[Path, Path]:
    yaml_file = out if out.suffix in (".yaml", ".yml") else out / "plan.yaml"
    return yaml_file, yaml_file.with_suffix(".h5")


def _title(job: JobConfig, plan: Plan) -> str:
    return (
        f"{brief(job.model.name)} on {job.data.title}, {brief(job.optimizer.name)}, {job.precision}, "
        f"{plan.num_train} training samples"
    )
