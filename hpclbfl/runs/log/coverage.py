"""Which rows of which attempt count, and which are missing: one rule for `reader.read_run` and the analysis. Pure.

An attempt that resumed from step n trained n, n + 1, ... whatever was trained before, so rows of earlier attempts count
below n alone: an attempt's *limit* is the least start of those after it. Every log of the attempt must reach up to its
limit, as a checkpoint is published only when all ranks have flushed their logs; those of the last attempt must reach
the step in DONE.json, and may end anywhere while there is none. The first attempt must have begun at step 0. An attempt
without any log ended before its first step and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hpclbfl.runs.log.schema import MAX_NUMBER

NO_LIMIT = 2**62
"""A step that no run reaches."""


class LogSpan(NamedTuple):
    """Which steps one rank's log covers."""

    path: str
    start: int = 0
    """Step from which it resumed."""
    end: int = 0
    """Step after its last row; `start` when it has none."""
    problem: str = ""
    """Why it cannot be read; empty when it can. Start and end are not known then."""


class Attempt(NamedTuple):
    """What the files of one attempt say."""

    path: str
    logs: Sequence[LogSpan]
    """Of all ranks that left one, those that cannot be read included."""
    provenance: Mapping[str, Any]
    """provenance.json; empty when there is none that can be read."""

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
    """False where rows are missing that a later attempt trained again."""


def find_limits(attempts: Sequence[Attempt]) -> list[int]:
    """Limit of each attempt, the oldest first: its rows of steps below it count."""
    found, limit = [], NO_LIMIT
    for attempt in reversed(attempts):
        found.append(limit)
        if attempt.logs and attempt.start is not None:
            limit = min(limit, attempt.start)
    return found[::-1]


def row_limit(table: str, limit: int) -> int:
    """Below which step rows of a table count, of an attempt whose rows of steps count below `limit`.

    A plan, and the local steps that go with it, hold from the coming step on: made at the end of step limit - 1, they
    are in the checkpoint from which the next attempt resumed at `limit`.
    """
    return limit + 1 if table == "plans" and 0 < limit < NO_LIMIT else limit


def find_problems(folder: str, attempts: Sequence[Attempt], done: Mapping[str, Any] | None) -> list[Problem]:
    """All that is missing from a run's logs, by attempt.

    Args:
        folder: name of the folder of the attempts, for what no attempt has.
        attempts: the oldest first.
        done: DONE.json; None while the run is not done.
    """
    last = _number(done or {}, "step")
    end = NO_LIMIT if last is None else last
    found = []
    # An attempt of unknown start may have begun at 0; what is wrong with its logs is said below.
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
    """A count in a JSON file; None where there is none, or one that cannot be."""
    value = content.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER else None


def _steps(begin: int, end: int) -> str:
    if end == NO_LIMIT:
        return "any step"
    return f"step {begin}" if end == begin + 1 else f"steps {begin} to {end - 1}"
