"""Starts a command on N MPI ranks of this machine, of named hosts, or of the allocation it runs in."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from hpclbfl.errors import ConfigError, EnvironmentFault
from hpclbfl.mpi_runtime import bundled_environment
from hpclbfl.progress import TERMINAL_COLUMNS

# Ranks allocate and free the same large blocks every step: keep them instead of returning them to the kernel.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
# Horovod alone only warns of a stall. Evaluation's or a download's minutes on one rank must fit below the limit.
STALL = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "60", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1800"}
# A longer cycle leaves the cores of a CPU node to the computation.
CPU_CYCLE = {"HOROVOD_CYCLE_TIME": "5"}
# Waiting for a reduction then orders the GPU's stream behind it instead of holding the host.
GPU_ASYNC = {"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"}

# mpirun hands the environment to ranks of other nodes by name alone.
FORWARDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OPAL_PREFIX")
FORWARDED_PREFIXES = ("HOROVOD_", "NCCL_", "OMP_", "MKL_", "MALLOC_", "HPCLBFL_")

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")

SAID_BYTES = 1 << 16
"""So much of the end of what ranks and mpirun write to stderr is kept."""
LISTEN_S = 2.0
"""So long after mpirun's end its last words are waited for."""

MCA_DEFAULTS = {
    "pml": "ob1",
    # One host needs no remote shell, yet without any mpirun would not start.
    "plm_rsh_agent": "ssh : rsh : /bin/sh",
    "orte_abort_print_stack": "0",
    "btl_base_warn_component_unused": "0",
}


def parse_hosts(hosts: str) -> dict[str, int]:
    """Return slots by host of 'h1:2,h2:2'; a host without a number has one slot."""
    slots: dict[str, int] = {}
    for item in hosts.split(","):
        name, _, count = item.strip().partition(":")
        # Names become words of ssh's command line.
        if not _HOST.fullmatch(name) or (count and not count.isdecimal()) or count == "0":
            raise ConfigError(f"--hosts {hosts}: expected host:slots,host:slots, not {item!r}")
        slots[name] = slots.get(name, 0) + int(count or 1)
    return slots


def ranks_per_node(np: int, environ: Mapping[str, str], hosts: Mapping[str, int] | None = None) -> int:
    """Return how many ranks the fullest node gets."""
    if hosts:
        return min(np, max(hosts.values()))
    nodes = environ.get("SLURM_JOB_NUM_NODES", "1")
    return math.ceil(np / max(1, int(nodes) if nodes.isdecimal() else 1))


def rank_environment(environ: Mapping[str, str], threads: int, has_gpu: bool) -> dict[str, str]:
    """Return what ranks should find set; what the user has set stays."""
    wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **ALLOCATOR, **STALL}
    wanted |= GPU_ASYNC if has_gpu else CPU_CYCLE
    if "OMP_NUM_THREADS" in environ:
        wanted["MKL_NUM_THREADS"] = environ["OMP_NUM_THREADS"]
    return {name: value for name, value in wanted.items() if name not in environ}


def mpirun_command(
    np: int,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    cores: int,
    is_root: bool = False,
    has_gpu: bool = False,
    mpirun: str = "mpirun",
    hosts: str | None = None,
    bundled: Mapping[str, str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return mpirun's command line and its environment; `bundled` is what the environment's own MPI needs."""
    if np < 1:
        raise ConfigError(f"-np {np}: at least one rank")
    slots = parse_hosts(hosts) if hosts else None
    if slots and np > sum(slots.values()):
        raise ConfigError(f"-np {np}: --hosts {hosts} has {sum(slots.values())} slots")
    local = ranks_per_node(np, environ, slots)
    env = {**environ, **rank_environment(environ, max(1, cores // local), has_gpu), **(bundled or {})}

    argv = [mpirun, "-np", str(np), "--bind-to", "none", "--map-by", "slot"]
    for name, value in MCA_DEFAULTS.items():
        if f"OMPI_MCA_{name}" not in environ:
            argv += ["-mca", name, value]
    if is_root:
        argv.append("--allow-run-as-root")
    if local > cores:
        argv.append("--oversubscribe")
    if hosts:
        argv += ["-H", hosts]
    if bundled:
        argv += ["--prefix", bundled["OPAL_PREFIX"]]
    for name in sorted(env):
        if name in FORWARDED or name.startswith(FORWARDED_PREFIXES):
            argv += ["-x", name]
    return [*argv, *command], env


def environment_without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the traces of an MPI job around us, which a new one would try to join."""
    traces = ("OMPI_COMM_", "OMPI_UNIVERSE", "PMIX_", "PMI_", "ORTE_")
    return {name: value for name, value in environ.items() if not name.startswith(traces)}


def available_cores() -> int:
    """Return the physical cores that this process may use, which is what mpirun counts as slots."""
    cpus = os.sched_getaffinity(0)
    cores = set()
    for cpu in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            return len(cpus)
    return len(cores)


def has_gpu() -> bool:
    """Tell whether a GPU driver is loaded, without loading torch."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd"))


def find_mpirun() -> str:
    """Return the environment's own mpirun, else the one on PATH."""
    own = Path(sys.prefix, "bin", "mpirun")
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise EnvironmentFault("no mpirun found: load the MPI module that Horovod was built with, or run make install")
    return found


def run_mpirun(
    np: int,
    command: Sequence[str],
    *,
    hosts: str | None = None,
    environ: Mapping[str, str] | None = None,
    said: bytearray | None = None,
) -> int:
    """Run the command on `np` ranks and return its exit code, 128+n where signal n ended it.

    Args:
        np, command: what runs how often.
        hosts: see `parse_hosts`; None: this machine or the allocation around us.
        environ: the environment to begin with; default: this process's.
        said: gets the end of what ranks and mpirun write to stderr, which goes on to ours.
    """
    environ = os.environ if environ is None else environ
    if sys.stderr.isatty():
        environ = {**environ, TERMINAL_COLUMNS: str(shutil.get_terminal_size().columns)}
    argv, env = mpirun_command(
        np,
        command,
        environ,
        cores=available_cores(),
        is_root=os.geteuid() == 0,
        has_gpu=has_gpu(),
        mpirun=find_mpirun(),
        hosts=hosts,
        bundled=bundled_environment(environ),
    )
    return run_forwarding_signals(argv, env, said)


def run_forwarding_signals(argv: Sequence[str], env: Mapping[str, str], said: bytearray | None = None) -> int:
    """Run a command to its end, handing on the signals that this process gets; `said`: see `run_mpirun`."""
    received: list[int] = []
    waiting: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:
        if process is None:
            waiting.append(signum)
            return
        if signum == signal.SIGTERM and signum not in received:
            # mpirun would kill the ranks; this one it hands on, and they save their state. A second one is final.
            received.append(signum)
            process.send_signal(signal.SIGUSR2)
            return
        if signum in (signal.SIGINT, signal.SIGTERM):
            received.append(signum)
        process.send_signal(signum)

    # Outside the main thread Python allows no handlers; the caller's then decide.
    in_main = threading.current_thread() is threading.main_thread()
    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2) if in_main else ()
    before = {signum: signal.signal(signum, forward) for signum in forwarded}
    try:
        # A session of its own, or Ctrl-C on a terminal would reach mpirun twice, which it takes as "now, by force".
        process = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if said is not None else None,
            start_new_session=True,
        )
        for signum in waiting:
            forward(signum, None)
        listener = None if said is None else _listen(process, said)
        code = process.wait()
        if listener is not None:
            # Something that outlives mpirun may hold the pipe open.
            listener.join(LISTEN_S)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if code < 0:
        return 128 - code
    # mpirun's own code after a signal says nothing; 0 and 75 (requeue) are the ranks' word.
    return 128 + received[0] if received and code not in (0, 75) else code


def _listen(process: subprocess.Popen[bytes], said: bytearray) -> threading.Thread:
    """Copy a process's stderr to ours, as it comes, and keep its end."""
    if process.stderr is None:
        raise ValueError("the process was started without a pipe for its stderr")
    source, target = process.stderr, sys.__stderr__.fileno() if sys.__stderr__ is not None else 2

    def copy() -> None:
        while chunk := os.read(source.fileno(), SAID_BYTES):
            said.extend(chunk)
            del said[:-SAID_BYTES]
            # Nobody may read ours any more; the ranks go on all the same.
            with suppress(OSError):
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]

    thread = threading.Thread(target=copy, name="stderr", daemon=True)
    thread.start()
    return thread
