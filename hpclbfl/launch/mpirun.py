"""Starts a command on N MPI ranks: of this machine, of named hosts, or of the allocation around it."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpclbfl.comm.mpi_runtime import bundled_environment
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import REQUEUE_CODE, ConfigError, EnvironmentFault
from hpclbfl.core.progress import TERMINAL_COLUMNS
from hpclbfl.core.text import say_error
from hpclbfl.launch.messages import OWN_ERROR, explain_end, find_start_failure
from hpclbfl.launch.supervise import run_forwarding_signals

logger = Diagnostics(__name__)

# Ranks allocate and free the same large blocks every step: these keep freed memory in the process.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
# mpirun passes only named variables to ranks on other nodes.
FORWARDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OPAL_PREFIX")
FORWARDED_PREFIXES = ("HOROVOD_", "NCCL_", "OMP_", "MKL_", "MALLOC_", "HPCLBFL_")

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")

Explain = Callable[[int, str, int | None], str | None]
"""(exit code, end of stderr, the signal upon which the ranks were asked to end)"""

MCA_DEFAULTS = {
    "pml": "ob1",
    # A single host needs no remote shell, but mpirun does not start without one.
    "plm_rsh_agent": "ssh : rsh : /bin/sh",
    "orte_abort_print_stack": "0",
    "btl_base_warn_component_unused": "0",
}


def parse_hosts(hosts: str) -> dict[str, int]:
    """Return slots by host of 'h1:2,h2:2'; a host without a number has one slot."""
    slots: dict[str, int] = {}
    for item in hosts.split(","):
        name, _, count = item.strip().partition(":")
        # Names become arguments of ssh.
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


def rank_environment(environ: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return the variables to add for ranks; those that the user has set stay."""
    wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **ALLOCATOR}
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
    env = {**environ, **rank_environment(environ, max(1, cores // local)), **(bundled or {})}

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


def local_mpirun_command(
    np: int, command: Sequence[str], environ: Mapping[str, str], cores: int | None = None, hosts: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of this machine's mpirun; `cores` default to all available ones.

    Raises:
        EnvironmentFault: there is no mpirun.
    """
    return mpirun_command(
        np,
        command,
        environ,
        cores=available_cores() if cores is None else cores,
        is_root=os.geteuid() == 0,
        mpirun=find_mpirun(),
        hosts=hosts,
        bundled=bundled_environment(environ),
    )


def environment_without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of a surrounding MPI job, which a new one would try to join."""
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
    explain: Explain = explain_end,
    debug: bool = False,
) -> int:
    """Run a command on `np` ranks; where they end without a message, the last line on stderr explains why.

    Args:
        hosts: see `parse_hosts`; None: this machine or the allocation around us.
        environ: the initial environment; default: this process's.
        explain: returns the line; see `explain_end`.
        debug: show mpirun's own notices, too.

    Returns:
        The exit code: the ranks'; 128+n where signal n ended them; 1 where mpirun could not start them.
    """
    environ = os.environ if environ is None else environ
    if sys.stderr.isatty():
        environ = {**environ, TERMINAL_COLUMNS: str(shutil.get_terminal_size().columns)}
    argv, env = local_mpirun_command(np, command, environ, hosts=hosts)
    logger.debug(f"starting the ranks: {shlex.join(argv)}")
    ended = run_forwarding_signals(argv, env, relays=True)
    line = explain(ended.code, ended.stderr_tail, ended.signum)
    own = [text for text in ended.stderr_tail.splitlines() if text.startswith(OWN_ERROR)]
    if ended.relay is not None:
        # After a requeue the run itself reports that it has saved its state.
        ended.relay.finish(show=debug or not (line or own or ended.code == REQUEUE_CODE))
    with suppress(OSError):
        if line is not None:
            say_error(line)
        elif debug and own:
            # Repeated below the notices.
            say_error(own[-1].removeprefix(OWN_ERROR).lstrip())
    if ended.signum is None and find_start_failure(ended.stderr_tail) is not None:
        return EnvironmentFault.exit_code
    return ended.code
