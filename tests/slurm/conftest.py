"""Sweeps of toy runs; a Slurm that is faked, for what it says; and a real one."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import DataConfig
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.slurm.devcluster.cluster import DevCluster
from hpclbfl.slurm.devcluster.packages import can_install, install, missing

BASE: dict[str, Any] = {
    "clients": 2,
    "model": {"name": "resnet8"},
    "optimizer": {"lr": 0.02},
    "batching": {"local_batch_size": 4},
    "stop": {"steps": 3},
    "evaluate": {"every_steps": 3},
}


@pytest.fixture(autouse=True)
def diagnostics(terminal: None) -> None:
    """What is told goes to standard error here."""


def write_sweep(folder: Path, data: Path | None = None, **keys: Any) -> Path:
    """A sweep file over toy runs; `data`: the packed set, else the digits."""
    section = {"name": "digits"} if data is None else {"name": "packed", "path": str(data)}
    values = {"name": "demo", "base": {**BASE, "data": section}, **keys}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


class NamedData:
    """Data that are identified by their name and path alone, so that nothing is read."""

    def fingerprint(self, data: DataConfig) -> str:
        return f"content of {data.name} {data.place}"

    def with_end(self, job: JobConfig) -> JobConfig:
        return job


class FakeSlurm:
    """Commands that say what a test wants, and write down what they were told: a stand-in for words alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        # Every job that was ever submitted waits.
        self.say("squeue", 'cat "$FAKE/queue" 2>/dev/null; true')
        self.say("scontrol", "echo 'ClusterName = fake'; echo 'MaxArraySize            = 4'")
        self.say("scancel", 'echo "$@" >>"$FAKE/cancelled"')
        self.say("srun", "exit 1")
        self.say("sacct", 'touch "$FAKE/sacct"; echo "sacct: error: Slurm accounting storage is disabled" >&2; exit 1')
        self.say(
            "sbatch",
            """
            [ "$1" = --version ] && exec echo slurm 22.05
            exec 9>"$FAKE/lock"; flock 9
            n=$(($(cat "$FAKE/count" 2>/dev/null || echo 0) + 1))
            sleep "${FAKE_SBATCH_S:-0}"
            if [ "$n" = "${FAKE_FAIL_AT:-none}" ]; then
                echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
                echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
                exit 1
            fi
            echo $n >"$FAKE/count"
            cp "$1" "$FAKE/$n.sh"
            env >"$FAKE/$n.env"
            size=$(sed -nE 's/^#SBATCH --array=0-([0-9]+)%.*/\\1/p' "$1")
            if [ -n "$size" ]; then
                for i in $(seq 0 "$size"); do echo "$n|$n|$i|PENDING|Priority" >>"$FAKE/queue"; done
            else
                echo "$n|$n|N/A|PENDING|Priority" >>"$FAKE/queue"
            fi
            echo "Submitted batch job $n"
            """,
        )

    def say(self, command: str, script: str) -> None:
        """Make a command run these lines of shell."""
        path = self.folder / "bin" / command
        path.write_text(f'#!/bin/bash\nFAKE="{self.folder}"\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def scripts(self) -> list[str]:
        """The batch scripts so far."""
        count = self.folder / "count"
        number = int(count.read_text()) if count.exists() else 0
        return [(self.folder / f"{n + 1}.sh").read_text() for n in range(number)]

    def environment(self, number: int) -> dict[str, str]:
        """What sbatch saw when it was called for the number-th time."""
        lines = (self.folder / f"{number}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def queue(self, *lines: str) -> None:
        """What squeue prints from now on."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm of shell scripts in front of the PATH."""
    fake = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.folder / 'bin'}:{os.environ['PATH']}")
    return fake


@pytest.fixture(scope="session")
def dev_slurm() -> Iterator[DevCluster]:
    """A real Slurm of two nodes, arrays of at most three tasks; where it cannot be had, the test is skipped."""
    if missing() and not can_install():
        pytest.skip("no whole Slurm on this machine, and it takes root and apt-get to install one")
    # Names of sockets must be short, and munge's own user has to get there.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = DevCluster(folder / "c", max_array_size=3)
    try:
        try:
            install(print)
            cluster.start()
        except EnvironmentFault as error:
            pytest.fail(f"Slurm can be had on this machine, but: {error}")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(dev_slurm: DevCluster, monkeypatch: pytest.MonkeyPatch) -> DevCluster:
    """The real Slurm, as this process's."""
    monkeypatch.setenv("SLURM_CONF", str(dev_slurm.conf))
    return dev_slurm
