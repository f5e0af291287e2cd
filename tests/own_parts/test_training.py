"""The example's parts train as the package's own do: on any number of ranks, killed and resumed, their files edited."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpclbfl.config.job import load_job
from hpclbfl.config.own_parts import part_texts
from hpclbfl.core.errors import ConfigError
from hpclbfl.planner.runner import run_probe
from hpclbfl.runs.log.reader import read_run
from tests.own_parts.conftest import Workplace
from tests.training.test_checkpoint import untimed

SHORT = (
    *("precision=float64", "stop={steps: 24}", "evaluate={every_steps: 12}", "checkpoint={every_steps: 5}"),
    *("data.limit=400", "batching.local_batch_size=8"),
)
KILLING = """

class Killing(Saw):
    def __call__(self, epoch: float) -> float:
        import os
        if epoch >= float(os.environ.get("KILL_FROM_EPOCH", "inf")) and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            os.kill(os.getpid(), 9)
        return super().__call__(epoch)
"""


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "model.pt")
    return found


def is_equal(run: Path, other: Path) -> bool:
    one, two = weights(run), weights(other)
    return one.keys() == two.keys() and all(torch.equal(two[key], value) for key, value in one.items())


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["{kind: bsp}", "{kind: fedavg, local_steps: 4, optimizer_state: average}"])
def test_killed_and_resumed_with_its_files_edited_it_is_bit_identical(workplace: Workplace, sync: str) -> None:
    text = (workplace / "schedules.py").read_text()
    (workplace / "schedules.py").write_text(text + KILLING)
    words = ("launch", "-np", "2", "job.yaml", *SHORT, f"sync={sync}", "schedule.kind=schedules.py:Killing")
    workplace.run(*words, "--run-dir", "whole")
    killed = workplace.call(*words, "--run-dir", "cut", KILL_FROM_EPOCH="1.2")
    assert killed.returncode == 137 and "rank 1" in killed.stderr
    steps = sorted(path.name for path in (workplace / "cut" / "checkpoints").glob("step-*"))
    assert steps == ["step-000000010", "step-000000015"]
    workplace.edit_all()
    said = workplace.run(*words, "--run-dir", "cut")
    place = workplace.folder
    for key, name, what in (
        ("model.name", "nets.py", "has changed since the run began"),
        ("optimizer.name", "optimizers.py", "has changed since the run began"),
        ("partition.kind", "partitions.py", "has changed since the run began"),
        ("schedule.kind", "schedules.py", "is gone"),
    ):
        assert (
            f"note: {key}: {place / name} {what}: the run goes on with its copy in cut; '--resume never' starts anew "
            "with the file\n"
        ) in said
    assert said.count("note: ") == 4 and "resumes after step 15" in said
    assert untimed(read_run(workplace / "cut")) == untimed(read_run(workplace / "whole"))
    assert is_equal(workplace / "cut", workplace / "whole")


@pytest.mark.mpi
@pytest.mark.parametrize(
    "optimizer", ["{name: optimizers.py:Lion, lr: 0.003}", "{name: optimizers.py:SignSgd, lr: 0.001, momentum: 0.5}"]
)
def test_two_ranks_do_what_one_does(workplace: Workplace, optimizer: str) -> None:
    words = ("job.yaml", *SHORT, f"optimizer={optimizer}")
    workplace.run("train", *words, "--run-dir", "one")
    workplace.run("launch", "-np", "2", *words, "--run-dir", "two")
    losses = [read_run(workplace / run).tables["steps"] for run in ("one", "two")]
    rows = [np.sort(table[["step", "client", "loss"]], order=["step", "client"]) for table in losses]
    assert len(rows[0]) == 24 * 4
    np.testing.assert_allclose(rows[1]["loss"], rows[0]["loss"], rtol=1e-6)


@pytest.mark.slow
def test_the_same_command_goes_on_and_an_edit_is_another_experiment(workplace: Workplace) -> None:
    words = ("train", "job.yaml", *SHORT)
    workplace.run(*words)
    (first,) = (workplace / "runs").iterdir()
    assert "already done" in workplace.run(*words)
    text = (workplace / "nets.py").read_text()
    (workplace / "nets.py").write_text(text + "# edited\n")
    workplace.run(*words)
    assert len(list((workplace / "runs").iterdir())) == 2
    # As it was, it is the first one again.
    (workplace / "nets.py").write_text(text)
    assert f"{Path('runs') / first.name}: already done" in workplace.run(*words)


@pytest.mark.slow
def test_never_takes_the_edited_file_and_sets_the_copy_aside(workplace: Workplace) -> None:
    words = ("train", "job.yaml", *SHORT, "stop.seconds=1000000", "--run-dir", "run")
    workplace.run(*words)
    (before,) = (workplace / "run" / "parts").glob("*/nets.py")
    (workplace / "nets.py").write_text((workplace / "nets.py").read_text().replace("nn.ReLU()", "nn.Tanh()"))
    said = workplace.run(*words)
    assert "nets.py has changed since the run began" in said and "already done" in said
    assert "note:" not in workplace.run(*words, "--resume", "never")
    (now,) = (workplace / "run" / "parts").glob("*/nets.py")
    assert "nn.Tanh()" in now.read_text() and now.parent.name != before.parent.name
    (aside,) = (workplace / "run" / "earlier" / "000" / "parts").glob("*/nets.py")
    assert "nn.Tanh()" not in aside.read_text() and aside.parent.name == before.parent.name


@pytest.mark.slow
def test_another_class_or_key_is_another_experiment_in_one_line(workplace: Workplace) -> None:
    words = ("train", "job.yaml", *SHORT, "--run-dir", "run")
    workplace.run(*words)
    digits = next((workplace / "run" / "parts").glob("*/nets.py")).parent.name
    name = f"nets.py@{digits}"
    for override, told in (
        (
            "model={name: nets.py:Linear}",
            f"model.dropout was 0.1, now None; model.name was {name}:WideNet, now {name}:Linear; "
            "model.width was 6, now None",
        ),
        ("model.width=7", "model.width was 6, now 7"),
    ):
        done = workplace.call(*words, override)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == (
            f"hpclbfl: error: step 0: run: holds another experiment: {told}; give another --run-dir, or "
            "'--resume never', which sets it aside"
        )


@pytest.mark.slow
def test_a_damaged_copy_is_not_run(workplace: Workplace) -> None:
    words = ("train", "job.yaml", *SHORT, "--run-dir", "run")
    workplace.run(*words)
    (copy,) = (workplace / "run" / "parts").glob("*/nets.py")
    copy.write_text(copy.read_text() + "\n")
    # The user's file is the same still, and stands in for it.
    workplace.run(*words, "stop.steps=26")
    assert copy.read_text() == (workplace / "nets.py").read_text()
    copy.write_text(copy.read_text() + "\n")
    (workplace / "nets.py").write_text("")
    name = copy.relative_to(workplace.folder)
    line = (
        f"model.name: {name}: is damaged: its content does not match its checksum; bring back the copy, or name the "
        "file itself"
    )
    calls = {"job.yaml": words, "run/config.yaml": ("sharpness", "run", "--samples", "8")}
    for source, call in calls.items():
        done = workplace.call(*call)
        assert (done.returncode, done.stderr) == (2, f"hpclbfl: error: {source}: {line}\n")


@pytest.mark.slow
def test_the_run_folder_has_all_that_its_net_needs(workplace: Workplace) -> None:
    workplace.run("train", "job.yaml", *SHORT, "--run-dir", "run")
    (workplace / "run").rename(workplace / "moved")
    workplace.edit_all()
    assert "964 parameters" in workplace.run("sharpness", "moved", "--samples", "16", "--iterations", "2")
    # Its config.yaml is a job file, too.
    said = workplace.run("train", "moved/config.yaml", "stop.steps=30", "--run-dir", "moved")
    assert "resumes after step 24" in said and "note" not in said


@pytest.mark.slow
def test_provenance_names_file_hash_and_copy(workplace: Workplace) -> None:
    import hashlib

    workplace.run("train", "job.yaml", *SHORT, "--run-dir", "run")
    found = json.loads((workplace / "run" / "attempts" / "000" / "provenance.json").read_text())["own_parts"]
    assert [part["key"] for part in found] == ["partition.kind", "model.name", "optimizer.name", "schedule.kind"]
    sha256 = hashlib.sha256((workplace / "nets.py").read_bytes()).hexdigest()
    assert found[1] == {
        "key": "model.name",
        "name": "nets.py:WideNet",
        "sha256": sha256,
        "version": None,
        "copy": f"parts/{sha256[:12]}/nets.py",
    }
    assert (workplace / "run" / found[1]["copy"]).read_bytes() == (workplace / "nets.py").read_bytes()


def test_an_error_is_one_line_and_debug_shows_where_it_came_from(workplace: Workplace) -> None:
    (workplace / "nets.py").write_text("import no_such_module\n")
    line = (
        f"hpclbfl: error: job.yaml: model.name: {workplace / 'nets.py'}:1: cannot be imported: ModuleNotFoundError: No "
        "module named 'no_such_module'; a part is one file: put what it needs into it, or install that as a package\n"
    )
    done = workplace.call("train", "job.yaml")
    assert (done.returncode, done.stderr) == (2, line)
    done = workplace.call("train", "job.yaml", "--debug")
    assert done.returncode == 2 and done.stderr.endswith(line) and "    import no_such_module\n" in done.stderr


def test_what_lies_beside_a_part_is_not_found_by_accident(workplace: Workplace) -> None:
    (workplace / "nets.py").write_text("from pathlib import Path\n(Path(__file__).parent / 'job.yaml').read_text()\n")
    done = workplace.call("train", "job.yaml")
    assert done.returncode == 2 and "nets.py:2: cannot be imported: FileNotFoundError: " in done.stderr


@pytest.mark.slow
def test_a_probe_of_the_planner_gets_the_net_from_its_request(workplace: Workplace) -> None:
    request = {"kind": "peak", "batch": 4, "num_steps": 1, "num_clients": 1, "limit_bytes": None}
    job = load_job(workplace / "job.yaml", ["clients=1"])
    values = job.model_dump(mode="json")
    common = {"job": values, "parts": part_texts(values), "local_rank": 0, "local_size": 1}
    workplace.edit_all()
    # In a process of its own, which has read nothing.
    assert (run_probe({**common, **request}).answer or {})["peak_bytes"] > 0
    with pytest.raises(ConfigError, match=r"model\.name: there is no folder with a copy of nets\.py"):
        run_probe({**common, **request, "parts": []})
