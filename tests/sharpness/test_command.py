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

from hpclbfl.cli.app import app
from hpclbfl.core.errors import ConfigError, DataError, EnvironmentFault, RunFailed
from hpclbfl.core.jsonfile import write_json
from hpclbfl.runs.log.tables import save_tables
from hpclbfl.sharpness.command import choose_samples, run_sharpness
from hpclbfl.sharpness.options import Options
from hpclbfl.sharpness.store import COLUMNS, VERSION_1, read_sharpness
from hpclbfl.training.session import run_job
from tests.cli.test_app import hpclbfl
from tests.conftest import make_job, write_toy_set

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


@pytest.mark.slow
def test_json_and_file_agree(run: Path) -> None:
    found = answer(run, "--top", "2", "--lanczos", "12", "--vectors", "4", "--density")
    assert (found["step"], found["num_samples"], found["vectors"]) == (10, 24, 4)
    tables, attributes = read_sharpness(run / "sharpness.h5")
    rows = tables["eigenvalues"]
    assert rows["step"].tolist() == [10, 10]
    assert rows["index"].tolist() == [0, 1]
    for column in ("eigenvalue", "residual", "iterations", "has_settled"):
        assert rows[column].tolist() == [pair[column] for pair in found["eigenvalues"]]
    assert [pair["has_settled"] for pair in found["eigenvalues"]] == [True, True]
    for column in ("eigenvalue", "low", "high", "weight", "error"):
        assert tables["weights"][column].tolist() == [part[column] for part in found["spectrum"]]
    assert tables["weights"]["weight"].sum() == pytest.approx(1.0)
    # The residual bounds the distance to an eigenvalue, and so does Lanczos's, by another way.
    largest = max(found["spectrum"], key=lambda part: abs(part["eigenvalue"]))
    top = found["eigenvalues"][0]
    assert largest["low"] - top["residual"] <= top["eigenvalue"] <= largest["high"] + top["residual"]
    spectrum = tables["spectrum"]
    assert spectrum["vector"].tolist() == [vector for vector in range(4) for _ in range(12)]
    assert [spectrum["weight"][spectrum["vector"] == v].sum() for v in range(4)] == pytest.approx([1.0] * 4)
    # By hand: P times the first moment of each vector's quadrature, their mean and its standard error.
    moments = found["num_parameters"] * (spectrum["weight"] * spectrum["eigenvalue"]).reshape(4, 12).sum(1)
    assert found["trace"]["value"] == tables["trace"]["trace"][0] == pytest.approx(moments.mean())
    assert found["trace"]["error"] == tables["trace"]["error"][0] == pytest.approx(moments.std(ddof=1) / 2)
    density = tables["density"]
    assert np.trapezoid(density["density"], density["eigenvalue"]) == pytest.approx(1.0, abs=1e-3)
    assert (density["error"] >= 0).all() and density["error"].max() > 0
    assert yaml.safe_load(attributes["config"])["loss"] == {"name": "cross_entropy", "label_smoothing": 0.1}
    assert len(attributes["hash"]) == 10
    with h5py.File(run / "sharpness.h5") as file:
        assert file["eigenvalues"].attrs["unit.eigenvalue"] == "nat"
        assert file["eigenvalues"].attrs["unit.step"] == "step"
    assert [path.name for path in run.glob(".*")] == []


@pytest.mark.slow
def test_ten_vectors_unless_told_otherwise_and_one_has_no_error(run: Path) -> None:
    assert answer(run, "--lanczos", "2")["vectors"] == 10
    found = answer(run, "--lanczos", "3", "--vectors", "1")
    assert found["vectors"] == 1
    assert found["trace"]["error"] is None
    assert {part["error"] for part in found["spectrum"]} == {None}


@pytest.mark.slow
def test_more_vectors_begin_with_the_same_ones(run: Path) -> None:
    seen = []
    for vectors in ("2", "3"):
        answer(run, "--lanczos", "3", "--vectors", vectors)
        seen.append(read_sharpness(run / "sharpness.h5")[0]["spectrum"])
    np.testing.assert_array_equal(seen[0], seen[1][:6])


def test_a_warning_says_what_has_not_converged(run: Path) -> None:
    done = CliRunner().invoke(app, ["sharpness", str(run), "--json", "--samples", "24", "--iterations", "2"])
    assert done.exit_code == 0
    (pair,) = json.loads(done.stdout)["eigenvalues"]
    assert (pair["has_settled"], pair["iterations"]) == (False, 2)
    warning = f"warning: eigenvalue 0 has not converged: residual {pair['residual']:.2g} after 2 products; give more"
    assert warning in done.stderr
    assert read_sharpness(run / "sharpness.h5")[0]["eigenvalues"]["has_settled"].tolist() == [0]


def version_1(path: Path) -> None:
    """A file as the first version wrote it, of step 5 and the run's own experiment."""
    names = ("step", "index", "eigenvalue", "residual", "iterations", "num_samples", "seed")
    assert VERSION_1["eigenvalues"].names == names
    columns = {name: [c for c in COLUMNS[name] if c[0] in (dtype.names or ())] for name, dtype in VERSION_1.items()}
    rows = {name: np.ones(2, dtype) for name, dtype in VERSION_1.items()}
    for table in rows.values():
        table["step"] = 5
    attributes = read_sharpness(path)[1]
    path.unlink()
    save_tables(path, {name: (rows[name], columns[name]) for name in rows}, {**attributes, "schema_version": 1})


def test_a_file_of_the_first_version_is_read_and_kept(run: Path) -> None:
    answer(run)
    version_1(run / "sharpness.h5")
    tables, _ = read_sharpness(run / "sharpness.h5")
    assert tables["eigenvalues"]["has_settled"].tolist() == [-1, -1]
    assert tables["spectrum"][["vector", "weight"]].tolist() == [(0, 1.0)] * 2
    assert np.isnan(tables["density"]["error"]).all() and len(tables["weights"]) == len(tables["trace"]) == 0
    answer(run, "--lanczos", "2", "--vectors", "2")
    tables, attributes = read_sharpness(run / "sharpness.h5")
    assert attributes["schema_version"] == 2
    assert tables["eigenvalues"][["step", "has_settled"]].tolist() == [(5, -1), (5, -1), (10, 1)]
    assert tables["spectrum"]["step"].tolist() == [5] * 2 + [10] * 4


@pytest.mark.slow
def test_a_step_is_replaced_and_another_is_added(run: Path) -> None:
    answer(run, "--top", "2", "--lanczos", "3", "--vectors", "1")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_table_as_printed(run: Path) -> None:
    done = hpclbfl("sharpness", str(run), *QUICK, "--lanczos", "30", "--vectors", "3")
    assert done.returncode == 0, done.stderr
    tables = read_sharpness(run / "sharpness.h5")[0]
    value, trace = tables["eigenvalues"]["eigenvalue"][0], tables["trace"][0]
    words = done.stdout.split()
    assert words[words.index(f"{value:.5g}") + 3] == "yes"
    assert "step 10: loss over 24 of 96 training samples" in done.stdout
    assert "Spectrum, 3 start vectors of 30 Lanczos steps" in done.stdout
    assert f"trace {trace['trace']:.4g} ± {trace['error']:.2g}" in done.stdout
    last = tables["weights"][-1]
    numbers = [f"{last[name]:.5g}" for name in ("eigenvalue", "low", "high")]
    assert " ".join([*numbers, f"{last['weight']:.3g}", f"{last['error']:.1g}"]) in " ".join(words)
    assert str(run / "sharpness.h5") in done.stdout


@pytest.mark.slow
def test_no_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "config.yaml").write_text(make_job(toy_set).to_yaml())
    for words in ((), ("-np", "2")):
        done = hpclbfl("sharpness", str(tmp_path), *words)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            f"hpclbfl: error: {tmp_path}: holds no checkpoint and no finished model; let the run finish, or set "
            "checkpoint.every_steps"
        ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--density"], "--density: a density is drawn from the spectrum; give --lanczos M, too"),
        (["--vectors", "3"], "--vectors: a spectrum is averaged over start vectors; give --lanczos M, too"),
    ],
)
def test_options_of_a_spectrum_need_one(run: Path, words: list[str], line: str) -> None:
    for ranks in ((), ("-np", "2")):
        done = hpclbfl("sharpness", str(run), *words, *ranks)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [f"hpclbfl: error: {line}"]


def test_vectors_that_memory_does_not_hold_are_refused(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpclbfl.training.footprint.free_memory", lambda: 10**7)
    # 20 of the basis, two of the eigenvalue and four of work, of 74,900 parameters and 8 bytes: 15.6 MB.
    code, line = failure(run, Options(samples=8), capfd)
    assert code == EnvironmentFault.exit_code
    assert line == (
        "hpclbfl: error: sharpness: 26 vectors as long as the net has parameters need about 15.6 MB of memory, 9.2 MB "
        "are free, which 15 fit into: give a smaller --basis, --lanczos or --top"
    )
    run_sharpness(run, Options(samples=8, basis=6, tolerance=0.5))
    assert len(read_sharpness(run / "sharpness.h5")[0]["eigenvalues"]) == 1


def test_more_eigenvalues_than_parameters_are_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, line = failure(run, Options(samples=8, top=10**8), capfd)
    assert code == ConfigError.exit_code
    assert "--top 100000000: the Hessian has" in line


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
    words = ("--samples", "17", "--iterations", "12", "--top", "2", "--lanczos", "6", "--vectors", "2", "--seed", "2")
    alone = answer(run, *words)
    assert alone["step"] == 5
    (run / "sharpness.h5").unlink()
    done = hpclbfl("sharpness", str(run), "-np", "2", "--json", *QUICK, *words)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)
    for first, second in zip(alone["eigenvalues"], together["eigenvalues"], strict=True):
        assert second["eigenvalue"] == pytest.approx(first["eigenvalue"], rel=1e-6)
        assert second["residual"] == pytest.approx(first["residual"], rel=1e-2)
    assert [p["has_settled"] for p in together["eigenvalues"]] == [p["has_settled"] for p in alone["eigenvalues"]]
    for column, atol in (("eigenvalue", 1e-6), ("weight", 1e-6), ("error", 1e-6)):
        found = ([part[column] for part in answered["spectrum"]] for answered in (together, alone))
        np.testing.assert_allclose(*found, rtol=1e-6, atol=atol)
    assert together["trace"]["value"] == pytest.approx(alone["trace"]["value"], rel=1e-6)
    assert len(read_sharpness(run / "sharpness.h5")[0]["eigenvalues"]) == 2
