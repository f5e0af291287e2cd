"""What mpirun and srun say about ranks that ended or could not be started, separated from other text."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import NamedTuple

from hpclbfl.core.errors import REQUEUE_CODE
from hpclbfl.core.signals import signal_name
from hpclbfl.core.text import printable

OWN_ERROR = "hpclbfl: error:"
"""Beginning of the line in which a rank itself says what is wrong."""
SHOWN = 200
"""Characters of a launcher's own words in a line of ours."""

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
# By these a launcher or the user ends the ranks that are left.
_BY_WISH = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

_RULE = re.compile(r"-{40,}\s*")
"""Open MPI's notices stand between two of these."""
_NOISE = re.compile(
    r"\[[^\]\s]+:\d+\] .*(_ERROR_LOG: |PMIX ERROR: |OPAL ERROR: |ha(s|ve) sent help message|orte_base_help_aggregate)"
)
"""Lines of Open MPI about trouble while ending the ranks, of use only to its authors."""
_ECHO = re.compile(r"mpirun: Forwarding signal \d+ to job")
_MPIRUN_USAGE = re.compile(r"^(?:mpirun|mpiexec|orterun|prterun): Error: (.+)$", re.MULTILINE)
_MPI_ERROR = re.compile(r"\*\*\* An error occurred in (MPI_\w{1,60})")
_IN_INIT = re.compile(
    r"MPI_INIT failed for some reason(?:(?:.*\n){1,9}? {2}(\w+\(\) failed)$)?|An error occurred in MPI_Init",
    re.MULTILINE,
)
# Open MPI may lose the notice that names the rank.
_RAN = re.compile(r"Primary job\s+terminated normally")
_NO_DAEMON = "unable to reliably start one or more daemons"
_FIELD = re.compile(r"^\s*(Executable|Node|Host|Framework|Component|Directory|Error):\s*(\S.*?)\s*$", re.MULTILINE)


class Death(NamedTuple):
    """The end of the rank that brought down the others."""

    rank: int
    node: str
    signal: int | None = None
    """None: it ended by itself."""
    code: int = 0
    """Exit code of one that ended by itself."""
    is_improper: bool = False
    """It ended in the middle of MPI's work."""
    is_out_of_memory: bool = False
    """Slurm saw that the node's or the job's memory was used up."""

    def __str__(self) -> str:
        at = f"rank {self.rank}{f' on {_short(self.node)}' if self.node else ''}"
        if self.signal is None:
            return f"{at} ended too early, with exit code {self.code}"
        if self.is_out_of_memory:
            return f"{at} was killed: out of memory"
        guess = " (out of memory?)" if self.signal == signal.SIGKILL else ""
        return f"{at} was {'killed' if guess else 'ended'} by {signal_name(self.signal)}{guess}"


def find_death(said: str) -> Death | None:
    """Return what mpirun or srun says about the rank that ended first; None: nothing, or all ended by wish.

    Args:
        said: what ranks and launcher wrote to stderr, or the end of it.
    """
    if found := _MPIRUN_SIGNAL.search(said):
        number = int(found[3])
        return None if number in _BY_WISH else Death(int(found[1]), found[2], number)
    if found := _MPIRUN_IMPROPER.search(said):
        return Death(int(found[1]), found[2], is_improper=True)
    if found := _MPIRUN_CODE.search(said):
        return Death(int(found[1]), "", code=int(found[2]))
    for found in _SRUN.finditer(said):
        rank, node, words = int(found[2]), found[1], found[3].strip()
        if words.lower() == "out of memory":
            return Death(rank, node, signal.SIGKILL, is_out_of_memory=True)
        if code := _SRUN_CODE.match(words):
            return Death(rank, node, code=int(code[1]))
        ended_by = _SIGNALS.get(words.removesuffix(" (core dumped)"))
        if ended_by is not None and ended_by not in _BY_WISH:
            return Death(rank, node, ended_by)
    return None


def find_start_failure(said: str) -> str | None:
    """Return why mpirun started no rank, in its own words, short; None: it does not say so, or ranks have spoken."""
    if (
        OWN_ERROR in said
        or _ABORT in said
        or _RAN.search(said)
        or find_death(said) is not None
        or _MPIRUN_SIGNAL.search(said)
    ):
        return None
    if found := _MPIRUN_USAGE.search(said):
        return f"mpirun: {_short(found[1])}"
    outside, notices = _split(said)
    for notice in notices:
        fields = dict(_FIELD.findall(notice))
        if _NO_DAEMON in notice:
            # What ssh has to say stands before it.
            return f"mpirun cannot reach all hosts: {_short(outside[-1] if outside else 'it does not say why')}"
        if "Executable" in fields:
            at = f" on {_short(fields['Node'])}" if "Node" in fields else ""
            return f"mpirun cannot start {_short(fields['Executable'])}{at}"
        if "Component" in fields and "Framework" in fields:
            at = f" on {_short(fields['Host'])}" if "Host" in fields else ""
            wanted = f"{fields['Framework']} '{fields['Component']}'"
            return f"Open MPI has no {_short(wanted)}{at} that could be used"
        if "Directory" in fields and "Error" in fields:
            return f"mpirun cannot make {_short(fields['Directory'])}: {_short(fields['Error'])}"
    if found := _IN_INIT.search(said):
        return f"Open MPI failed in MPI_Init{f': {_short(found[1])}' if found[1] else ''}"
    return f"mpirun: {_short(_first_sentence(notices[0]))}" if notices else None


def explain_end(
    code: int,
    said: str,
    signum: int | None = None,
    heard: Callable[[int | None], str] = lambda rank: "",
    always: bool = True,
) -> str | None:
    """Return one line about ranks that ended without a word, None where a rank has said itself what is wrong.

    Args:
        code: exit code of the launcher; 128+n: signal n.
        said: what ranks and launcher wrote to stderr, or the end of it.
        signum: the signal upon which the launcher was told to end.
        heard: returns the end of the line, what is known of a rank; None: of none in particular.
        always: also where nothing is known but the exit code.
    """
    if code in (0, REQUEUE_CODE):
        return None
    death = find_death(said)
    # A rank that raises says so, and aborts. One that misses another may say so, too: who was missed matters more.
    was_missed = death is not None and (death.signal is not None or (death.is_improper and _ABORT not in said))
    if OWN_ERROR in said and not was_missed:
        return None
    if death is not None:
        if death.code == 1 and (waited := _START_TIMEOUT.search(said)):
            return f"rank {death.rank} waited {waited[1]} for all ranks to start (comm.start_timeout_s): some never did"
        return f"{death}{heard(death.rank)}"
    if signum is not None:
        return f"interrupted by {signal_name(signum)}{heard(None)}"
    if reason := find_start_failure(said):
        return reason
    if code - 128 in signal.valid_signals():
        return f"ended by {signal_name(code - 128)}{heard(None)}"
    if found := _MPI_ERROR.search(said):
        return f"Open MPI failed in {found[1]}{heard(None)}"
    return f"mpirun ended with exit code {code} and does not say why{heard(None)}" if always else None


def is_echo(line: str) -> bool:
    """Whether this line of mpirun only repeats what we asked of it."""
    return _ECHO.fullmatch(line) is not None


class Notices:
    """Separates a launcher's notices from the ranks' lines, line by line."""

    def __init__(self) -> None:
        self.in_notice = False

    def __call__(self, line: str) -> bool:
        """Whether the next line of the text belongs to a notice, or says nothing to a reader."""
        if _RULE.fullmatch(line):
            self.in_notice = not self.in_notice
            return True
        return (self.in_notice and not line.startswith(OWN_ERROR)) or _NOISE.match(line) is not None

    def may_begin(self, start: str) -> bool:
        """Whether a line that begins so may turn out to be one."""
        return self.in_notice or start[:1] in ("-", "[", "m")


def _split(said: str) -> tuple[list[str], list[str]]:
    """The lines outside of notices that say something, and the notices."""
    outside: list[str] = []
    notices: list[list[str]] = []
    is_notice = Notices()
    was_in = False
    for line in said.splitlines():
        if not is_notice(line):
            if line.strip():
                outside.append(line.strip())
        elif is_notice.in_notice and not was_in:
            notices.append([])
        elif is_notice.in_notice:
            notices[-1].append(line)
        was_in = is_notice.in_notice
    return outside, [text for lines in notices if (text := "\n".join(lines)).strip()]


def _first_sentence(notice: str) -> str:
    paragraph = next(part for part in re.split(r"\n\s*\n", notice) if part.strip())
    return re.split(r"(?<=[a-z)])\.\s", _short(paragraph, None))[0].rstrip(".:")


def _short(words: str, limit: int | None = SHOWN) -> str:
    return printable(" ".join(words.split()), limit)
