"""The command line. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from hpclbfl import __version__
from hpclbfl.core.errors import REQUEUE_CODE, ConfigError, HpclbflError
from hpclbfl.core.signals import Interrupted
from hpclbfl.core.streams import go_on_unheard
from hpclbfl.core.text import make_streams_safe, say, say_traceback
from hpclbfl.launch.children import module_command


class _Commands(TyperGroup):
    """All commands; Ctrl-C ends one as any other signal does, where typer would end it without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
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
Resume = Annotated[
    Literal["auto", "must", "never"],
    typer.Option("--resume", help="Go on from a checkpoint: if there is one, or fail, or start anew."),
]
Runs = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a folder of runs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the whole resolved job and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        say(f"hpclbfl {__version__}", sys.stdout)
        raise typer.Exit


@app.command()
def train(
    job: Job,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = "auto",
    print_config: PrintConfig = False,
    debug: Debug = False,
) -> None:
    """Run one experiment, in the MPI job it finds itself in (mpirun, horovodrun, srun) or in one process."""
    from hpclbfl.config.job import load_job
    from hpclbfl.core.launched import launched_size

    config = load_job(job, overrides, run_dir if resume != "never" else None)
    if print_config:
        sys.stdout.write(config.resolved(launched_size(os.environ)).to_printed())
        return
    go_on_unheard()
    if launched_size(os.environ) > 1:
        from hpclbfl.launch.parent import end_with_parent

        # Also where mpirun was started by hand.
        end_with_parent()
    from hpclbfl.training.loop import STOPPED
    from hpclbfl.training.session import run_job

    outcome = run_job(config, run_dir, debug, resume)
    if outcome.reason == STOPPED:
        raise typer.Exit(REQUEUE_CODE)


@app.command()
def launch(
    job: Job,
    overrides: Overrides = None,
    num_ranks: Annotated[int, typer.Option("-np", "-n", min=1, help="Number of ranks.")] = 2,
    hosts: Annotated[str | None, typer.Option("--hosts", metavar="H1:N,H2:N", help="Nodes and ranks on each.")] = None,
    run_dir: RunDir = None,
    resume: Resume = "auto",
    debug: Debug = False,
) -> None:
    """Run one experiment through mpirun, with the right flags and thread counts."""
    from hpclbfl.config.job import load_job
    from hpclbfl.launch.postmortem import launch_run

    # Errors in the job come from here, once, and before any rank starts.
    config = load_job(job, overrides, run_dir if resume != "never" else None).resolved(num_ranks)
    command = module_command("hpclbfl", "train", str(job), *(overrides or []))
    command += ["--run-dir", str(run_dir)] if run_dir is not None else []
    command += ["--resume", resume]
    command += ["--debug"] if debug else []
    raise typer.Exit(launch_run(config, run_dir, num_ranks, command, hosts, resume != "never", debug))


@app.command()
def report(
    directory: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="report.html", help="Write tables and figures as a page, too.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="OUTDIR", help="Write the figures as PNG, SVG and PDF, too.")
    ] = None,
    form: Annotated[
        Literal["text", "markdown", "latex"], typer.Option("--format", help="Of the tables that are printed.")
    ] = "text",
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ARM", help="Label of the arm to compare with [the first one].")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option("--target", min=0.0, max=1.0, help="Test accuracy to reach; also print what it took."),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option("--paper", metavar="TABLE", help="Lay the runs beside a table of the paper: table1, table2."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print tables of runs, read back from their logs; write a page and figures of them."""
    if paper is not None:
        from hpclbfl.analysis.paper_report import print_paper

        others = {"--out": out, "--figures": figures, "--baseline": baseline, "--target": target}
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"{given[0]}: does not go with --paper, which prints one table (--format, --json)")
        print_paper(directory, paper, as_json, form)
        return
    from hpclbfl.analysis.report import print_report

    frames, runs, heads = print_report(directory, as_json, form, baseline, target)
    if out is not None:
        from hpclbfl.analysis.page import write_page

        write_page(out, frames, runs, heads)
        say(out)
    if figures is not None:
        from hpclbfl.analysis.render import write_figures

        for path, left_out in write_figures(frames, heads, figures):
            say(f"{path}: {left_out}" if left_out else path)


@app.command()
def watch(
    directory: Runs,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and stop.")] = False,
) -> None:
    """Show the runs of a folder while they train; without a terminal: their table every 30 s."""
    from hpclbfl.analysis.watch import watch as watch_runs

    watch_runs(directory, once)


@app.command()
def export(
    directory: Runs,
    form: Annotated[Literal["parquet", "csv"], typer.Option("--format", help="Of the files.")] = "parquet",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write [DIR/tables].")] = None,
) -> None:
    """Write the logs of runs as tidy tables: runs, steps, evals, layers, plans, events, problems."""
    from hpclbfl.analysis.export import export as write_tables
    from hpclbfl.analysis.report import load_some
    from hpclbfl.core.files import make_folder

    frames = load_some(directory)
    folder = directory / "tables"
    if out is None:
        # Nobody named it: a link there may lead anywhere.
        make_folder(folder)
    for path, rows in write_tables(frames, out or folder, form):
        say(f"{path}: {rows} rows", sys.stdout)


@app.command()
def plan(
    job: Job,
    overrides: Overrides = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", metavar="SIZE", help="Memory of each rank's device, such as 2GB.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR|plan.yaml", help="Where to write.")] = Path(),
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PICTURE", help="Draw it, too (.png or .svg).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions, smaller batches.")] = False,
    max_step: Annotated[
        float | None,
        typer.Option("--max-step", min=0.1, metavar="S", help="Try no batch whose step takes longer [15]."),
    ] = None,
    num_ranks: Annotated[int | None, typer.Option("-np", "-n", min=1, help="Number of ranks, through mpirun.")] = None,
    hosts: Annotated[str | None, typer.Option("--hosts", metavar="H1:N,H2:N", help="Nodes and ranks on each.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure how large a batch this device takes, which one trains fastest, and how ranks should share the work."""
    from hpclbfl.config.job import load_job
    from hpclbfl.core.memory import parse_size

    config = load_job(job, overrides)
    limit = parse_size(memory_limit) if memory_limit is not None else None
    if num_ranks is not None:
        from hpclbfl.launch.mpirun import run_mpirun

        config.resolved(num_ranks)
        command = module_command("hpclbfl", "plan", str(job), *(overrides or []), "--out", str(out))
        valued = {"--memory-limit": memory_limit, "--plot": plot, "--max-step": max_step}
        command += _words({**valued, "--quick": quick, "--json": as_json, "--debug": debug})
        raise typer.Exit(run_mpirun(num_ranks, command, hosts=hosts, debug=debug))
    from hpclbfl.planner.command import QUICK, run_plan
    from hpclbfl.planner.study import Options

    options = dataclasses.replace(QUICK if quick else Options(), memory_limit=limit)
    options = options if max_step is None else dataclasses.replace(options, max_step_s=max_step)
    run_plan(config, options, out, plot, as_json, debug)


@app.command()
def sharpness(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training images that the loss is over.")] = 1024,
    top: Annotated[int, typer.Option("--top", min=1, help="Eigenvalues to find, the largest in magnitude first.")] = 1,
    lanczos: Annotated[
        int | None, typer.Option("--lanczos", min=2, metavar="M", help="Find the spectrum, too, by M Lanczos steps.")
    ] = None,
    vectors: Annotated[
        int | None,
        typer.Option("--vectors", min=1, metavar="V", help="With --lanczos: start vectors to average over [10]."),
    ] = None,
    density: Annotated[bool, typer.Option("--density", help="With --lanczos: write the spectrum's density, too.")] = (
        False
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Chooses images and start vectors.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time on a rank.")] = 128,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Residual over eigenvalue that is small enough.")
    ] = 1e-3,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Products for an eigenvalue, at most.")] = 100,
    basis: Annotated[int, typer.Option("--basis", min=6, help="Lanczos vectors of an eigenvalue held in memory.")] = 20,
    num_ranks: Annotated[int | None, typer.Option("-np", "-n", min=1, help="Number of ranks, through mpirun.")] = None,
    hosts: Annotated[str | None, typer.Option("--hosts", metavar="H1:N,H2:N", help="Nodes and ranks on each.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the top eigenvalues of a trained net's Hessian and write them into its run folder: how sharp its minimum."""
    from hpclbfl.sharpness.options import Options

    options = Options(samples, top, lanczos, vectors, density, seed, batch, tolerance, iterations, basis)
    if num_ranks is not None:
        from hpclbfl.launch.mpirun import run_mpirun
        from hpclbfl.sharpness.source import find_source

        # Errors in the folder come from here, once, and before any rank starts.
        find_source(run)
        command = module_command("hpclbfl", "sharpness", str(run))
        valued = {"--samples": samples, "--top": top, "--lanczos": lanczos, "--seed": seed, "--batch": batch}
        ends = {"--vectors": vectors, "--tolerance": tolerance, "--iterations": iterations, "--basis": basis}
        flags = {"--density": density, "--json": as_json, "--debug": debug}
        command += _words({**valued, **ends, **flags})
        raise typer.Exit(run_mpirun(num_ranks, command, hosts=hosts, debug=debug))
    from hpclbfl.sharpness.command import run_sharpness

    run_sharpness(run, options, as_json, debug)


@app.command()
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print runs and batch scripts, do nothing.")] = False,
    directory: Annotated[Path | None, typer.Option("--dir", metavar="D", help="The folder [runs/<name>].")] = None,
    debug: Debug = False,
) -> None:
    """Run a sweep as SLURM job arrays, or on this machine; again: only what is left of it."""
    from hpclbfl.slurm.sweep import sweep as run_sweep

    raise typer.Exit(run_sweep(file, cluster, dry_run, directory))


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep.")], as_json: AsJson = False
) -> None:
    """Print what has become of the runs of a sweep: done, running, failed, waiting."""
    from hpclbfl.slurm.status import print_status

    print_status(directory, as_json)


@app.command()
def cancel(directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep.")]) -> None:
    """Cancel what is running or queued of a sweep; what is saved stays."""
    from hpclbfl.slurm.cancel import cancel as cancel_sweep

    cancel_sweep(directory)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Print what this machine has (MPI, Horovod, Slurm, GPUs, HDF5) and what to do about what is missing."""
    from hpclbfl.cli.doctor import run

    raise typer.Exit(run(as_json))


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="comm, step, scaler, input or log.")],
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Turns of every variant.")] = None,
    num_ranks: Annotated[int | None, typer.Option("-np", "-n", min=1, help="Number of ranks [2].")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NET", help="step, scaler: the net.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="step, scaler, input: samples per batch.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="step, scaler: timed per launch.")] = None,
    mb: Annotated[list[float] | None, typer.Option("--mb", help="comm: a buffer's size, MB; may be repeated.")] = None,
    variants: Annotated[str | None, typer.Option("--variants", metavar="A,B", help="These alone, by name.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="[runs/bench/NAME-TIME.json]")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure this package side by side with its peers, each a ratio from one run; writes all of it to a file."""
    from hpclbfl.bench import command

    options = {
        "rounds": rounds,
        "num_ranks": num_ranks,
        "model": model,
        "batch": batch,
        "steps": steps,
        "mb": tuple(mb) if mb else None,
        "variants": tuple(variants.split(",")) if variants is not None else None,
    }
    command.run(name, options, out, as_json, debug)


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
    from hpclbfl.config.job import load_job

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
    from hpclbfl.config.sections import DataConfig
    from hpclbfl.config.validation import validated
    from hpclbfl.core.text import say
    from hpclbfl.data.pack import pack

    values = {"name": name, "path": None if path is None else str(path), "download": download}
    note = pack(validated(DataConfig, values, "data pack"), out)
    if note:
        say(note)
    say(out, sys.stdout)


def _words(options: Mapping[str, object]) -> list[str]:
    """Options as the command line of the ranks has them; those that are None or False are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [name] if value is True else [name, str(value)]
    return words


# Of typer's own copy of click, or of click itself: which of them depends on typer's version.
_CLICK_ERRORS = (kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_COMMAND_LINE_ERROR: type[Exception] = next(_CLICK_ERRORS)


def _say_usage(error: Any) -> int:
    """Say what is wrong with the command line, whose words may be of a stranger's making; returns the exit code."""
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
    """Entry point: errors of ours are one line on stderr and an exit code."""
    from hpclbfl.core.launched import launched_rank

    make_streams_safe()
    try:
        code = app(prog_name="hpclbfl", standalone_mode=False)
    except HpclbflError as error:
        if "--debug" in sys.argv:
            say_traceback(error)
        if launched_rank(os.environ):
            # Rank 0 most likely has the same to say; the launcher ends all ranks soon after the first has gone.
            time.sleep(OTHERS_WAIT_S)
        say(f"hpclbfl: error: {error}")
        code = error.exit_code
    except _COMMAND_LINE_ERROR as error:
        code = _say_usage(error)
    sys.exit(code if isinstance(code, int) else 0)
