"""One run from start to end on this rank: its folder, its attempts, and what happens when a rank fails."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from hpclbfl import build
from hpclbfl.assemble import make_experiment
from hpclbfl.checkpoint import CheckpointStore
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.watched import WatchedCommunicator
from hpclbfl.config import JobConfig
from hpclbfl.errors import EnvironmentFault, HpclbflError, RunFailed
from hpclbfl.experiment import Experiment
from hpclbfl.failure import say_failure
from hpclbfl.lease import Lease, acquire
from hpclbfl.optim.schedule import planned_epochs
from hpclbfl.progress import Progress
from hpclbfl.provenance import collect
from hpclbfl.replicas import clients_of_rank
from hpclbfl.runfolder import Attempt, RunFolder
from hpclbfl.runlog.writer import RunLog
from hpclbfl.saving import Saver, resume
from hpclbfl.signals import StopRequest
from hpclbfl.train import STOPPED, NotFinite, Outcome, Services, train
from hpclbfl.watchdog import Watchdog, end_process, start_limit

Resume = Literal["auto", "must", "never"]


def run_job(job: JobConfig, run_dir: Path | None = None, debug: bool = False, resume: Resume = "auto") -> Outcome:
    """Train a job in the MPI job that this process belongs to, or alone; does not return if this rank fails.

    Args:
        run_dir: the run folder; default `runs/<slug>-<hash10>` below the current one.
        debug: show the traceback of errors in the job, too.
        resume: auto: go on from the newest checkpoint, if there is one, and leave a run that is done; must: go on, or
            fail; never: start anew.
    """
    with start_limit(job.comm.start_timeout_s):
        comm = build.communicator(job.comm)
    session = Session(comm)
    try:
        outcome = session.run(job.resolved(comm.size), run_dir, resume)
    # A rank that ended by itself would leave the others waiting for it, whatever the reason.
    except BaseException as error:
        session.fail(error, debug)
    comm.close()
    return outcome


class Session:
    """What has been opened so far, for a failure's sake."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = WatchedCommunicator(comm)
        self._exp: Experiment | None = None
        self._folder: RunFolder | None = None
        self._log: RunLog | None = None
        self._lease: Lease | None = None

    def run(self, job: JobConfig, run_dir: Path | None, resume: Resume = "auto") -> Outcome:
        """Train a job whose clients are resolved; errors are the caller's, see `fail`."""
        with StopRequest() as request:
            restored: set[int] = set()
            while True:
                try:
                    outcome = self._run_once(job, run_dir, resume, request)
                    self._release()
                    return outcome
                except NotFinite as error:
                    step = self._exp.counters.step if self._exp is not None else 0
                    # The same step again would end the same way.
                    if job.on_nonfinite != "restore" or step in restored:
                        raise
                    restored.add(step)
                    resume = "must"
                    print(f"hpclbfl: {error}: back to the last checkpoint", file=sys.stderr, flush=True)

    def _run_once(self, job: JobConfig, run_dir: Path | None, mode: Resume, request: StopRequest) -> Outcome:
        comm = self._comm
        self._exp = exp = make_experiment(job, comm)
        digest = job.digest(exp.dataset.fingerprint)
        folder = RunFolder(run_dir or Path("runs") / f"{job.slug()}-{digest}")
        done: dict[str, Any] | None = comm.allgather(folder.done() if comm.rank == 0 else None)[0]
        if mode == "auto" and done is not None and done.get("hash") == digest:
            return self._skip(folder, done)
        if comm.rank == 0 and self._lease is None:
            # Another process in this folder would write over this one's checkpoints.
            self._lease = acquire(folder.path)
        store = CheckpointStore(folder.checkpoints, comm)
        found, problems = resume(exp, store, mode)
        # Until here the folder may be another one's, and an error leaves it as it is.
        self._folder = folder
        if mode == "never" and comm.rank == 0:
            # Later steps' checkpoints of the run before would be taken for this one's.
            store.clear()
        attempt = self._begin_attempt(exp, digest)
        with ExitStack() as stack:
            attributes: dict[str, str | int | float] = {
                "config": job.to_yaml(),
                "provenance": attempt.provenance.read_text(encoding="utf-8"),
                "rank": comm.rank,
                "attempt": attempt.number,
                "resumed_from_step": exp.counters.step,
            }
            watchdog = Watchdog(attempt.path, comm.rank, comm.size, job.comm.stall_timeout_s, self._give_up)
            comm.watchdog = stack.enter_context(watchdog)
            self._log = log = stack.enter_context(RunLog(attempt.rank_log(comm.rank), attributes))
            text = stack.enter_context(attempt.log.open("a", encoding="utf-8")) if comm.rank == 0 else None
            end = planned_epochs(job, exp.global_batch_size, exp.num_train)
            progress = stack.enter_context(Progress(_title(job), end, comm.rank == 0, text))
            progress.say(
                f"{_count(len(exp.sizes), 'client')} on {_count(comm.size, 'rank')} ({comm.engine}, "
                f"{exp.device.type}), global batch {exp.global_batch_size}, {exp.num_train} training images"
            )
            if exp.dataset.note:
                progress.say(exp.dataset.note)
            for problem in problems:
                _warn(exp, log, progress, "checkpoint", f"passed over: {problem}")
            if found is not None:
                progress.say(f"resumes after step {found.step}, epoch {exp.epoch:.2f}")
            if job.gradients.scaler is not None and job.optimizer.name != "sgd":
                advice = (
                    f"gradients.scaler: {job.optimizer.name} divides by the gradient's size, the factor hardly acts"
                )
                _warn(exp, log, progress, "warning", advice)
            saver = Saver(exp, store)
            outcome = train(exp, Services(log, progress, saver, request, watchdog))
            progress.say(
                f"top-1 {100 * outcome.top1:.1f} % after {_count(outcome.step, 'step')}, {outcome.epoch:.2f} epochs, "
                f"{outcome.elapsed_s:.1f} s of training ({outcome.reason}); {folder.path}"
                if outcome.reason != STOPPED
                else f"{request.name or 'another rank'} asked to stop: saved after step {outcome.step}, epoch "
                f"{outcome.epoch:.2f}; the same command resumes it; {folder.path}"
            )
        if comm.rank == 0:
            self._finish(folder, outcome, digest, saver)
        return outcome

    def _finish(self, folder: RunFolder, outcome: Outcome, digest: str, saver: Saver) -> None:
        if outcome.reason == STOPPED:
            folder.write_status("requeue", **asdict(outcome))
            return
        if self._exp is not None:
            _save_model(self._exp, folder.path / "model.pt")
        summary = {**asdict(outcome), "hash": digest, "engine": self._comm.engine, "num_ranks": self._comm.size}
        # Of this attempt; training time is without them.
        summary |= {"num_checkpoints": saver.count, "checkpoint_s": saver.seconds}
        folder.mark_done(summary)
        folder.write_status("done", **asdict(outcome))

    def _skip(self, folder: RunFolder, done: dict[str, Any]) -> Outcome:
        outcome = Outcome(**{field.name: done[field.name] for field in fields(Outcome)})
        if self._comm.rank == 0:
            print(f"{folder.path}: done already; --resume never trains it again", file=sys.stderr, flush=True)
        return outcome

    def _begin_attempt(self, exp: Experiment, digest: str) -> Attempt:
        """Rank 0 makes the folder and tells the others the attempt's number."""
        comm, folder = self._comm, self._folder
        if folder is None:
            raise RuntimeError("the run folder is not known yet")
        number = 0
        if comm.rank == 0:
            attempt = folder.next_attempt()
            folder.clear_done()
            folder.write_config(exp.job.to_yaml())
            extra = {
                "hash": digest,
                "mpi_library": comm.library,
                "device": str(exp.device),
                "torch_threads": torch.get_num_threads(),
                "data_fingerprint": exp.dataset.fingerprint,
                "resumed_from_step": exp.counters.step,
                "clients_per_rank": [len(clients_of_rank(len(exp.sizes), r, comm.size)) for r in range(comm.size)],
            }
            attempt.write_provenance(collect(comm.engine, comm.size, extra))
            folder.write_status("running", step=exp.counters.step)
            number = attempt.number
        return folder.attempt(int(comm.allgather(number)[0]))

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _give_up(self, step: int, line: str) -> None:
        """From the watchdog's thread: the main one waits for a rank that does not come."""
        text = f"rank {self._comm.rank}: step {step}: {line}"
        print(f"hpclbfl: error: {text}", file=sys.stderr, flush=True)
        if self._folder is not None:
            with suppress(HpclbflError):
                self._folder.write_status("failed", error=text, rank=self._comm.rank)
        end_process(RunFailed.exit_code)

    def fail(self, error: BaseException, debug: bool) -> NoReturn:
        """Say what happened on this rank, keep the log, end all ranks."""
        comm = self._comm
        where = f"step {self._exp.counters.step}: " if self._exp is not None else ""
        code, line = say_failure(comm, error, debug, where)
        try:
            if self._log is not None:
                self._log.close()
            if self._folder is not None:
                self._folder.write_status("failed", error=line, rank=comm.rank)
            self._release()
        except HpclbflError as second:
            say_failure(comm, second, debug=False, shared=())
        comm.abort(code)
        raise SystemExit(code)


def _warn(exp: Experiment, log: RunLog, progress: Progress, kind: str, text: str) -> None:
    progress.say(f"warning: {text}")
    if exp.comm.rank == 0:
        log.append("events", step=exp.counters.step, kind=kind, text=text)


def _title(job: JobConfig) -> str:
    sync = {"bsp": "BSP", "fedavg": "FA", "post_local": "post-local SGD", "selsync": "SelSync"}[job.sync.kind]
    partition = job.partition.kind.replace("_", " ")
    if job.partition.labels is not None:
        partition = f"{_count(job.partition.labels, 'label')} per client"
    return f"{job.name} {sync}, {partition}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def _save_model(exp: Experiment, path: Path) -> None:
    """The averaged net's state dict, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        torch.save({k: v.cpu() for k, v in exp.mean.module.state_dict().items()}, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(f"{path}: the trained model cannot be written: {error}") from error
