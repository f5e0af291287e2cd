"""What Slurm's commands print, and what they do not."""

from __future__ import annotations

import pytest

from hpclbfl.runs import slurm_client
from hpclbfl.runs.slurm_client import Job, SlurmUnavailable, clean_environment, cluster_name, live_jobs, max_array_size
from tests.slurm.conftest import FakeSlurm


def test_live_jobs_are_those_that_have_not_ended(fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(
        "12|12|N/A|RUNNING|None",
        "20|20|0|COMPLETING|None",
        "21|20|1|CANCELLED|None",
        "20|20|2|PENDING|Resources",
        "30|30|N/A|TIMEOUT|TimeLimit",
        "99|99|N/A|RUNNING|None",
    )
    assert live_jobs(["12", "20_0", "20_1", "20_2", "20_3", "30"]) == {
        "12": Job("12", "RUNNING", "None"),
        "20_0": Job("20_0", "COMPLETING", "None"),
        "20_2": Job("20_2", "PENDING", "Resources"),
    }


def test_squeue_is_asked_for_arrays_once_and_without_filters_of_the_user(
    fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    monkeypatch.setenv("SLURM_CONF", "/etc/own.conf")
    fake_slurm.say("squeue", 'echo "$@" >>"$FAKE/asked"; env >"$FAKE/env"')
    assert live_jobs(["7_1", "7_2", "3"]) == {}
    (asked,) = (fake_slurm.folder / "asked").read_text().splitlines()
    assert asked.endswith("--jobs=3,7")
    env = (fake_slurm.folder / "env").read_text()
    assert "SQUEUE_STATES" not in env and "SLURM_CLUSTERS" not in env and "SLURM_CONF=/etc/own.conf" in env


def test_a_lone_job_that_slurm_has_forgotten_has_ended(fake_slurm: FakeSlurm) -> None:
    fake_slurm.say("squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert live_jobs(["12"]) == {}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
            "squeue failed: slurm_load_jobs",
        ),
        ("exit 3", "squeue failed: exit code 3, no message"),
        ("echo 'CLUSTER: a'", "squeue: a line that cannot be read: 'CLUSTER: a'"),
        ("echo '12|12'", "squeue: a line that cannot be read"),
        ("sleep 5", "squeue: no answer within"),
    ],
)
def test_no_answer_is_not_taken_for_the_end_of_jobs(
    fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(slurm_client, "TIMEOUT_S", 0.5)
    fake_slurm.say("squeue", script.replace("sleep 5", "exec sleep 5"))
    with pytest.raises(SlurmUnavailable) as error:
        live_jobs(["12"])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmUnavailable, match="squeue: no such command on this machine"):
        live_jobs(["12"])


def test_settings(fake_slurm: FakeSlurm) -> None:
    assert (max_array_size(), cluster_name()) == (4, "fake")
    fake_slurm.say("scontrol", "echo MaxArray = many")
    with pytest.raises(SlurmUnavailable, match="scontrol show config: names no MaxArraySize"):
        max_array_size()


def test_clean_environment() -> None:
    environ = {"SLURM_JOB_ID": "1", "SUBMITIT_FOLDER": "x", "SLURM_CONF": "c", "SBATCH_ACCOUNT": "a", "HOME": "h"}
    assert clean_environment(environ) == {"SLURM_CONF": "c", "SBATCH_ACCOUNT": "a", "HOME": "h"}
