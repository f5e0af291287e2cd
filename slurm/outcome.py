"""How an attempt ended (done, stopped or failed), and whether to make another one."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpclbfl.core.errors import REQUEUE_CODE, DataError
from hpclbfl.core.jsonfile import read_json, write_json
from hpclbfl.core.signals import signal_name
from hpclbfl.launch.postmortem import explain
from hpclbfl.runs.folder import RunFolder, Status
from hpclbfl.slurm.state import last_line, progress

Word = Literal["done", "stopped", "failed"]
CONFIG_CODE = 2
IDLE_STOPS = 10
"""A run may be preempted this often in a row before its first new step."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    word: Word
    code: int
    """Exit code of the ranks' launcher; 128+n: signal n."""
    text: str
    """Accuracy or error, one line."""
    step: int | None
    """Finished optimizer steps of the run so far."""

    def __str__(self) -> str:
        return self.text if self.text.startswith(self.word) else f"{self.word}: {self.text}"


def conclude(run: RunFolder, before: Status | None, code: int, was_asked: bool, stderr_tail: str) -> Outcome:
    """Judge an attempt by its exit code and by what the ranks wrote, and write the status that they could not write.

    Args:
        run: the run's folder.
        before: its status before the attempt.
        code: exit code of the launcher; 128+n: signal n.
        was_asked: whether the ranks were asked to stop.
        stderr_tail: end of what ranks and launcher printed in this attempt.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    status, done = run.status(), None
    # A damaged DONE.json counts as none.
    with suppress(DataError):
        done = run.done()
    if code == 0 and done is not None:
        text = f"top-1 {100 * done.top1:.1f} %" if done.top1 is not None else "done"
        return Outcome("done", code, text, done.step)
    step, _, _ = progress(run)
    state = status.state if status is not None and status != before else None
    # A launcher may kill the ranks that end after the first one; their checkpoint is written all the same.
    if code == REQUEUE_CODE or state == "requeue" or (was_asked and state != "failed" and code != CONFIG_CODE):
        if state != "requeue":
            run.write_status("requeue", **({} if step is None else {"step": step}))
        return Outcome("stopped", code, f"stopped{'' if step is None else f' at step {step}'}", step)
    if state == "failed" and status is not None:
        return Outcome("failed", code, status.error or "no reason given", step)
    text = explain(run if state is not None else None, code, stderr_tail) or _describe_end(code, stderr_tail)
    run.write_status("failed", error=text)
    return Outcome("failed", code, text, step)


def _describe_end(code: int, stderr_tail: str) -> str:
    if code == 0:
        return "ended without finishing the run"
    if code - 128 in signal.valid_signals():
        return f"ended by {signal_name(code - 128)}"
    return f"ended with exit code {code}: {last_line(stderr_tail)}"


@dataclass(frozen=True)
class Tally:
    """How many attempts of one Slurm job in a row have ended without progress."""

    job: str
    idle: int = 0
    step: int = -1
    """The furthest step that an attempt reached."""

    @classmethod
    def read(cls, path: Path, job: str) -> Tally:
        """The tally of this job; a new one if the file is of another job: submitting again gives new attempts."""
        try:
            tally = read_json(path, cls)
        except DataError:
            tally = None
        return tally if tally is not None and tally.job == job else cls(job)

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(path, vars(self))

    def after(self, outcome: Outcome) -> Tally:
        """The tally after one more attempt."""
        step = -1 if outcome.step is None else outcome.step
        if step > self.step:
            return replace(self, idle=0 if outcome.word == "stopped" else 1, step=step)
        return replace(self, idle=self.idle + 1)

    def wants_more(self, outcome: Outcome, retries: int) -> bool:
        """Whether to start the run again."""
        if outcome.word == "stopped":
            return self.idle <= max(retries, IDLE_STOPS)
        return outcome.word == "failed" and outcome.code != CONFIG_CODE and self.idle <= retries
