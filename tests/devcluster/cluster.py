"""Starts and stops the daemons of the development cluster: munged, slurmctld, and one slurmd per node."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.process import Process, process_of
from hpclbfl.runs.slurm_client import SlurmUnavailable, ask
from tests.devcluster.conf import Node, slurm_conf
from tests.devcluster.packages import find

FEATURES = {"n1": "fast", "n2": "slow"}
START_S = 30.0
STOP_S = 20.0
CLAIMED_MEMORY_MB = 64_000


def default_folder() -> Path:
    """The folder that `make slurm-up` uses; its path is short, because names of sockets must be."""
    return Path(tempfile.gettempdir()) / f"hpclbfl-slurm-{os.getuid()}"


class DevCluster:
    """A cluster of two nodes in a folder.

    Args:
        folder: for everything that it writes; only its owner (and root) may be able to write to the folders above.
        cpus: number of cores that each node claims to have.
        max_array_size: limit of job arrays.
    """

    def __init__(self, folder: Path, cpus: int = 8, max_array_size: int = 1001) -> None:
        self.folder, self._cpus, self._max_array_size = folder.absolute(), cpus, max_array_size

    @property
    def conf(self) -> Path:
        """The value for SLURM_CONF."""
        return self.folder / "slurm.conf"

    def is_up(self) -> bool:
        """Whether all its daemons are running."""
        daemons = self._daemons()
        return bool(daemons) and all(process.is_running for process in daemons)

    def start(self) -> None:
        """Start it, and wait until both nodes are idle.

        Raises:
            EnvironmentFault: a program is missing or does not start; one line with its last error message.
        """
        if self.is_up():
            return
        self.stop()
        host = socket.gethostname().split(".")[0]
        port, *node_ports = _free_ports(1 + len(FEATURES))
        nodes = [Node(name, feature, p) for (name, feature), p in zip(FEATURES.items(), node_ports, strict=True)]
        user = pwd.getpwuid(os.geteuid()).pw_name
        for folder in ("state", "munge", *(f"{node.name}/{part}" for node in nodes for part in ("spool", "tmp"))):
            (self.folder / folder).mkdir(parents=True)
        self.folder.chmod(0o755)
        text = slurm_conf(self.folder, host, user, nodes, port, self._cpus, CLAIMED_MEMORY_MB, self._max_array_size)
        self.conf.write_text(text, encoding="utf-8")
        try:
            self._start_munge()
            self._start("slurmctld", [find("slurmctld"), "-D", "-f", str(self.conf)])
            for node in nodes:
                self._start(node.name, [find("slurmd"), "-D", "-N", node.name, "-f", str(self.conf)])
            self._wait_until_idle(len(nodes))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End its jobs and daemons and remove its folder; has no effect if there is none."""
        daemons = self._daemons()
        if not self.folder.exists():
            return
        if not (self.folder / "daemons.json").exists() and any(self.folder.iterdir()):
            raise EnvironmentFault(f"{self.folder}: not the folder of such a cluster; give another one, or remove it")
        if daemons and all(process.is_running for process in daemons):
            self._end_jobs()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(daemons):
                if process.is_running:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, number)
            end = time.monotonic() + STOP_S
            while any(process.is_running for process in daemons) and time.monotonic() < end:
                time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        user: str | None = None
        if os.geteuid() == 0:
            with suppress(KeyError):
                user = pwd.getpwnam("munge").pw_name
        if user is not None:
            for path in (folder, key):
                shutil.chown(path, user, user)
        options = {
            "key-file": key,
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "seed-file": folder / "seed",
        }
        words = [f"--{name}={path}" for name, path in options.items()]
        # As root, munged refuses a folder that others can write to.
        force = ["--force"] if os.geteuid() == 0 and user is None else []
        self._start("munged", [find("munged"), "--foreground", *force, *words], user)
        end = time.monotonic() + START_S
        while not (folder / "socket").exists():
            self._look_alive(end)

    def _start(self, name: str, command: Sequence[str], user: str | None = None) -> None:
        # Variables of an enclosing cluster would mislead the daemons.
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        with (self.folder / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                list(command),
                env={**env, "SLURM_CONF": str(self.conf)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=user,
                group=user,
            )
        daemons = [*self._daemons(), process_of(process.pid)]
        (self.folder / "daemons.json").write_text(json.dumps(daemons), encoding="utf-8")

    def _daemons(self) -> list[Process]:
        try:
            rows = json.loads((self.folder / "daemons.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [Process(*row) for row in rows]

    def _ask(self, *command: str) -> str:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(self.conf)
        try:
            return ask(list(command))
        finally:
            if before is None:
                del os.environ["SLURM_CONF"]
            else:
                os.environ["SLURM_CONF"] = before

    def _wait_until_idle(self, num_nodes: int) -> None:
        end = time.monotonic() + START_S
        while True:
            with suppress(SlurmUnavailable):
                if self._ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * num_nodes:
                    return
            self._look_alive(end)

    def _look_alive(self, end: float) -> None:
        if time.monotonic() < end and all(process.is_running for process in self._daemons()):
            time.sleep(0.05)
            return
        lines = [line for path in sorted(self.folder.glob("*.out")) for line in _errors(path)]
        reason = lines[-1] if lines else f"no error message within {START_S:.0f} s"
        raise EnvironmentFault(f"the development Slurm in {self.folder} does not start: {reason}")

    def _end_jobs(self) -> None:
        with suppress(SlurmUnavailable):
            jobs = self._ask("squeue", "-h", "-o", "%A").split()
            if jobs:
                self._ask("scancel", *jobs)
            end = time.monotonic() + STOP_S
            while self._ask("squeue", "-h", "-o", "%A").split() and time.monotonic() < end:
                time.sleep(0.1)


def _errors(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return [f"{path.stem}: {line}" for line in lines if "error" in line.lower() or "fatal" in line.lower()]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
