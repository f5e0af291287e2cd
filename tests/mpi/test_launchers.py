"""The same experiment through every launcher that the README names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpclbfl.launch.mpirun import available_cores, bundled_environment
from hpclbfl.runs.log.reader import read_run
from tests.conftest import make_job

pytestmark = pytest.mark.mpi
BIN = Path(sys.executable).parent


def test_all_launchers_run_the_same_experiment(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "job.yaml").write_text(make_job(toy_set, stop={"steps": 3}).to_yaml())
    environment = {**os.environ, **(bundled_environment(os.environ) or {})}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    crowded = ["--oversubscribe"] if available_cores() < 4 else []
    commands = {
        "alone": ["hpclbfl", "train"],
        "launch": ["hpclbfl", "launch", "-np", "2"],
        "horovodrun": ["horovodrun", "-np", "2", "hpclbfl", "train"],
        "mpirun": ["mpirun", *root, *crowded, "-np", "4", "hpclbfl", "train"],
    }
    losses = {}
    for name, words in commands.items():
        command = [*words, str(tmp_path / "job.yaml"), "--run-dir", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        run = read_run(tmp_path / name)
        assert run.provenance["engine"] == ("local" if name == "alone" else "horovod")
        assert run.provenance["num_ranks"] == {"alone": 1, "mpirun": 4}.get(name, 2)
        losses[name] = np.sort(run.tables["steps"], order=["step", "client"])["loss"]
    for name, found in losses.items():
        np.testing.assert_allclose(found, losses["alone"], atol=1e-9, err_msg=name)
