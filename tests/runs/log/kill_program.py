"""Run by test_kill.py: writes a log again and again, killed each time at a later system call.

Usage: kill_program.py FOLDER

A child writes FOLDER/<n>.h5 under ptrace and gets SIGKILL at its n-th stop, before or after a system call, until it
comes to its end. What it wrote to its pipe before, the rows of flushes that had returned, is printed as JSON:
[[rows, events], ...] by n, null where it had not made the log yet.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from hpclbfl.runs.log.writer import RunLog

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def write_log(path: Path, told: int) -> None:
    log = RunLog(path, {"rank": 0, "attempt": 0, "resumed_from_step": 0})
    os.write(told, b"0 0\n")
    for i in range(330):
        log.append_row("steps", (i, 0, 0.5, 0, 32, (i + 1) * 32, i * 0.5, 0.1, *[float(i)] * 13))
        if i % 110 == 109:
            log.append("events", step=i, kind="flush", text=str(i))
            log.flush(fsync=i > 300)
            os.write(told, b"%d %d\n" % (i + 1, i // 110 + 1))
    log.close()


def run_child(path: Path, told: int) -> None:
    libc.ptrace(PTRACE_TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    write_log(path, told)
    os._exit(0)


def killed_at(path: Path, stop: int) -> tuple[bool, str]:
    """Whether the child came to its end before that stop, and what it had told."""
    source, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        try:
            run_child(path, told)
        finally:
            os._exit(1)
    os.close(told)
    count, is_over = 0, False
    while True:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            is_over = os.WIFEXITED(status)
            if is_over and os.WEXITSTATUS(status):
                sys.exit("the writer failed")
            break
        if count == stop:
            os.kill(child, signal.SIGKILL)
        elif libc.ptrace(PTRACE_SYSCALL, child, None, None):
            sys.exit(f"no ptrace here: {os.strerror(ctypes.get_errno())}")
        count += 1
    with os.fdopen(source) as pipe:
        return is_over, pipe.read()


folder = Path(sys.argv[1])
# Once, outside: what is loaded at the first use is then there in every child.
RunLog(folder / "first.h5", {"rank": 0}).close()
found: list[list[int] | None] = []
is_over = False
while not is_over:
    is_over, said = killed_at(folder / f"{len(found)}.h5", len(found))
    lines = said.splitlines()
    found.append([int(word) for word in lines[-1].split()] if lines else None)
print(json.dumps(found))
