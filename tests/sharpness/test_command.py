"""`hpclbfl sharpness` on real runs: table, JSON, sharpness.h5, errors; and on two ranks."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hpclbfl.cli import app
from hpclbfl.core.jsonfile import write_json
from hpclbfl.errors import ConfigError, DataError, RunFailed
from hpclbfl.run import run_job
from hpclbfl.sharpness.command import Options, choose_samples, run_sharpness
from hpclbfl.sharpness.store import read_sharpness
from tests.conftest import make_job, write_toy_set
from tests.test_cli import hpclbfl

QUICK = ("--samples", "24", "--tolerance", "0.05", "--iterations", "25", "--batch", "16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    run_job(make_job(toy_set, stop={"steps": 10}, checkpoint={"every_steps": 4}, loss={"label_smoothing": 0.1}), run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def answer(run: Path, *words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["sharpness", str(run), "--json", *QUICK, *words], catch_exceptions=False)
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_json_and_file_agree(run: Path) -> None:
    found = answer(run, "--top", "2", "--lanczos", "12", "--density")
    assert (found["step"], found["num_samples"]) == (10, 24)
    tables, attributes = read_sharpness(run / "sharpness.h5")
    rows = tables["eigenvalues"]
    assert rows["step"].tolist() == [10, 10]
    assert rows["index"].tolist() == [0, 1]
    assert rows["eigenvalue"].tolist() == [pair["eigenvalue"] for pair in found["eigenvalues"]]
    assert rows["residual"].tolist() == [pair["residual"] for pair in found["eigenvalues"]]
    # The residual bounds the distance to an eigenvalue, and so does Lanczos's, by another way.
    largest = max(found["spectrum"], key=lambda ritz: abs(ritz["eigenvalue"]))
    bound = found["eigenvalues"][0]["residual"] + largest["residual"]
    assert abs(largest["eigenvalue"] - found["eigenvalues"][0]["eigenvalue"]) <= bound
    assert len(tables["spectrum"]) == 12
    assert tables["spectrum"]["weight"].sum() == pytest.approx(1.0)
    assert np.trapezoid(tables["density"]["density"], tables["density"]["eigenvalue"]) == pytest.approx(1.0, abs=1e-3)
    assert yaml.safe_load(attributes["config"])["loss"] == {"label_smoothing": 0.1}
    assert len(attributes["hash"]) == 10
    with h5py.File(run / "sharpness.h5") as file:
        assert file["eigenvalues"].attrs["unit.eigenvalue"] == "nat"
        assert file["eigenvalues"].attrs["unit.step"] == "step"
    assert [path.name for path in run.glob(".*")] == []


def test_a_step_is_replaced_and_another_is_added(run: Path) -> None:
    answer(run, "--top", "2", "--lanczos", "3")
    (run / "DONE.json").rename(run / "done")
    (run / "checkpoints" / "step-000000010").rename(run / "last")
    answer(run)
    tables, _ = read_sharpness(run / "sharpness.h5")
    assert tables["eigenvalues"]["step"].tolist() == [8, 10, 10]
    assert tables["spectrum"]["step"].tolist() == [10, 10, 10]
    (run / "done").rename(run / "DONE.json")
    answer(run)
    tables, _ = read_sharpness(run / "sharpness.h5")
    assert tables["eigenvalues"]["step"].tolist() == [8, 10]
    assert len(tables["spectrum"]) == 0


def test_rows_of_another_experiment_in_the_folder_go(run: Path) -> None:
    (run / "DONE.json").rename(run / "done")
    (run / "checkpoints" / "step-000000010").rename(run / "last")
    answer(run)
    (run / "done").rename(run / "DONE.json")
    provenance = run / "attempts" / "000" / "provenance.json"
    write_json(provenance, {**json.loads(provenance.read_text()), "hash": "0123456789"})
    answer(run)
    assert read_sharpness(run / "sharpness.h5")[0]["eigenvalues"]["step"].tolist() == [10]


def test_samples_are_distinct_and_chosen_by_the_seed() -> None:
    chosen = choose_samples(1000, 100, seed=0)
    assert len(set(chosen.tolist())) == 100
    assert (np.diff(chosen) > 0).all() and chosen[-1] < 1000
    assert chosen.tolist() == choose_samples(1000, 100, seed=0).tolist()
    assert chosen.tolist() != choose_samples(1000, 100, seed=1).tolist()
    # A larger set holds the smaller one.
    assert set(chosen) <= set(choose_samples(1000, 200, seed=0))
    assert choose_samples(5, 100, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_batches_do_not_matter(run: Path) -> None:
    values = [answer(run, "--batch", batch)["eigenvalues"][0]["eigenvalue"] for batch in ("7", "64")]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_another_seed_takes_other_images(run: Path) -> None:
    values = [answer(run, "--seed", seed)["eigenvalues"][0]["eigenvalue"] for seed in ("0", "1")]
    assert abs(values[0] - values[1]) > 1e-3 * abs(values[0])


def test_the_table_as_printed(run: Path) -> None:
    done = hpclbfl("sharpness", str(run), *QUICK, "--lanczos", "12")
    assert done.returncode == 0, done.stderr
    value = read_sharpness(run / "sharpness.h5")[0]["eigenvalues"]["eigenvalue"][0]
    assert f"{value:.5g}" in done.stdout
    assert "step 10: loss over 24 of 96 training images" in done.stdout
    assert "4 between" in done.stdout
    assert str(run / "sharpness.h5") in done.stdout


def test_no_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "config.yaml").write_text(make_job(toy_set).to_yaml())
    for words in ((), ("-np", "2")):
        done = hpclbfl("sharpness", str(tmp_path), *words)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            f"hpclbfl: error: {tmp_path}: holds no checkpoint and no finished model; let the run finish, or set "
            "checkpoint.every_steps"
        ]


def test_a_density_needs_a_spectrum(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--density: .* give --lanczos M, too"):
        run_sharpness(run, Options(with_density=True))


def failure(run: Path, options: Options, capfd: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_sharpness(run, options)
    return ended.value.code, capfd.readouterr().err.splitlines()[-1]


def test_other_data_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_toy_set(tmp_path / "toy.h5", num_train=24)
    run_job(make_job(data, stop={"steps": 1}), tmp_path / "run")
    write_toy_set(tmp_path / "toy.h5", num_train=28)
    code, line = failure(tmp_path / "run", Options(), capfd)
    assert code == DataError.exit_code
    assert "toy.h5: no longer holds the data" in line


def test_a_damaged_file_is_named(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "sharpness.h5").write_bytes(b"torn")
    code, line = failure(run, Options(samples=8, iterations=1), capfd)
    assert code == DataError.exit_code
    assert "sharpness.h5: is torn, HDF5 cannot open it (" in line and "; delete it and run" in line


def test_a_net_that_has_diverged_has_no_sharpness(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    state = torch.load(run / "model.pt")
    torch.save({k: v * float("nan") if v.is_floating_point() else v for k, v in state.items()}, run / "model.pt")
    done = json.loads((run / "DONE.json").read_text())
    write_json(run / "DONE.json", {**done, "files": {"model.pt": sha256((run / "model.pt").read_bytes()).hexdigest()}})
    code, line = failure(run, Options(samples=8), capfd)
    assert code == RunFailed.exit_code
    assert "the Hessian is not finite" in line
    assert not (run / "sharpness.h5").exists()


@pytest.mark.mpi
def test_two_ranks_are_one_rank(tmp_path: Path, toy_set: Path) -> None:
    # Replicas of four clients, one step after an averaging: the ranks share the averaging, too.
    job = make_job(toy_set, sync={"kind": "fedavg", "local_steps": 4}, stop={"steps": 6}, checkpoint={"every_steps": 5})
    run_job(job, run := tmp_path / "run")
    (run / "DONE.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-000000006")
    # An odd number of images, which two ranks cannot share evenly.
    words = ("--samples", "17", "--iterations", "6", "--top", "2", "--lanczos", "6", "--seed", "2")
    alone = answer(run, *words)
    assert alone["step"] == 5
    (run / "sharpness.h5").unlink()
    done = hpclbfl("sharpness", str(run), "-np", "2", "--json", *QUICK, *words)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)
    for first, second in zip(alone["eigenvalues"], together["eigenvalues"], strict=True):
        assert second["eigenvalue"] == pytest.approx(first["eigenvalue"], rel=1e-6)
        assert second["residual"] == pytest.approx(first["residual"], rel=1e-2)
    np.testing.assert_allclose(
        [ritz["eigenvalue"] for ritz in together["spectrum"]],
        [ritz["eigenvalue"] for ritz in alone["spectrum"]],
        rtol=1e-6,
    )
    assert len(read_sharpness(run / "sharpness.h5")[0]["eigenvalues"]) == 2
