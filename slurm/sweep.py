"""The command `hpclbfl sweep`: expand the sweep file, find the runs that remain, and submit, run or show them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import DataConfig
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.signals import Interrupted
from hpclbfl.core.text import say
from hpclbfl.data.datasets import Dataset, load_dataset
from hpclbfl.data.sampling import make_sampler
from hpclbfl.optim.schedule import with_end
from hpclbfl.runs.lock import LockHeld, acquire
from hpclbfl.runs.slurm_client import SlurmUnavailable, is_here, max_array_size
from hpclbfl.slurm.expand import Expansion, Run, expand
from hpclbfl.slurm.folder import Entry, SweepFolder
from hpclbfl.slurm.local import LocalSweep
from hpclbfl.slurm.ranks import launch_command, plan_launch
from hpclbfl.slurm.resources import ProfileConfig, load_profile
from hpclbfl.slurm.state import NOT_STARTED, RunState, run_states
from hpclbfl.slurm.submit import arrays, sbatch_text, submit
from hpclbfl.slurm.sweep_file import SweepConfig, read_sweep
from hpclbfl.training.stopping import is_finished

logger = Diagnostics(__name__)

LOCK_WAIT_S = 120.0
"""Another submission of the same sweep takes seconds; one that takes longer hangs."""
ARRAY_SIZE = 1001
"""Slurm's default for MaxArraySize."""


@dataclass(frozen=True)
class Todo:
    """The runs of a sweep, sorted by what remains to be done."""

    states: list[RunState]
    """In the order of the runs."""
    runs: list[Run]
    """Those to be started or resumed."""
    num_done: int
    """Finished ones."""

    def count(self) -> str:
        """The numbers, in one line."""
        runs = f"{len(self.states)} run{'' if len(self.states) == 1 else 's'}"
        others = len(self.states) - self.num_done - len(self.runs)
        return f"{runs}: {self.num_done} done, {others} running or queued elsewhere, {len(self.runs)} to do"


def sweep(path: Path, cluster: str | None, dry_run: bool, directory: Path | None) -> int:
    """Run the command; returns its exit code.

    Args:
        path: the sweep file.
        cluster: profile, by name or path; None: slurm-srun where there is a Slurm, else local.
        dry_run: print what would be done, and do nothing.
        directory: folder of the sweep; None: `runs/<name>`.
    """
    config = read_sweep(path)
    name = cluster or ("slurm-srun" if is_here() else "local")
    profile = load_profile(name).merged(config.resources, f"{path} with profile {name}: resources")
    expansion = expand(config, path, DataSets(download=not dry_run))
    for note in expansion.notes:
        logger.info(f"note: {note}")
    folder = SweepFolder(directory or Path("runs") / config.name)
    expansion = replace(expansion, runs=[adopted(run, folder) for run in expansion.runs])
    if dry_run:
        show(config, expansion, folder, profile)
        return 0
    if profile.kind == "local":
        return _run_here(config, path, expansion, folder, profile)
    try:
        _submit(config, path, expansion, folder, name, profile)
    except (KeyboardInterrupt, Interrupted) as error:
        logger.warning("interrupted; what is submitted is written down, the same command submits the rest")
        return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)
    logger.info(f"to look at it: hpclbfl status {folder.path}")
    return 0


def _submit(
    config: SweepConfig, path: Path, expansion: Expansion, folder: SweepFolder, name: str, profile: ProfileConfig
) -> None:
    if not is_here():
        raise EnvironmentFault("no Slurm that this machine could submit to; --cluster local runs the sweep here")
    with _lock(folder):
        todo = find_todo(expansion.runs, folder)
        logger.info(todo.count())
        _explain_owned(todo)
        if todo.runs:
            planned = arrays(config.name, todo.runs, profile, max_array_size())
            folder.write_runs(config.name, path, expansion.runs)
            submit(planned, folder, name, profile, logger.info)


class DataSets:
    """The data sets of a sweep's jobs, each read once; the images are not decoded.

    Args:
        download: whether a missing set may be downloaded.
    """

    def __init__(self, download: bool) -> None:
        self._download = download
        self._known: dict[str, Dataset] = {}

    def fingerprint(self, data: DataConfig) -> str:
        """Hash of a data set's content, 64 hexadecimal digits."""
        return self._load(data).fingerprint

    def with_end(self, job: JobConfig) -> JobConfig:
        """See `hpclbfl.optim.schedule.with_end`; the job states its clients."""
        if not job.schedule.ends_with_run:
            return job
        dataset, sizes = self._load(job.data), job.local_batch_sizes()
        sampler = make_sampler(job.partition, dataset.train, len(sizes), dataset.num_classes, job.seed)
        return with_end(job, int(sampler.counts(tuple(sizes)).sum()), len(dataset.train))

    def _load(self, data: DataConfig) -> Dataset:
        key = data.model_dump_json()
        if key not in self._known:
            self._known[key] = load_dataset(data if self._download else data.without_download())
        return self._known[key]


def adopted(run: Run, folder: SweepFolder) -> Run:
    """The run under the id that an older version gave it, if there is a folder of that name."""
    if not folder.run(run.former_id).path.exists() or folder.run(run.id).path.exists():
        return run
    return replace(run, id=run.former_id)


def find_todo(runs: Sequence[Run], folder: SweepFolder) -> Todo:
    """Sort runs by what remains to be done; finished runs and those that a live process or job works on are skipped."""
    states = run_states(folder, [Entry(run.id, run.digest, run.ranks, run.overrides) for run in runs])
    left = [(run, state) for run, state in zip(runs, states, strict=True) if not _has_all(run, state)]
    return Todo(states, [run for run, state in left if not state.is_owned], len(runs) - len(left))


def _has_all(run: Run, state: RunState) -> bool:
    """Whether a run is finished, and `stop` has not grown since."""
    return state.done is not None and is_finished(state.done, run.job.stop)


def _run_here(
    config: SweepConfig, path: Path, expansion: Expansion, folder: SweepFolder, profile: ProfileConfig
) -> int:
    with _lock(folder):
        todo = find_todo(expansion.runs, folder)
        folder.write_runs(config.name, path, expansion.runs)
    logger.info(todo.count())
    _explain_owned(todo)
    summary = LocalSweep(folder, profile).run(todo.runs)
    failed, left = f"{summary.failed} failed", f"{summary.left} left"
    again = "; the same command goes on with what is left" if summary.failed or summary.left else ""
    tell = logger.warning if summary.failed or summary.left else logger.info
    tell(f"{summary.done} done, {failed}, {left}{again}; hpclbfl status {folder.path}")
    return summary.exit_code


def _explain_owned(todo: Todo) -> None:
    for state in todo.states:
        if state.is_owned:
            logger.info(f"{state.entry.id}: left alone: {state.text}")


def show(config: SweepConfig, expansion: Expansion, folder: SweepFolder, profile: ProfileConfig) -> None:
    """Print all runs, what would be done with each and why, and what would be submitted; changes nothing."""
    todo = find_todo(expansion.runs, folder)
    _print(f"{config.name}: {folder.path}")
    for run, state in zip(expansion.runs, todo.states, strict=True):
        _print(f"  {run.id}  {run.label or '-'}  {_plan(state, run in todo.runs)}")
    _print(todo.count())
    if profile.kind == "local":
        for run in todo.runs:
            argv, _ = launch_command(plan_launch(run, folder, profile), os.environ)
            _print("", f"# {run.id}", shlex.join(argv))
        return
    try:
        limit = max_array_size()
    except SlurmUnavailable as error:
        limit = ARRAY_SIZE
        logger.info(f"note: arrays of at most {limit} runs are assumed: {error}")
    planned = arrays(config.name, todo.runs, profile, limit) if todo.runs else []
    for index, array in enumerate(planned):
        after = f"afterany:<job {array.after + 1}>" if array.after is not None else None
        _print("", f"# sbatch {index + 1} of {len(planned)}: {', '.join(run.id for run in array.runs)}")
        _print(*sbatch_text(array, folder, after).splitlines())


def _plan(state: RunState, is_todo: bool) -> str:
    if state.word == "done":
        return f"again (done at step {state.step}, stop has grown)" if is_todo else "skip: done"
    if state.is_owned:
        return f"skip: {state.text}"
    if state.step is not None or state.word == "failed":
        return f"again ({state.word}: {state.text})"
    return "start" if state.text == NOT_STARTED else f"start ({state.text})"


@contextmanager
def _lock(folder: SweepFolder) -> Iterator[None]:
    """Hold the sweep's lock while submitting; waits for another process that is submitting."""
    end = time.monotonic() + LOCK_WAIT_S
    is_waiting = False
    while True:
        try:
            lock = acquire(folder.path)
            break
        except LockHeld as held:
            if time.monotonic() > end:
                raise
            if not is_waiting:
                logger.info(f"waiting: {held}")
            is_waiting = True
            time.sleep(0.5)
    try:
        yield
    finally:
        lock.release()


def _print(*lines: str) -> None:
    for line in lines:
        say(line, sys.stdout, None)
