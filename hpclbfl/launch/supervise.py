"""Runs a launcher: forwards signals and leaves no process behind."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NamedTuple

from hpclbfl.core.errors import REQUEUE_CODE
from hpclbfl.core.signals import ENDING, REPEATED, handling
from hpclbfl.launch.children import end_session, tethered
from hpclbfl.launch.parent import GRACE_S, LOOK_EVERY_S
from hpclbfl.launch.relay import Relay


class Ended(NamedTuple):
    """How a launcher ended."""

    code: int
    """Exit code, 128+n where signal n ended it."""
    signum: int | None = None
    """The signal upon which it was asked to end; None: it was not, or its ranks have finished or saved their state."""
    stderr_tail: str = ""
    """The end of what was written to stderr."""
    relay: Relay | None = None
    """Holds back the launcher's notices."""


def run_forwarding_signals(argv: Sequence[str], env: Mapping[str, str], relays: bool = False) -> Ended:
    """Run a command to its end and forward the signals that this process receives.

    USR2, TERM, HUP and XCPU are sent as USR2, which mpirun forwards to its ranks, and they save their state; a second
    TERM is sent as TERM, which ends them. INT and USR1 are sent unchanged.

    Args:
        relays: whether its stderr passes through a `Relay`; otherwise it inherits ours.
    """
    asked: list[int] = []
    waiting: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:
        if process is None:
            waiting.append(signum)
            return
        if signum == signal.SIGUSR1:
            process.send_signal(signum)
            return
        # mpirun kills its ranks upon the others but forwards USR2. A second TERM is final.
        is_final = signum == signal.SIGINT or (signum in asked and signum not in (signal.SIGUSR2, *REPEATED))
        asked.append(signum)
        process.send_signal(signum if is_final else signal.SIGUSR2)

    with handling((signal.SIGINT, *ENDING), forward):
        # In its own session: Ctrl-C on a terminal would reach mpirun twice, which it takes as a request to kill.
        process = subprocess.Popen(
            tethered(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if relays else None,
            start_new_session=True,
        )
        for signum in waiting:
            forward(signum, None)
        relay = Relay(process.stderr) if process.stderr is not None else None
        code = process.wait()
        if code < 0:
            # A killed launcher cannot end its ranks; they notice it and may save their state.
            end_session(process.pid, GRACE_S + 2 * LOOK_EVERY_S)
    stderr_tail = relay.join() if relay is not None else ""
    code = 128 - code if code < 0 else code
    if asked and code not in (0, REQUEUE_CODE):
        # After a signal mpirun's own exit code is meaningless; 0 and 75 come from the ranks.
        return Ended(128 + asked[0], asked[0], stderr_tail, relay)
    return Ended(code, None, stderr_tail, relay)
