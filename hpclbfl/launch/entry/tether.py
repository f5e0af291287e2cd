"""Executes a program that does not outlive the process that started it.

`python -I -S tether.py PARENT SIGNAL PROGRAM [ARGUMENT]...`: the kernel sends the program this signal when the process
PARENT ends, however that happens. See `hpclbfl.launch.children.tethered`.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, signum: int, command: list[str]) -> None:
    """Request the signal from the kernel, and execute the program; does not return."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        # Kept across exec.
        prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before the request.
        os._exit(128 + signum)
    # Python ignores these, and the program would inherit that.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"hpclbfl: error: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
