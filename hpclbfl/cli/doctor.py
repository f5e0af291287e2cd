"""Checks of this machine's software and hardware, with a remedy for each problem."""

from __future__ import annotations

import importlib.resources
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hpclbfl.comm.mpi_runtime import bundled_environment, bundled_libmpi
from hpclbfl.core.console import make_console
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.text import cell
from hpclbfl.launch.children import module_command, tethered
from hpclbfl.launch.messages import find_start_failure
from hpclbfl.launch.mpi_probe import MARK
from hpclbfl.launch.mpirun import (
    available_cores,
    environment_without_job,
    find_mpirun,
    has_gpu,
    local_mpirun_command,
)

State = Literal["ok", "warn", "missing", "absent"]
REINSTALL = "run make install"
PROBE_TIMEOUT_S = 120

PROBE = module_command("hpclbfl.launch.mpi_probe")


@dataclass(frozen=True)
class Check:
    """One finding; `absent` is optional and not there."""

    name: str
    state: State
    found: str
    remedy: str = ""


def check_python() -> Check:
    """Check the interpreter."""
    found = f"{platform.python_version()}, {sys.prefix}"
    if sys.version_info >= (3, 12):
        return Check("Python", "warn", found, "horovodrun needs Python 3.10 or 3.11: make clean install PYTHON=...")
    return Check("Python", "ok", found)


def check_torch() -> list[Check]:
    """Check torch, its threads and the GPUs it sees."""
    import torch

    found = Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpu = Check("GPU", "ok", ", ".join(names)) if names else Check("GPU", "absent", "none that torch can use")
    return [found, gpu]


def check_vision() -> Check:
    """Check that torchvision and timm can be imported with this torch."""
    from hpclbfl.core.vision import torchvision  # isort: skip
    import timm

    return Check("torchvision, timm", "ok", f"{torchvision.__version__}, {timm.__version__}")


def check_mpirun() -> Check:
    """Check the mpirun that `hpclbfl launch` would use."""
    mpirun = find_mpirun()
    shown = _run([mpirun, "--version"])
    if shown.returncode != 0:
        return Check("mpirun", "missing", f"{mpirun} does not run: {_last_line(shown.stderr)}", REINSTALL)
    version = shown.stdout.strip().splitlines()[0]
    where = "the environment's own" if bundled_libmpi() else "the machine's"
    if "Open MPI" not in version:
        return Check("mpirun", "warn", f"{version}, {mpirun}", "hpclbfl launch speaks Open MPI's; use srun or mpiexec")
    own_first = f"{Path(sys.prefix, 'bin')}:{os.environ.get('PATH', '')}"
    compiler = "with mpicxx" if shutil.which("mpicxx", path=own_first) else "no mpicxx"
    return Check("mpirun", "ok", f"{version}, {where}, {compiler}, {mpirun}")


def check_horovod() -> list[Check]:
    """Load Horovod and mpi4py together in a separate process, without mpirun."""
    probe = _probe(PROBE)
    if isinstance(probe, str):
        return [Check("Horovod", "missing", probe, REINSTALL)]
    built = ", ".join(name for name in ("mpi", "nccl") if probe[name]).upper() or "nothing"
    state: State = "ok" if probe["mpi"] else "missing"
    remedy = "" if probe["mpi"] else "needs a build with MPI: make clean install"
    if probe["mpi"] and not probe["nccl"] and has_gpu():
        state = "warn"
        remedy = "gradients of GPUs travel through the host: make clean install HOROVOD_GPU_OPERATIONS=NCCL"
    horovod = Check("Horovod", state, f"{probe['horovod']}, built with {built}", remedy)
    found = f"{probe['mpi4py']}, {', '.join(probe['libraries']) or 'MPI library unknown'}"
    if probe["shared"]:
        return [horovod, Check("mpi4py", "ok", found)]
    remedy = "Horovod and mpi4py load different MPI libraries: unset MPI4PY_LIBMPI or make clean install"
    return [horovod, Check("mpi4py", "missing", found, remedy)]


def check_ranks() -> Check:
    """Let two ranks add a number through Horovod."""
    probe = _probe(*local_mpirun_command(2, PROBE, environment_without_job(os.environ)))
    if isinstance(probe, str):
        return Check("two ranks", "missing", probe, "see the lines for mpirun and Horovod")
    if probe["total"] != 2.0:
        remedy = "the ranks do not see each other: mpirun is of another MPI than Horovod; make clean install"
        return Check("two ranks", "missing", f"sum {probe['total']:g} instead of 2", remedy)
    return Check("two ranks", "ok", "an allreduce under mpirun agrees")


def check_hdf5() -> Check:
    """Check that logs can be read while they are written in the current folder."""
    import h5py

    found = f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=Path.cwd()) as folder:
            _write_and_read_swmr(Path(folder, "probe.h5"))
    except OSError as error:
        return Check("HDF5", "warn", f"{found}; not in {Path.cwd()}: {error}", "keep runs on another file system")
    return Check("HDF5", "ok", f"{found}, SWMR works in {Path.cwd()}")


def check_slurm() -> Check:
    """Check Slurm and whether its srun can start MPI ranks."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        return Check("Slurm", "absent", "no sbatch; sweeps can run here")
    shown = _run(["sbatch", "--version"])
    if shown.returncode != 0:
        return Check("Slurm", "absent", "its commands are here, but no cluster is configured; sweeps can run here")
    version = shown.stdout.strip()
    listed = _run(["srun", "--mpi=list"])
    if "pmix" not in listed.stdout + listed.stderr:
        remedy = "srun cannot start the ranks: hpclbfl sweep --cluster slurm-mpirun"
        return Check("Slurm", "warn", f"{version}, no pmix", remedy)
    return Check("Slurm", "ok", f"{version}, srun --mpi=pmix")


def check_machine() -> Check:
    """Report cores and memory."""
    memory_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    threads = len(os.sched_getaffinity(0))
    return Check("machine", "ok", f"{available_cores()} cores, {threads} threads, {memory_bytes / 2**30:.1f} GiB free")


def check_digits() -> Check:
    """Check that the data set of the quickstart is part of the installation."""
    digits = importlib.resources.files("hpclbfl") / "data" / "digits.h5"
    if not digits.is_file():
        return Check("digits", "missing", f"{digits} is not there", "git checkout hpclbfl/data, or install anew")
    return Check("digits", "ok", str(digits))


CHECKS: tuple[tuple[str, Callable[[], Check | list[Check]]], ...] = (
    ("Python", check_python),
    ("machine", check_machine),
    ("torch", check_torch),
    ("torchvision, timm", check_vision),
    ("mpirun", check_mpirun),
    ("Horovod", check_horovod),
    ("two ranks", check_ranks),
    ("HDF5", check_hdf5),
    ("Slurm", check_slurm),
    ("digits", check_digits),
)


def checks() -> list[Check]:
    """Run all checks; one that cannot start is a finding, too."""
    found: list[Check] = []
    for name, look in CHECKS:
        try:
            result = look()
        except EnvironmentFault as error:
            result = Check(name, "missing", str(error), REINSTALL)
        except (ImportError, OSError, RuntimeError) as error:
            result = Check(name, "missing", f"{type(error).__name__}: {_last_line(str(error))}", REINSTALL)
        found += result if isinstance(result, list) else [result]
    return found


def print_table(found: list[Check]) -> None:
    """Print the findings as a table."""
    from rich.text import Text

    from hpclbfl.core.table import DataTable

    style = {"ok": "green", "warn": "yellow", "missing": "bold red", "absent": "dim"}
    table = DataTable(box=None)
    table.add_column("")
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in found:
        state = "absent, optional" if check.state == "absent" else check.state
        lines = [cell(check.found)] + ([cell(f"-> {check.remedy}", "bold")] if check.remedy else [])
        table.add_row(check.name, cell(state, style[check.state]), Text("\n").join(lines))
    make_console().print(table)


def run(as_json: bool) -> int:
    """Print all checks and return 1 when something required is missing."""
    found = checks()
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in found], indent=2) + "\n")
    else:
        print_table(found)
    return 1 if any(check.state == "missing" for check in found) else 0


def _run(argv: list[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environ = environment_without_job(os.environ)
    env = {**environ, **bundled_environment(environ)} if env is None else env
    return subprocess.run(
        tethered(argv),
        env=dict(env),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=PROBE_TIMEOUT_S,
    )


def _probe(argv: list[str], env: Mapping[str, str] | None = None) -> dict[str, Any] | str:
    """Return the probe's results, or the reason why there are none."""
    try:
        done = _run(argv, env)
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_TIMEOUT_S} s"
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return dict(json.loads(line.removeprefix(MARK)))
    reason = find_start_failure(done.stderr) or _last_line(done.stderr)
    return f"exit code {done.returncode}: {reason}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip(" -\t")), "no message")


def _write_and_read_swmr(path: Path) -> None:
    import h5py

    with h5py.File(path, "w", libver="latest", locking=False) as writer:
        rows = writer.create_dataset("rows", shape=(0,), maxshape=(None,), chunks=(16,), dtype="i8")
        writer.swmr_mode = True
        rows.resize((4,))
        rows[:] = 7
        rows.flush()
        with h5py.File(path, "r", swmr=True, locking=False) as reader:
            if list(reader["rows"][:]) != [7, 7, 7, 7]:
                raise OSError("rows written in SWMR mode do not read back")
