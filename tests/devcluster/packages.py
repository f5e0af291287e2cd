"""The programs of the development cluster: finding and installing them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from hpclbfl.core.errors import EnvironmentFault

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
# libpmix-dev has the PMIx library under the name that Slurm's plugin opens.
PACKAGES = ("slurm-wlm", "munge", "libpmix-dev")
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


def find(program: str) -> str:
    """Return the path of a program; /usr/sbin is searched, too.

    Raises:
        EnvironmentFault: it is not installed.
    """
    found = shutil.which(program, path=SEARCH_PATH)
    if found is None:
        raise EnvironmentFault(f"{program}: not on this machine; install {' '.join(PACKAGES)} (Debian, Ubuntu)")
    return found


def missing() -> list[str]:
    """Return the packages to be installed; none if Slurm was installed by other means."""
    if any(shutil.which(program, path=SEARCH_PATH) is None for program in PROGRAMS):
        return list(PACKAGES)
    return [package for package in PACKAGES if _is_debian("slurmctld") and not _is_installed(package)]


def can_install() -> bool:
    """Whether this process may install packages, and apt knows them."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    known = subprocess.run(["apt-cache", "show", *PACKAGES], capture_output=True, text=True, check=False)
    return known.returncode == 0 or _apt("update").returncode == 0


def install(say: Callable[[str], None]) -> None:
    """Install what is missing, if anything is.

    Raises:
        EnvironmentFault: this process may not install packages, or apt-get fails; one line.
    """
    packages = missing()
    if not packages:
        return
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise EnvironmentFault(f"no whole Slurm on this machine, and it takes root and apt-get to install {names}")
    say(f"installing {names}")
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = _apt(*words)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
            raise EnvironmentFault(f"apt-get {words[0]} failed: {lines[-1]}")


def _apt(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *words]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _is_debian(program: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    return subprocess.run(["dpkg-query", "-S", find(program)], capture_output=True, check=False).returncode == 0


def _is_installed(package: str) -> bool:
    command = ["dpkg-query", "-W", "-f=${Status}", package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.startswith("install ok installed")
