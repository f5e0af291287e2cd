"""Messages of mpirun and srun about ranks that ended or could not be started, separated from other text."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import NamedTuple

from hpclbfl.core.errors import REQUEUE_CODE
from hpclbfl.core.signals import signal_name
from hpclbfl.core.text import printable

OWN_ERROR = "hpclbfl: error:"
"""Beginning of the line in which a rank itself reports an error."""
SHOWN = 200
"""Characters of a launcher's message that a line of ours quotes."""

# Numbers of few digits, as the text may come from anywhere.
_RANK, _CODE = r"([0-9]{1,9})", r"([0-9]{1,3})"
_MPIRUN_SIGNAL = re.compile(rf"process rank {_RANK} with PID \d+ on\s+node (\S+) exited on signal {_CODE}\b")
_MPIRUN_IMPROPER = re.compile(rf"process rank {_RANK} with PID \d+ on\s+node (\S+) exiting improperly")
_MPIRUN_CODE = re.compile(rf"Process name: \[\[\d+,\d+\],{_RANK}\]\s+Exit code:\s+{_CODE}\b")
_SRUN = re.compile(rf"srun: error: (\S+): tasks? {_RANK}[\d,-]*: (.+)")
_SRUN_CODE = re.compile(rf"Exited with exit code {_CODE}\b")
_START_TIMEOUT = re.compile(r"^Timeout \((\d+:\d+:\d+)\S*\)!$", re.MULTILINE)
_ABORT = "MPI_ABORT was invoked"
_SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}
# The launcher or the user ends the remaining ranks by these.
_REQUESTED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

_RULE = re.compile(r"-{40,}\s*")
"""A line before and after each of Open MPI's notices."""
_RULE_LINE = re.compile(r"^-{40,}[^\S\n]*$", re.MULTILINE)
_NOISE = re.compile(
    r"\[[^\]\s]+:\d+\] .*(_ERROR_LOG: |PMIX ERROR: |OPAL ERROR: |ha(s|ve) sent help message|orte_base_help_aggregate)"
)
"""Lines of Open MPI about internal problems while it ends the ranks."""
_ECHO = re.compile(r"mpirun: Forwarding signal \d+ to job")
_MPIRUN_USAGE = re.compile(r"^(?:mpirun|mpiexec|orterun|prterun): Error: (.+)$", re.MULTILINE)
_MPI_ERROR = re.compile(r"\*\*\* An error occurred in (MPI_\w{1,60})")
_IN_INIT = re.compile(
    r"MPI_INIT failed for some reason(?:(?:.*\n){1,9}? {2}(\w+\(\) failed)$)?|An error occurred in MPI_Init",
    re.MULTILINE,
)
# The last one where Open MPI loses the notice that names the rank.
_STARTED = re.compile(rf"{OWN_ERROR}|{_ABORT}|Primary job\s+terminated normally")
_NO_DAEMON = "unable to reliably start one or more daemons"
_FIELD = re.compile(r"^\s*(Executable|Node|Host|Framework|Component|Directory|Error):\s*(\S.*?)\s*$", re.MULTILINE)


class Death(NamedTuple):
    """The end of the rank that ended first."""

    rank: int
    node: str
    signal: int | None = None
    """None: it ended by itself."""
    code: int = 0
    """Exit code of one that ended by itself."""
    is_improper: bool = False
    """It ended without finalising MPI."""
    is_out_of_memory: bool = False
    """Slurm reports that the node's or the job's memory was used up."""

    def __str__(self) -> str:
        at = f"rank {self.rank}{f' on {_short(self.node)}' if self.node else ''}"
        if self.signal is None:
            return f"{at} ended too early, with exit code {self.code}"
        if self.is_out_of_memory:
            return f"{at} was killed: out of memory"
        guess = " (out of memory?)" if self.signal == signal.SIGKILL else ""
        return f"{at} was {'killed' if guess else 'ended'} by {signal_name(self.signal)}{guess}"


def find_death(stderr_tail: str) -> Death | None:
    """Return which rank ended first, as mpirun or srun reports it; None: no report, or all ranks were asked to end.

    Args:
        stderr_tail: the end of what ranks and launcher wrote to stderr.
    """
    if found := _MPIRUN_SIGNAL.search(stderr_tail):
        number = int(found[3])
        return None if number in _REQUESTED else Death(int(found[1]), found[2], number)
    if found := _MPIRUN_IMPROPER.search(stderr_tail):
        return Death(int(found[1]), found[2], is_improper=True)
    if found := _MPIRUN_CODE.search(stderr_tail):
        return Death(int(found[1]), "", code=int(found[2]))
    for found in _SRUN.finditer(stderr_tail):
        rank, node, words = int(found[2]), found[1], found[3].strip()
        if words.lower() == "out of memory":
            return Death(rank, node, signal.SIGKILL, is_out_of_memory=True)
        if code := _SRUN_CODE.match(words):
            return Death(rank, node, code=int(code[1]))
        ended_by = _SIGNALS.get(words.removesuffix(" (core dumped)"))
        if ended_by is not None and ended_by not in _REQUESTED:
            return Death(rank, node, ended_by)
    return None


def find_start_failure(stderr_tail: str) -> str | None:
    """Return why mpirun started no rank, in its own words, short; None: it gives no reason, or ranks have started."""
    if any(pattern.search(stderr_tail) for pattern in (_STARTED, _MPIRUN_SIGNAL)) or find_death(stderr_tail):
        return None
    if found := _MPIRUN_USAGE.search(stderr_tail):
        return f"mpirun: {_short(found[1])}"
    parts = _RULE_LINE.split(stderr_tail)
    notices = [notice for notice in parts[1::2] if notice.strip()]
    for notice in notices:
        fields = {name: _short(value) for name, value in _FIELD.findall(notice)}
        node = fields.get("Node" if "Executable" in fields else "Host")
        at = f" on {node}" if node else ""
        if _NO_DAEMON in notice:
            # The message of ssh precedes it.
            lines = [
                line for part in parts[::2] for line in part.splitlines() if line.strip() and not _NOISE.match(line)
            ]
            return f"mpirun cannot reach all hosts: {_short(lines[-1]) if lines else 'it does not say why'}"
        if "Executable" in fields:
            return f"mpirun cannot start {fields['Executable']}{at}"
        if "Component" in fields and "Framework" in fields:
            return f"Open MPI has no {fields['Framework']} '{fields['Component']}'{at} that could be used"
        if "Directory" in fields and "Error" in fields:
            return f"mpirun cannot make {fields['Directory']}: {fields['Error']}"
    if found := _IN_INIT.search(stderr_tail):
        return f"Open MPI failed in MPI_Init{f': {_short(found[1])}' if found[1] else ''}"
    if not notices:
        return None
    paragraph = re.split(r"\n\s*\n", notices[0].strip())[0]
    sentence = re.split(r"(?<=[a-z)])\.\s", " ".join(paragraph.split()))[0]
    return f"mpirun: {_short(sentence.rstrip('.:'))}"


def explain_end(
    code: int,
    stderr_tail: str,
    signum: int | None = None,
    progress_of: Callable[[int | None], str] = lambda rank: "",
    always: bool = True,
) -> str | None:
    """Return one line about ranks that ended without a message, None where a rank has reported the error itself.

    Args:
        code: exit code of the launcher; 128+n: signal n.
        stderr_tail: the end of what ranks and launcher wrote to stderr.
        signum: the signal upon which the launcher was asked to end.
        progress_of: returns the end of the line, what is known of a rank's progress; None: of no particular rank.
        always: also where nothing is known but the exit code.
    """
    if code in (0, REQUEUE_CODE):
        return None
    death = find_death(stderr_tail)
    # A rank that raises reports the error and aborts. One that waits for another may report that, too, but the rank it
    # waits for matters more.
    was_missed = death is not None and (death.signal is not None or (death.is_improper and _ABORT not in stderr_tail))
    if OWN_ERROR in stderr_tail and not was_missed:
        return None
    if death is not None:
        if death.code == 1 and (waited := _START_TIMEOUT.search(stderr_tail)):
            return f"rank {death.rank} waited {waited[1]} for all ranks to start (comm.start_timeout_s): some never did"
        return f"{death}{progress_of(death.rank)}"
    if signum is not None:
        return f"interrupted by {signal_name(signum)}{progress_of(None)}"
    if reason := find_start_failure(stderr_tail):
        return reason
    if code - 128 in signal.valid_signals():
        return f"ended by {signal_name(code - 128)}{progress_of(None)}"
    if found := _MPI_ERROR.search(stderr_tail):
        return f"Open MPI failed in {found[1]}{progress_of(None)}"
    return f"mpirun ended with exit code {code} and does not say why{progress_of(None)}" if always else None


def is_echo(line: str) -> bool:
    """Whether this line of mpirun only repeats our request."""
    return _ECHO.fullmatch(line) is not None


class Notices:
    """Separates a launcher's notices from the ranks' output, line by line."""

    def __init__(self) -> None:
        self.in_notice = False

    def __call__(self, line: str) -> bool:
        """Whether the next line belongs to a notice, or is noise."""
        if _RULE.fullmatch(line):
            self.in_notice = not self.in_notice
            return True
        return (self.in_notice and not line.startswith(OWN_ERROR)) or _NOISE.match(line) is not None

    def may_begin(self, start: str) -> bool:
        """Whether a line with this beginning may become one."""
        return self.in_notice or start[:1] in ("-", "[", "m")


def _short(words: str) -> str:
    return printable(" ".join(words.split()), SHOWN)
