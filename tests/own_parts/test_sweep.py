"""A sweep takes its parts along: what runs is what was submitted."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from hpclbfl.runs.log.reader import read_run
from hpclbfl.slurm.status import status_rows
from tests.devcluster.cluster import DevCluster
from tests.own_parts.conftest import Workplace
from tests.slurm.conftest import dev_slurm, slurm
from tests.slurm.test_real_slurm import checkpoints, logs_of, num_attempts, profile, queue, wait_for
from tests.training.test_checkpoint import untimed

__all__ = ["dev_slurm", "slurm"]
"""Fixtures."""

SWEEP = """
name: own
job: job.yaml
grid: {model.width: [4, 5]}
ranks: 2
"""
SHORT = "\nevaluate: {every_steps: 6}\ncheckpoint: {every_steps: 3}\n"


@pytest.mark.mpi
def test_its_runs_are_those_of_the_files_as_they_were(workplace: Workplace) -> None:
    job = (workplace / "job.yaml").read_text().replace("stop: {epochs: 4}", "stop: {steps: 6}")
    (workplace / "job.yaml").write_text(job + SHORT)
    (workplace / "sweep.yaml").write_text(SWEEP)
    words = ("sweep", "sweep.yaml", "--cluster", "local", "--dir", "out")
    assert "2 done, 0 failed" in workplace.run(*words)
    runs = sorted(row["id"] for row in json.loads((workplace / "out" / "sweep.json").read_text())["runs"])
    for run in runs:
        name = re.findall(r"name: (nets.*)", (workplace / "out" / "jobs" / f"{run}.yaml").read_text())
        copies = [*(workplace / "out" / "jobs" / "parts").glob("*/nets.py")]
        assert name == [f"nets.py@{copies[0].parent.name}:WideNet"] and len(copies) == 1
    text = (workplace / "nets.py").read_text()
    workplace.edit_all()
    # As a job that Slurm requeues is called.
    for run in runs:
        said = workplace.run(
            *("train", f"out/jobs/{run}.yaml", "stop.steps=8", "--run-dir", f"out/runs/{run}"), OMP_NUM_THREADS="1"
        )
        assert "resumes after step 6" in said
    # The sweep itself reads the files anew.
    done = workplace.call(*words)
    assert done.returncode == 2 and "nets.py:1: cannot be imported: SystemExit: edited" in done.stderr
    Workplace(workplace.folder)
    (workplace / "nets.py").write_text(text + "# edited\n")
    (workplace / "job.yaml").write_text(job + SHORT)
    (workplace / "sweep.yaml").write_text(SWEEP)
    done = workplace.call(*words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 runs: 0 done, 0 running or queued elsewhere, 2 to do" in done.stdout
    assert not any(run in done.stdout for run in runs)


@pytest.mark.slurm
def test_a_node_sees_no_edit_after_the_submission(workplace: Workplace, slurm: DevCluster) -> None:
    """Asked to stop in the middle, it is requeued and goes on, too, while the files are gone."""
    job = (workplace / "job.yaml").read_text().replace("stop: {epochs: 4}", "stop: {steps: 150}")
    (workplace / "job.yaml").write_text(f"{job}\nevaluate: {{every_steps: 75}}\ncheckpoint: {{every_steps: 3}}\n")
    (workplace / "sweep.yaml").write_text(SWEEP.replace("[4, 5]", "[4]"))
    out, cluster = workplace / "out", profile(workplace.folder, launcher="srun", launcher_args=["--mpi=pmix"])
    workplace.run("sweep", "sweep.yaml", "--cluster", cluster, "--dir", out)
    workplace.edit_all()
    (row,) = status_rows(out)
    wait_for(lambda: checkpoints(row["path"]) > 0, poll_s=0.05)
    subprocess.run(["scancel", "--batch", "--signal=USR2", row["job"]], check=True)
    wait_for(lambda: not queue())
    (row,) = status_rows(out)
    assert row["state"] == "done" and num_attempts(row["path"]) == 2, logs_of(out)
    job_file = next((out / "jobs").glob("*.yaml"))
    workplace.run("launch", "-np", "2", job_file, "--run-dir", "whole")
    assert untimed(read_run(row["path"])) == untimed(read_run(workplace / "whole"))


@pytest.mark.slow
def test_names_on_its_axes_are_relative_to_the_sweep_file(workplace: Workplace) -> None:
    (workplace / "below").mkdir()
    (workplace / "below" / "nets.py").write_text((workplace / "nets.py").read_text() + "# of the sweep's\n")
    (workplace / "below" / "sweep.yaml").write_text(
        "name: own\njob: ../job.yaml\nlist:\n"
        "- {model: {name: nets.py:Linear}}\n- {model.width: 3}\n- {model.name: 'nets.py:WideNet'}\n"
        "exclude:\n- {model.name: 'nets.py:WideNet'}\n"
    )
    done = workplace.call("sweep", "below/sweep.yaml", "--cluster", "local", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "exclude leaves out 2 of 3 runs" in done.stderr
    assert "model={name: 'nets.py:Linear'}" in done.stdout


@pytest.mark.slow
def test_a_part_that_is_wrong_names_the_run(workplace: Workplace) -> None:
    (workplace / "sweep.yaml").write_text("name: own\njob: job.yaml\ngrid: {model.name: ['nets.py:WideNett']}\n")
    done = workplace.call("sweep", "sweep.yaml", "--cluster", "local")
    assert (done.returncode, done.stderr) == (
        2,
        f"hpclbfl: error: sweep.yaml: run model.name=nets.py:WideNett: model.name: {workplace / 'nets.py'}: has no "
        "class 'WideNett': did you mean 'WideNet'? it has Linear, WideNet\n",
    )
