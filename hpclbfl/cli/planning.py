"""`hpclbfl plan` and `sharpness`: measurements of a device, and of a trained net."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hpclbfl.cli.options import AsJson, Debug, Hosts, Job, NumRanks, Overrides, Quiet, Verbose, words_of
from hpclbfl.launch.children import module_command


def plan(
    job: Job,
    overrides: Overrides = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", metavar="SIZE", help="Memory of each rank's device, e.g. 2GB.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR|plan.yaml", help="Where to write.")] = Path(),
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PICTURE", help="Also draw it (.png or .svg).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions, smaller batches.")] = False,
    max_step: Annotated[
        float | None,
        typer.Option("--max-step", min=0.1, metavar="S", help="Longest step to try, s [10; --quick: 3]."),
    ] = None,
    num_ranks: NumRanks = None,
    hosts: Hosts = None,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the largest and the fastest batch of this device, and how ranks should share the work."""
    from hpclbfl.config.job import load_job
    from hpclbfl.core.memory import parse_size

    config = load_job(job, overrides)
    limit = parse_size(memory_limit) if memory_limit is not None else None
    if num_ranks is not None:
        config.resolved(num_ranks)
        options: dict[str, object] = {"--memory-limit": memory_limit, "--out": out, "--plot": plot, "--quick": quick}
        options |= {"--max-step": max_step, "--json": as_json, "--debug": debug}
        _run_on_ranks("plan", [str(job), *(overrides or [])], options, num_ranks, hosts)
    from hpclbfl.planner.command import QUICK, run_plan
    from hpclbfl.planner.study import Options

    effort = dataclasses.replace(QUICK if quick else Options(), memory_limit=limit)
    effort = effort if max_step is None else dataclasses.replace(effort, max_step_s=max_step)
    run_plan(config, effort, out, plot, as_json, debug)


def sharpness(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training images in the loss.")] = 1024,
    top: Annotated[int, typer.Option("--top", min=1, help="Eigenvalues to find, the largest in magnitude first.")] = 1,
    lanczos: Annotated[
        int | None, typer.Option("--lanczos", min=2, metavar="M", help="Also find the spectrum, by M Lanczos steps.")
    ] = None,
    vectors: Annotated[
        int | None,
        typer.Option("--vectors", min=1, metavar="V", help="With --lanczos: start vectors to average over [10]."),
    ] = None,
    density: Annotated[bool, typer.Option("--density", help="With --lanczos: also write the spectral density.")] = (
        False
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of images and start vectors.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per forward pass on a rank.")] = 128,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Relative residual at which an eigenvalue has converged.")
    ] = 1e-3,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Most products per eigenvalue.")] = 100,
    basis: Annotated[int, typer.Option("--basis", min=6, help="Lanczos vectors in memory per eigenvalue.")] = 20,
    num_ranks: NumRanks = None,
    hosts: Hosts = None,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the top eigenvalues of the Hessian of a trained net's loss, and write them into the run folder."""
    from hpclbfl.sharpness.options import Options

    options = Options(samples, top, lanczos, vectors, density, seed, batch, tolerance, iterations, basis)
    if num_ranks is not None:
        from hpclbfl.sharpness.source import find_source

        # Errors in the folder are reported here, once, before any rank starts.
        find_source(run)
        words = {f"--{name}": value for name, value in dataclasses.asdict(options).items()}
        _run_on_ranks("sharpness", [str(run)], {**words, "--json": as_json, "--debug": debug}, num_ranks, hosts)
    from hpclbfl.sharpness.command import run_sharpness

    run_sharpness(run, options, as_json, debug)


def _run_on_ranks(
    command: str, arguments: Sequence[str], options: Mapping[str, object], num_ranks: int, hosts: str | None
) -> NoReturn:
    """Run the command through mpirun with the same options, and exit with its code."""
    from hpclbfl.launch.mpirun import run_mpirun

    words = module_command("hpclbfl", command, *arguments, *words_of(options))
    raise typer.Exit(run_mpirun(num_ranks, words, hosts=hosts, debug=bool(options["--debug"])))
