"""Starts probes in processes of their own, limits their memory and survives their crashes.

The limit works as the kernel of a smaller machine would: a process that exceeds it is killed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclbfl.core.errors import ConfigError, RunFailed
from hpclbfl.launch.children import module_command, tethered
from hpclbfl.launch.mpirun import environment_without_job

MARK = "hpclbfl-probe: "
COMMAND = tuple(module_command("hpclbfl.planner.probe"))
PLAIN_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TOP_PAD_": "0"}
"""Environment in which every larger block is taken from the kernel and returned to it: resident memory is in use."""
_POLL_EVERY_S = 0.01
_OUT_OF_MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
_OUT_OF_MEMORY_ERRORS = ("MemoryError", "numpy._core._exceptions._ArrayMemoryError")


@dataclass(frozen=True)
class Outcome:
    """How a probe ended."""

    answer: dict[str, Any] | None
    """None if it ran out of memory."""
    peak_bytes: int = 0
    """Largest resident memory seen from outside, bytes; 0 if it was not watched."""


@dataclass(frozen=True)
class Gathered:
    """Answer of the probe `times`: the device and the data, times of steps, and the components of Eq. 3."""

    device: str
    threads: int | None
    """None on a GPU."""
    free_bytes: int
    """Of a GPU; 0 on a CPU."""
    num_train: int
    fingerprint: str
    """Of the data set."""
    input_bytes: int
    """Of a sample as it is loaded."""
    sample_text: str
    """What a sample is like, for people."""
    in_memory: bool
    """Whether decoded samples are kept in memory."""
    missing_bytes: int
    """Of host memory: decoded images that a training run keeps and the probe does not; 0 on a GPU."""
    host_bytes: int
    """Resident memory of the process before its first step."""
    start_bytes: int
    """The part of it that counts against the device's limit: all on a CPU, 0 on a GPU."""
    shapes: Sequence[tuple[int, ...]]
    """Of the parameters that are trained."""
    itemsize: int
    """Bytes of one of their numbers."""
    buffer_bytes: int
    rows: Sequence[tuple[int, int, float, float]]
    """Batch size, repetition, t_mov and t_c, s."""
    fitted: Sequence[int]
    """Batch sizes to fit."""
    held_out: Sequence[int]
    activation: Sequence[tuple[int, int]]
    """Batch size and bytes."""
    model: int
    gradient: int
    optimizer: int
    """Bytes, like those two."""


Probe = Callable[[dict[str, Any], int | None, bool], Outcome]
"""(request, limit of resident memory in bytes or None, whether with PLAIN_ALLOCATOR)"""


def run_probe(request: dict[str, Any], limit_bytes: int | None = None, plain_allocator: bool = False) -> Outcome:
    """Carry out a request in a fresh process; see `hpclbfl.planner.probe.answer`.

    Args:
        limit_bytes: resident memory at which the process is killed.

    Raises:
        ConfigError: the job cannot be run.
        RunFailed: the probe failed for another reason than memory.
    """
    extra = PLAIN_ALLOCATOR if plain_allocator else {}
    return run_process(COMMAND, request, {**environment_without_job(os.environ), **extra}, limit_bytes)


def run_process(
    command: Sequence[str], request: dict[str, Any], environ: Mapping[str, str], limit_bytes: int | None
) -> Outcome:
    """Start a process, send it the request and wait for its answer; errors as `run_probe`."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        tethered(command, signal.SIGKILL),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        env=environ,
    )
    peak_bytes, has_killed = 0, False

    def watch(limit: int) -> None:
        nonlocal peak_bytes, has_killed
        statm, page = Path(f"/proc/{process.pid}/statm"), resource.getpagesize()
        while not has_killed and process.returncode is None:
            with suppress(OSError, IndexError):
                peak_bytes = max(peak_bytes, int(statm.read_text().split()[1]) * page)
            if peak_bytes > limit:
                has_killed = True
                process.kill()
            time.sleep(_POLL_EVERY_S)

    if limit_bytes is not None:
        threading.Thread(target=watch, args=(limit_bytes,), daemon=True).start()
    try:
        output, stderr = process.communicate(json.dumps(request))
    except BaseException:
        process.kill()
        process.wait()
        raise
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    code = process.returncode
    if has_killed or (code < 0 and -code in _OUT_OF_MEMORY_SIGNALS and not lines):
        return Outcome(None, peak_bytes)
    if code != 0 or not lines:
        stderr_tail = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
        if stderr_tail.startswith(_OUT_OF_MEMORY_ERRORS):
            return Outcome(None, peak_bytes)
        raise RunFailed(f"a probe ended with exit code {code}: {stderr_tail}")
    answer: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    if "error" in answer:
        kind = ConfigError if answer["exit_code"] == ConfigError.exit_code else RunFailed
        raise kind(answer["error"])
    return Outcome(None if answer.get("out_of_memory") else answer, peak_bytes)
