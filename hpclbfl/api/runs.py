"""Runs in a script: train a job in this process, and read the results of a run from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import polars as pl

from hpclbfl.analysis.measure.report import load_some
from hpclbfl.analysis.measure.report import summarise as summarise
from hpclbfl.analysis.read.frames import Frames as Frames
from hpclbfl.analysis.read.load import load
from hpclbfl.api.jobs import load_job, make_job
from hpclbfl.config.job import JobConfig
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.text import shown
from hpclbfl.runs.fingerprint import read_job
from hpclbfl.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from hpclbfl.training.loop import Outcome

Resume = Literal["auto", "must", "never"]


class Result:
    """A run, by its folder. Tables and the net are read on first access, and cached.

    Attributes:
        path: the run folder.
    """

    def __init__(self, path: Path, outcome: Outcome | None = None, model: nn.Module | None = None) -> None:
        self.path = path
        self._outcome, self._model = outcome, model

    def __repr__(self) -> str:
        return f"<hpclbfl run {self.path}: {self.state}>"

    @property
    def job(self) -> JobConfig:
        """The job, resolved. Raises ConfigError if the folder's config.yaml cannot be read."""
        return read_job(RunFolder(self.path))

    @property
    def state(self) -> str:
        """done, running, failed, requeue (stopped, and to be resumed) or unknown, at this moment."""
        folder = RunFolder(self.path)
        if folder.done() is not None:
            return "done"
        status = folder.status()
        return status.state if status is not None else "unknown"

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the run; None: it is not done, and was not trained by this program."""
        if self._outcome is None and (done := RunFolder(self.path).done()) is not None:
            from hpclbfl.training.session import outcome_of

            self._outcome = outcome_of(done)
        return self._outcome

    @property
    def top1(self) -> float | None:
        """Accuracy of the newest evaluation on the test split, 0 to 1; None: there was none, or no classes."""
        scores = self.evals.filter(pl.col("split") == "test")["top1"]
        return float(scores[-1]) if len(scores) and math.isfinite(scores[-1]) else None

    @property
    def model(self) -> nn.Module:
        """The trained net, on the host in evaluation mode; of an unfinished run the net of its newest checkpoint.

        Raises:
            ConfigError: the run has neither.
            DataError: its files are damaged, or the data set, whose classes it needs, is not there.
        """
        if self._model is None:
            from hpclbfl.api.model import load_model

            self._model = load_model(self.path)
        return self._model

    @cached_property
    def frames(self) -> Frames:
        """All tables, as `load_runs` gives them of many runs."""
        return load(self.path)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """One row per step and client, in this order; units and meanings stand in `hpclbfl.runs.log.schema`."""
        return self._table(self.frames.steps.collect(), "step", "client")

    @cached_property
    def layers(self) -> pl.DataFrame:
        """One row per step and layer, where the job asks for them."""
        return self._table(self.frames.layers.collect(), "step")

    @property
    def evals(self) -> pl.DataFrame:
        """One row per evaluation and split."""
        return self._table(self.frames.evals, "step")

    @property
    def plans(self) -> pl.DataFrame:
        """One row per client and plan of batch sizes."""
        return self._table(self.frames.plans, "step")

    @property
    def events(self) -> pl.DataFrame:
        """One row per event: notes, warnings, skipped files."""
        return self._table(self.frames.events, "step")

    @property
    def problems(self) -> pl.DataFrame:
        """One row per file that is torn, missing or of another version; the tables lack its rows."""
        return self._table(self.frames.problems)

    @staticmethod
    def _table(table: pl.DataFrame, *keys: str) -> pl.DataFrame:
        table = table.drop("run")
        return table.sort(keys, maintain_order=True) if keys else table


def run(
    job: JobConfig | str | Path | Mapping[str, Any], run_dir: str | Path | None = None, resume: Resume = "auto"
) -> Result:
    """Train a job in this process; in an MPI job, all its ranks call this together.

    Nothing is printed: progress goes to the logger "hpclbfl". Signal handlers, torch's random number generators and its
    choice of deterministic kernels are restored on return. Upon a signal that asks to stop (SIGTERM, SIGUSR2, SIGHUP,
    SIGXCPU) it saves its state and returns early, with the outcome's reason "asked to stop".

    Args:
        job: or the path of a job file, or a job's sections.
        run_dir: the run folder; None: `runs/<slug>-<hash>` below the working folder.
        resume: resume from a checkpoint: if there is one (a finished run is not changed), or fail, or start anew.

    Raises:
        ConfigError: a job that cannot be run, or a folder that holds another experiment.
        HpclbflError: the run failed, as its folder also says. With several ranks a failure ends all of them.
    """
    from hpclbfl.api.own_torch import kept_torch_state
    from hpclbfl.training.script import run_in_script

    if resume not in get_args(Resume):
        raise ConfigError(f"resume: {shown(resume)} is not known: {', '.join(get_args(Resume))}")
    if isinstance(job, Mapping):
        job = make_job(job)
    elif not isinstance(job, JobConfig):
        job = load_job(job)
    with kept_torch_state():
        return Result(*run_in_script(job, None if run_dir is None else Path(run_dir), resume))


def read_run(path: str | Path) -> Result:
    """The run of an existing folder, in any state.

    Raises:
        DataError: it is no run folder.
    """
    path = Path(path)
    if not RunFolder(path).config.is_file():
        raise DataError(f"{path}: no run folder: it has no config.yaml; load_runs reads a folder that holds runs")
    return Result(path)


def load_runs(folder: str | Path) -> Frames:
    """All runs at or below a folder, as polars frames with the key `run`.

    Raises:
        DataError: the folder does not exist, or holds no run.
    """
    return load_some(folder)
