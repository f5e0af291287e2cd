"""`hpclbfl doctor` and `bench`: what this machine has, and its speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpclbfl.cli.options import AsJson, Debug, Quiet, Verbose


def doctor(as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check this machine (MPI, Horovod, Slurm, GPUs, HDF5) and print a remedy for each problem."""
    from hpclbfl.cli.doctor import run

    raise typer.Exit(run(as_json))


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="comm, step, federated, scaler, input, log, hetero, gradients or compression."
        ),
    ],
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds; each runs every variant.")] = None,
    num_ranks: Annotated[int | None, typer.Option("-np", "-n", min=1, help="Number of ranks [2].")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NET", help="The net of steps.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="All but comm, log: samples per batch.")] = None,
    clients: Annotated[int | None, typer.Option("--clients", min=1, help="federated: their number.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="federated: of each client.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=2, help="step, scaler, gradients: timed; compression: trained.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="compression: a packed set [digits].")
    ] = None,
    mb: Annotated[list[float] | None, typer.Option("--mb", help="comm: a buffer's size, MB; may be repeated.")] = None,
    variants: Annotated[str | None, typer.Option("--variants", metavar="A,B", help="Only these variants.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="[runs/bench/NAME-TIME.json]")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare this package with its peers, all measured in one run; writes all measurements to a file."""
    from hpclbfl.bench import command

    options = {
        "rounds": rounds,
        "num_ranks": num_ranks,
        "model": model,
        "batch": batch,
        "clients": clients,
        "samples": samples,
        "steps": steps,
        "data": data,
        "mb": tuple(mb) if mb else None,
        "variants": tuple(variants.split(",")) if variants is not None else None,
    }
    command.run(name, options, out, as_json, debug)
