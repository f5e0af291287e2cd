"""Starts probes, limits their memory as the kernel of a smaller machine would, and survives their crashes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hpclbfl.core.errors import ConfigError, RunFailed
from hpclbfl.launch.children import module_command, tethered
from hpclbfl.launch.mpirun import environment_without_job

MARK = "hpclbfl-probe: "
COMMAND = tuple(module_command("hpclbfl.planner.probe"))
PLAIN_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TOP_PAD_": "0"}
"""Environment in which every larger block comes from the kernel and goes back to it, so that resident memory is what is
in use."""
_LOOK_EVERY_S = 0.01
_OUT_OF_MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)


@dataclass(frozen=True)
class Outcome:
    """How a probe ended."""

    answer: dict[str, Any] | None
    """None if it ran out of memory."""
    peak_bytes: int = 0
    """Largest resident memory seen from outside, bytes; 0 if it was not watched."""

    @property
    def is_out_of_memory(self) -> bool:
        """Whether memory was too small for the probe."""
        return self.answer is None


Probe = Callable[[dict[str, Any], int | None, bool], Outcome]
"""(request, limit of resident memory in bytes or None, whether with PLAIN_ALLOCATOR)"""


def run_probe(request: dict[str, Any], limit_bytes: int | None = None, plain_allocator: bool = False) -> Outcome:
    """Carry out a request in a fresh process; see `hpclbfl.planner.probe.answer`.

    Args:
        limit_bytes: resident memory at which the process is killed, as the kernel would on a machine of that size.

    Raises:
        ConfigError: the job cannot be run.
        RunFailed: the probe failed for another reason than memory.
    """
    extra = PLAIN_ALLOCATOR if plain_allocator else {}
    return run_process(COMMAND, request, {**environment_without_job(os.environ), **extra}, limit_bytes)


def run_process(
    command: Sequence[str], request: dict[str, Any], environ: Mapping[str, str], limit_bytes: int | None
) -> Outcome:
    """Start a process, hand it the request and wait for its answer; errors as `run_probe`."""
    process = subprocess.Popen(
        tethered(command, signal.SIGKILL),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environ,
    )
    outputs: dict[str, str] = {}
    readers = [
        threading.Thread(target=_drain, args=(name, pipe, outputs), daemon=True)
        for name, pipe in (("out", process.stdout), ("err", process.stderr))
    ]
    try:
        for reader in readers:
            reader.start()
        _hand_over(process, request)
        peak, killed = _watch(process, limit_bytes)
    except BaseException:
        process.kill()
        process.wait()
        raise
    for reader in readers:
        reader.join()
    return _outcome(process.returncode, outputs, peak, killed)


def _hand_over(process: subprocess.Popen[str], request: dict[str, Any]) -> None:
    if process.stdin is None:
        raise RuntimeError("the probe has no input")
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
    except BrokenPipeError:
        return  # It is dead already, and its exit code says why.


def _drain(name: str, pipe: IO[str] | None, outputs: dict[str, str]) -> None:
    outputs[name] = pipe.read() if pipe is not None else ""


def _watch(process: subprocess.Popen[str], limit_bytes: int | None) -> tuple[int, bool]:
    """Wait for the end; the largest resident memory seen, bytes, and whether it broke the limit and was killed."""
    if limit_bytes is None:
        process.wait()
        return 0, False
    statm, page, peak = Path(f"/proc/{process.pid}/statm"), resource.getpagesize(), 0
    while process.poll() is None:
        try:
            peak = max(peak, int(statm.read_text().split()[1]) * page)
        except (OSError, IndexError):
            peak = max(peak, 0)
        if peak > limit_bytes:
            process.kill()
            process.wait()
            return peak, True
        time.sleep(_LOOK_EVERY_S)
    return peak, False


def _outcome(code: int, outputs: Mapping[str, str], peak: int, killed: bool) -> Outcome:
    lines = [line for line in outputs["out"].splitlines() if line.startswith(MARK)]
    if killed or (code < 0 and -code in _OUT_OF_MEMORY_SIGNALS and not lines):
        return Outcome(None, peak)
    if code != 0 or not lines:
        said = [line.strip() for line in outputs["err"].splitlines() if line.strip()]
        if said and said[-1].startswith(("MemoryError", "numpy._core._exceptions._ArrayMemoryError")):
            return Outcome(None, peak)
        raise RunFailed(f"a probe ended with code {code}: {said[-1] if said else 'it said nothing'}")
    answer: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    if "error" in answer:
        kind = ConfigError if answer["exit_code"] == ConfigError.exit_code else RunFailed
        raise kind(answer["error"])
    return Outcome(None if answer.get("out_of_memory") else answer, peak)
