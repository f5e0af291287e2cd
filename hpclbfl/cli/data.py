"""`hpclbfl data info` and `data pack`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpclbfl.cli.options import AsJson, Overrides, Quiet, Verbose
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import say

logger = Diagnostics(__name__, title="")


def info(
    file: Annotated[Path, typer.Argument(metavar="JOB.yaml|FILE.h5", help="A job, or a packed file.")],
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PICTURE", help="Also draw it (.png or .svg).")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print the label distribution of a job's clients, or the content of a packed file."""
    from hpclbfl.data import info as labels

    if file.suffix in (".h5", ".hdf5"):
        if overrides or plot:
            raise ConfigError(f"{file}: a packed file takes no overrides and no --plot; give a job")
        labels.print_packed_info(file, as_json)
        return
    from hpclbfl.config.job import load_job

    job = load_job(file, overrides)
    labels.print_info(job, as_json)
    if plot is not None:
        labels.plot(job, plot)


def pack(
    name: Annotated[str, typer.Argument(help="A data set by name, or imagefolder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.h5", help="The packed file to write.")],
    path: Annotated[Path | None, typer.Option("--path", help="Path of the data set.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download a missing data set.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a data set or a folder of images into one packed file."""
    from hpclbfl.config.component_configs import component_config
    from hpclbfl.config.components import DATASETS
    from hpclbfl.data.pack import pack as pack_set

    values = {"name": name, **({} if path is None else {"path": str(path)}), **({"download": True} if download else {})}
    note = pack_set(component_config(DATASETS, values, "data pack", "data"), out)
    if note:
        logger.info(note)
    say(out, sys.stdout)
