"""One run from start to end on this rank: its folder, its attempts, and what happens when a rank fails."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import HpclbflError, RunFailed
from hpclbfl.core.files import write_bytes
from hpclbfl.core.precision import dtype_of
from hpclbfl.core.progress import Progress
from hpclbfl.core.signals import StopRequest
from hpclbfl.core.text import say_error
from hpclbfl.data.loaders import data_spec
from hpclbfl.models.initial import initial_net
from hpclbfl.optim.schedule import planned_epochs
from hpclbfl.runs.checkpoint import CheckpointStore
from hpclbfl.runs.folder import Attempt, Done, RunFolder, checkpoint_steps
from hpclbfl.runs.lock import RunLock, acquire
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.runs.parts import keep_parts, part_records
from hpclbfl.runs.provenance import collect
from hpclbfl.runs.tensorfile import checksum, to_bytes
from hpclbfl.training.announce import Start, closing_line, log_details, tell, tell_start, title
from hpclbfl.training.failure import describe_failure, say_failure
from hpclbfl.training.loop import STOPPED, NotFinite, Outcome, Services, train
from hpclbfl.training.notices import chain_of, warning_at_end
from hpclbfl.training.resume import Resume, default_folder, find_done, restore_newest
from hpclbfl.training.saving import CheckpointManager
from hpclbfl.training.setup import check_alike, make_state
from hpclbfl.training.state import TrainState
from hpclbfl.training.watchdog import Watchdog, end_process, start_limit
from hpclbfl.training.watched import WatchedCommunicator

logger = Diagnostics(__name__)
plain = Diagnostics(__name__, title="")


def run_job(job: JobConfig, run_dir: Path | None = None, debug: bool = False, resume: Resume = "auto") -> Outcome:
    """Train a job in the MPI job that this process belongs to, or alone; does not return if this rank fails.

    Args:
        run_dir: the run folder; default `runs/<slug>-<hash10>` below the current one.
        debug: show the traceback of errors in the job, too.
        resume: what to do with what is in the folder, see `opening`.
    """
    comm = join(job.comm)
    session = Session(comm)
    try:
        outcome = session.run(job.resolved(comm.size), run_dir, resume)
    # A rank that ended by itself would leave the others waiting for it, whatever the reason.
    except BaseException as error:
        session.fail(error, debug)
    comm.close()
    return outcome


def outcome_of(done: Done) -> Outcome:
    """Outcome of a finished run."""
    scores = (math.nan if score is None else score for score in (done.top1, done.top5, done.loss))
    return Outcome(done.reason, done.step, done.epoch, done.num_samples, done.elapsed_s, *scores)


def join(config: CommConfig) -> Communicator:
    """The MPI job that this process belongs to, or this process alone; see `hpclbfl.comm.engines`."""
    with logger.timing("starting the engine"), start_limit(config.start_timeout_s):
        return communicator(config)


class Session:
    """One run on this rank: what has been opened so far, so that a failure can be reported and cleaned up.

    Attributes:
        path: the run folder, once it is known.
    """

    def __init__(self, comm: Communicator) -> None:
        self.path = Path()
        self._comm = WatchedCommunicator(comm)
        self._state: TrainState | None = None
        self._folder: RunFolder | None = None
        self._log: RunLog | None = None
        self._lease: RunLock | None = None
        self._is_trained = False

    def run(self, job: JobConfig, run_dir: Path | None, resume: Resume = "auto") -> Outcome:
        """Train a job whose clients are resolved; errors are the caller's, see `fail`."""
        check_alike(self._comm, [row["sha256"] for row in part_records(job)])
        with StopRequest() as request:
            restored: set[int] = set()
            while True:
                try:
                    outcome = self._run_once(job, run_dir, resume, request)
                    self._release()
                    return outcome
                except NotFinite as error:
                    step = self._state.counters.step if self._state is not None else 0
                    # The same step would fail again.
                    if job.on_nonfinite != "restore" or step in restored:
                        raise
                    if not self._has_checkpoint():
                        raise RunFailed(f"{error}, and there is no checkpoint to go back to") from error
                    restored.add(step)
                    resume = "must"
                    logger.warning(f"{error}: back to the last checkpoint")

    def _run_once(self, job: JobConfig, run_dir: Path | None, mode: Resume, request: StopRequest) -> Outcome:
        comm = self._comm
        with logger.timing("reading the data and building the net"):
            self._state = state = make_state(job, comm)
        # Only rank 0 looks: on a network file system other ranks may see an older state of the folder.
        folder = RunFolder(comm.allgather(run_dir or default_folder(state))[0])
        self.path = folder.path
        done, damage = comm.allgather(find_done(folder, state, mode) if comm.rank == 0 else (None, ""))[0]
        if done is not None:
            return self._skip(folder, done, job)
        if comm.rank == 0 and self._lease is None:
            # Another process in this folder would overwrite this one's checkpoints.
            self._lease = acquire(folder.path)
        store = CheckpointStore(folder.checkpoints, comm)
        with logger.timing("looking for a checkpoint"):
            found, problems = restore_newest(state, store, mode)
        log_details(state, folder, found)
        # Until here the folder may belong to another experiment, and an error leaves it as it is.
        self._folder = folder
        aside = folder.set_aside() if mode == "never" and comm.rank == 0 else None
        start = Start(found, [damage, *problems] if damage else problems, aside)
        saver = CheckpointManager(state, store)
        outcome = self._attempt(state, folder, start, saver, request)
        if comm.rank == 0:
            self._finish(state, folder, outcome, saver)
        self._is_trained = outcome.reason != STOPPED
        return outcome

    def _attempt(
        self, state: TrainState, folder: RunFolder, start: Start, saver: CheckpointManager, request: StopRequest
    ) -> Outcome:
        """Train from where the state is, with a log of its own."""
        comm, job = self._comm, state.job
        attempt = self._begin_attempt(state)
        attributes: dict[str, str | int | float] = {
            "config": job.to_yaml(),
            "provenance": attempt.provenance.read_text(encoding="utf-8"),
            "rank": comm.rank,
            "attempt": attempt.number,
            "resumed_from_step": state.counters.step,
        }
        with ExitStack() as stack:
            watchdog = Watchdog(attempt.path, comm.rank, comm.size, job.comm.stall_timeout_s, self._give_up)
            comm.watchdog = stack.enter_context(watchdog)
            self._log = log = stack.enter_context(RunLog(attempt.rank_log(comm.rank), attributes))
            text = stack.enter_context(attempt.log.open("a", encoding="utf-8")) if comm.rank == 0 else None
            end = planned_epochs(job, state.global_batch_size, state.num_train)
            progress = stack.enter_context(Progress(title(job), end, comm.rank == 0, text))
            tell_start(state, log, progress, start)
            outcome = train(state, Services(log, progress, saver, request, watchdog))
            progress.say(closing_line(outcome, request, folder))
            if outcome.reason != STOPPED and (warning := warning_at_end(state)):
                tell(state, log, progress, "warning", warning)
        return outcome

    def trained_net(self) -> nn.Module | None:
        """A copy on the host of the net that was evaluated last, in evaluation mode; None if nothing was trained."""
        state = self._state
        if state is None or not self._is_trained:
            return None
        job, data = state.job, data_spec(state.dataset, state.train)
        net = initial_net(job.model, data, job.seed, torch.device("cpu"), dtype_of(job.precision))
        net.load_state_dict({key: value.cpu() for key, value in state.mean.module.state_dict().items()})
        return net.eval()

    def _finish(self, state: TrainState, folder: RunFolder, outcome: Outcome, saver: CheckpointManager) -> None:
        """Write the final files, on rank 0. DONE.json comes last: it holds the model's checksum."""
        if outcome.reason == STOPPED:
            folder.write_status("requeue", **asdict(outcome))
            return
        model = to_bytes({key: value.cpu() for key, value in state.mean.module.state_dict().items()})
        write_bytes(folder.model, model)
        folder.mark_done(
            {
                **asdict(outcome),
                "hash": state.identity.digest,
                "num_train": state.num_train,
                "engine": self._comm.engine,
                "num_ranks": self._comm.size,
                # Of this attempt; not part of the training time.
                "num_checkpoints": saver.count,
                "checkpoint_s": saver.seconds,
                "files": {folder.model.name: checksum(model)},
            }
        )
        folder.write_status("done", **asdict(outcome))

    def _has_checkpoint(self) -> bool:
        folder = self._folder
        return folder is not None and bool(self._comm.allgather(checkpoint_steps(folder.checkpoints))[0])

    def _skip(self, folder: RunFolder, done: Done, job: JobConfig) -> Outcome:
        if self._comm.rank == 0:
            for note in job.notes:
                plain.info(f"note: {note}")
            plain.info(
                f"{folder.path}: already done, at step {done.step}; a larger stop continues it, '--resume never' "
                "starts over"
            )
        return outcome_of(done)

    def _begin_attempt(self, state: TrainState) -> Attempt:
        """Make the attempt's folder on rank 0; the other ranks get its number."""
        comm, folder = self._comm, self._folder
        if folder is None:
            raise RuntimeError("the run folder is not known yet")
        number = 0
        if comm.rank == 0:
            attempt = folder.next_attempt()
            folder.clear_done()
            keep_parts(folder.path, state.job)
            folder.write_config(state.job.to_yaml())
            extra = {
                "hash": state.identity.digest,
                "identity": state.identity.fingerprint,
                "mpi_library": comm.library,
                "device": str(state.device),
                "torch_threads": torch.get_num_threads(),
                "data_fingerprint": state.dataset.fingerprint,
                "own_parts": part_records(state.job),
                "gradient_chain": chain_of(state.job),
                "resumed_from_step": state.counters.step,
                "num_test": len(state.dataset.test),
                "message_bytes": state.model.message_bytes,
                "clients_per_rank": [len(clients) for clients in state.clients_by_rank],
            }
            attempt.write_provenance(collect(comm.engine, comm.size, extra))
            folder.write_status("running", step=state.counters.step)
            number = attempt.number
        return folder.attempt(int(comm.allgather(number)[0]))

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _give_up(self, step: int, line: str) -> None:
        """Called from the watchdog's thread, as the main thread is stuck waiting."""
        text = f"rank {self._comm.rank}: step {step}: {line}"
        say_error(text)
        if self._folder is not None:
            with suppress(HpclbflError):
                self._folder.write_status("failed", error=text, rank=self._comm.rank)
        end_process(RunFailed.exit_code)

    def fail(self, error: BaseException, debug: bool) -> NoReturn:
        """Say what happened on this rank, keep the log, end all ranks."""
        comm = self._comm
        code, line = say_failure(comm, error, debug, self._where)
        try:
            self._record(line)
        except HpclbflError as second:
            say_failure(comm, second, debug=False, shared=())
        comm.abort(code)
        raise SystemExit(code)

    def settle(self, error: BaseException) -> tuple[int, str]:
        """Leave the folder as a failed run's; returns the exit code and the line that the folder has.

        A folder that cannot be written is a warning: the error matters more.
        """
        code, line = describe_failure(self._comm, error, self._where)
        try:
            self._record(line)
        except HpclbflError as second:
            logger.warning(second)
        return code, line

    @property
    def _where(self) -> str:
        return f"step {self._state.counters.step}: " if self._state is not None else ""

    def _record(self, line: str) -> None:
        if self._log is not None:
            self._log.close()
        # A folder that was removed is not created again for this.
        if self._folder is not None and self._folder.path.is_dir():
            self._folder.write_status("failed", error=line, rank=self._comm.rank)
        self._release()
