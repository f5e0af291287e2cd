"""Which rows of which attempt count, and which are missing: the rule of `reader.read_run` and the analysis. Pure.

An attempt that resumed from step n trained n, n + 1, ... again, whatever was trained before. So of earlier attempts
only rows below n count: the *limit* of an attempt is the least start of those after it. Every log of the attempt must
reach its limit, because a checkpoint is published only when all ranks have flushed their logs; the logs of the last
attempt must reach the step in DONE.json, or may end anywhere while there is none. The first attempt must start at step
0. An attempt without any log ended before its first step and does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hpclbfl.runs.log.schema import MAX_NUMBER

NO_LIMIT = 2**62
"""A step that no run reaches."""


class LogSpan(NamedTuple):
    """The steps that one rank's log covers."""

    path: str
    start: int = 0
    """Step from which it resumed."""
    end: int = 0
    """Step after its last row; `start` if it has none."""
    problem: str = ""
    """Why it cannot be read, start and end then being unknown; empty if it can."""


class Attempt(NamedTuple):
    """The files of one attempt."""

    path: str
    logs: Sequence[LogSpan]
    """Of all ranks that left one, including those that cannot be read."""
    provenance: Mapping[str, Any]
    """provenance.json; empty if it is missing or cannot be read."""

    @property
    def start(self) -> int | None:
        """Step from which it resumed; None if neither a log nor the provenance says so."""
        starts = [log.start for log in self.logs if not log.problem]
        return min(starts, default=_number(self.provenance, "resumed_from_step"))


class Problem(NamedTuple):
    """A log, or a folder of logs, that lacks rows."""

    path: str
    reason: str
    rows_lost: bool
    """False if a later attempt trained the missing rows again."""


def find_limits(attempts: Sequence[Attempt]) -> list[int]:
    """The limit of each attempt, the oldest first: its rows of steps below the limit count."""
    found, limit = [], NO_LIMIT
    for attempt in reversed(attempts):
        found.append(limit)
        if attempt.logs and attempt.start is not None:
            limit = min(limit, attempt.start)
    return found[::-1]


def row_limit(table: str, limit: int) -> int:
    """The step below which rows of a table count, in an attempt with this limit.

    A plan applies from the next step on: the one made at the end of step limit - 1 is part of the checkpoint from which
    the next attempt resumed at `limit`.
    """
    return limit + 1 if table == "plans" and 0 < limit < NO_LIMIT else limit


def find_problems(folder: str, attempts: Sequence[Attempt], done: Mapping[str, Any] | None) -> list[Problem]:
    """Everything that is missing from a run's logs, by attempt.

    Args:
        folder: the folder of the attempts, named where no attempt has a row.
        attempts: the oldest first.
        done: DONE.json; None while the run is not finished.
    """
    last = _number(done or {}, "step")
    end = NO_LIMIT if last is None else last
    found = []
    # An attempt of unknown start may have started at 0; its unreadable logs are reported below.
    first = min((attempt.start or 0 for attempt in attempts if attempt.logs), default=0 if done is None else end)
    if first > 0:
        found.append(Problem(folder, f"no log has the rows of {_steps(0, first)}", True))
    for attempt, limit in zip(attempts, find_limits(attempts), strict=True):
        stop = min(limit, end)
        is_needed = (attempt.start or 0) < stop
        for log in attempt.logs:
            if log.problem:
                found.append(Problem(log.path, log.problem, is_needed))
            elif log.end < stop < NO_LIMIT:
                found.append(Problem(log.path, f"lacks the rows of {_steps(log.end, stop)}", True))
        num_ranks = _number(attempt.provenance, "num_ranks") or 0
        if attempt.logs and len(attempt.logs) < num_ranks:
            reason = f"{num_ranks - len(attempt.logs)} of {num_ranks} ranks left no log"
            found.append(Problem(attempt.path, reason, is_needed))
    return found


def _number(content: Mapping[str, Any], key: str) -> int | None:
    """A count in a JSON file; None if it is missing or impossible."""
    value = content.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER else None


def _steps(begin: int, end: int) -> str:
    if end == NO_LIMIT:
        return "any step"
    return f"step {begin}" if end == begin + 1 else f"steps {begin} to {end - 1}"
