"""A whole plan of a tiny job: probes in this process, files, table, picture; and on two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpclbfl.batching.plan_file import Plan, check_plan, load_plan
from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import TEACHERS
from hpclbfl.config.sections import EmulateConfig, GradientsConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.memory import free_memory
from hpclbfl.gradients.gradient import Layout
from hpclbfl.gradients.teacher.factors import Factors
from hpclbfl.launch.mpirun import run_mpirun
from hpclbfl.planner.command import run_plan
from hpclbfl.planner.measure import Bench
from hpclbfl.planner.recommend import predictions
from hpclbfl.planner.runner import Outcome, Probe
from hpclbfl.planner.store import ProbeRow, errors_above, plain_line_errors, prediction_errors
from hpclbfl.planner.study import Options
from tests.planner.conftest import in_process, planned_job, replay, with_peaks, with_times

TINY = Options(budget_s=0.5, max_step_s=0.2, repetitions=1)


@pytest.fixture(scope="module")
def answers() -> dict[str, Outcome]:
    """Filled by the first plan."""
    return {}


@pytest.fixture(scope="module")
def planned(
    larger_set: Path, answers: dict[str, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Path]:
    folder, record = tmp_path_factory.mktemp("plan"), replay(answers)

    def probe(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
        ask = in_process if request["kind"] == "peak" else record
        return ask(request, limit_bytes, plain_allocator)

    return run_plan(planned_job(larger_set), TINY, folder, folder / "plan.svg", probe=probe), folder


def test_the_plan_reads_back_and_fits_the_job(planned: tuple[Plan, Path], larger_set: Path) -> None:
    plan, folder = planned
    loaded = load_plan(folder / "plan.yaml")
    assert loaded.ranks == plan.ranks
    check_plan(loaded, planned_job(larger_set), 1)
    with pytest.raises(ConfigError, match=r"made for model.name resnet8, this job has resnet20"):
        check_plan(loaded, planned_job(larger_set, model={"name": "resnet20"}), 1)


def test_what_it_says_is_possible(planned: tuple[Plan, Path]) -> None:
    plan, _ = planned
    (rank,) = plan.ranks
    assert plan.num_train == 1200
    assert rank.local_batch_size == plan.global_batch_size == 16
    assert rank.best_batch is not None
    assert 2 <= rank.best_batch <= rank.max_batch <= 1200
    assert rank.is_verified
    assert rank.t_per_sample_s > 0
    assert rank.seconds(64) > rank.seconds(16) > 0
    memory = rank.memory
    assert memory is not None
    assert memory.limit_bytes <= free_memory() * 1.5
    assert memory.model_bytes == pytest.approx(memory.gradient_bytes, rel=0.05)
    assert memory.optimizer_bytes == pytest.approx(memory.gradient_bytes, rel=0.05)
    assert memory.activation.per_sample > 16 * 16 * 16 * 4 * 3


def test_every_probe_stands_beside_its_prediction(planned: tuple[Plan, Path]) -> None:
    plan, folder = planned
    with h5py.File(folder / "plan.h5") as file:
        table = file["probes"][:]
        assert dict(file["probes"].attrs)["unit.batch"] == "sample"
        assert file.attrs["num_train"] == 1200
    assert set(table["model"]) == {b"resnet8"}
    assert set(table["data"]) == {b"larger 16 px"}
    assert set(table["quantity"]) == {
        b"t_c_s",
        b"t_mov_s",
        b"t_local_s",
        b"m_act_bytes",
        b"m_batch_bytes",
        b"m_total_bytes",
    }
    assert set(table["role"]) == {b"fit", b"held_out"}
    assert (table["measured"] > 0).all()
    loaded = table[table["quantity"] == b"m_batch_bytes"]
    assert set(loaded["batch"][loaded["role"] == b"fit"]) == {32, 128, 1024}
    # In this process one small image may lie in memory that was there before.
    assert set(loaded["batch"][loaded["role"] == b"held_out"]) - {1} == {64, 512}
    assert plan.fits["m_act_bytes"]["worst"] < 0.01


def test_a_picture_is_drawn(planned: tuple[Plan, Path]) -> None:
    _, folder = planned
    text = (folder / "plan.svg").read_text()
    assert all(words in text for words in ("epoch of one rank alone", "M_act", "held out", "resnet8 on larger"))


@pytest.fixture(scope="module")
def device(planned: tuple[Plan, Path], answers: dict[str, Outcome]) -> Probe:
    """A device whose speed and memory are known."""
    return with_peaks(with_times(replay(answers), 0.02, 5e-4), 500e6, 1e6)


def test_json_for_machines(larger_set: Path, tmp_path: Path, device: Probe, capsys: pytest.CaptureFixture[str]) -> None:
    job = planned_job(larger_set, emulate={"slowdown": [4.0], "memory_limit": 99.0})
    plan = run_plan(job, TINY, tmp_path / "p.yaml", as_json=True, probe=device)
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == [str(tmp_path / "p.yaml"), str(tmp_path / "p.h5")]
    assert shown["ranks"][0]["max_batch"] == plan.ranks[0].max_batch
    assert shown["predictions"][0]["num_ranks"] == 1
    plain = shown["plain_line_errors"]["t_c_s"]
    assert 0 <= plain["least"] <= plain["worst"]
    # Of all timed batch sizes, not of those alone that were held out.
    assert plain["num_sizes"] > shown["fits"]["t_c_s"]["num_sizes"] > 0
    assert plan.ranks[0].slowdown == 4.0
    assert plan.ranks[0].memory is not None
    assert plan.ranks[0].memory.limit_bytes == 99 * 10**9


def test_what_the_fit_does_not_foresee_is_a_warning(
    larger_set: Path, tmp_path: Path, device: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
        if request["kind"] == "batches":
            # In whole pages: the first one is a page too much, which is no error of the fit.
            page = 4096
            rows = [(batch, r, page * (1 + batch) if batch == 1 else page * batch) for batch, r in request["batches"]]
            return Outcome({"rows": rows})
        outcome = device(request, limit_bytes, plain_allocator)
        if request["kind"] != "times" or outcome.answer is None:
            return outcome
        # A line in all that is fitted; held out, 3 times as much at one size.
        held_out = outcome.answer["held_out"]
        rows = [
            (b, k, 0.001 * b, (0.05 + 0.004 * b) * (3 if b == held_out[0] else 1))
            for b in (*outcome.answer["fitted"], *held_out)
            for k in range(3)
        ]
        return Outcome({**outcome.answer, "rows": rows})

    plan = run_plan(planned_job(larger_set), TINY, tmp_path, as_json=True, probe=probe)
    t_c, t_local = plan.warnings
    assert t_c == "t_c_s 67 %" and t_local.startswith("t_local_s 6")
    assert load_plan(tmp_path / "plan.yaml").warnings == plan.warnings
    shown = capsys.readouterr()
    assert json.loads(shown.out)["warnings"] == list(plan.warnings)
    assert [line for line in shown.err.splitlines() if "warning" in line] == [
        f"warning: held-out errors above 20 %: {t_c}, {t_local}; plan again while nothing else runs here, and without "
        "--quick"
    ]


def test_errors_that_are_worth_a_warning() -> None:
    rows = [
        ProbeRow("t_c_s", 8, 0, 1.0, 5.0, "fit"),
        ProbeRow("t_c_s", 12, 0, 1.0, 1.2, "held_out"),
        ProbeRow("t_mov_s", 12, 0, 1.0, 1.21, "held_out"),
        ProbeRow("m_batch_bytes", 1, 0, 4096.0, 1000.0, "held_out"),
        ProbeRow("m_batch_bytes", 64, 0, 1e6, 2e6, "held_out"),
    ]
    assert errors_above(0.2, rows) == ("t_mov_s 21 %", "m_batch_bytes 100 %")


def test_slow_ranks_take_as_many_times_longer(larger_set: Path, tmp_path: Path, device: Probe) -> None:
    job = planned_job(larger_set)
    usual = run_plan(job, TINY, tmp_path, probe=device).ranks[0]
    slowed = job.model_copy(update={"emulate": EmulateConfig(slowdown=(3.0,))})
    slow = run_plan(slowed, TINY, tmp_path, probe=device).ranks[0]
    assert slow.t_per_sample_s == pytest.approx(3 * usual.t_per_sample_s)
    assert slow.t_fixed_s == pytest.approx(3 * usual.t_fixed_s)
    # Its steps are long because it pretends; they are tried all the same.
    assert slow.max_batch == usual.max_batch


def test_several_clients_on_a_rank(larger_set: Path, tmp_path: Path, device: Probe) -> None:
    job = planned_job(larger_set, clients=3, batching={"local_batch_size": 20})
    plan = run_plan(job, TINY, tmp_path, probe=device)
    (rank,) = plan.ranks
    assert (rank.num_clients, rank.local_batch_size, plan.global_batch_size) == (3, 20, 60)
    # They run in turn.
    assert predictions(plan)[0]["t_step_s"] == pytest.approx(3 * rank.seconds(20))


def test_a_limit_that_is_hit(
    larger_set: Path, tmp_path: Path, device: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    job = planned_job(larger_set, batching={"local_batch_size": 900})
    plan = run_plan(job, Options(10**9, budget_s=0.5, repetitions=1), tmp_path, probe=device)
    (rank,) = plan.ranks
    assert rank.bound == "memory"
    assert rank.is_verified
    assert rank.max_batch == 420
    assert rank.local_batch_size is None
    shown = capsys.readouterr()
    assert f"a global batch of 900 does not fit: the ranks take {rank.max_batch} at most" in shown.out
    assert "running the largest batch" in shown.err
    assert rank.failed_batch is not None
    assert 500 < rank.failed_batch < 560
    assert f"420 was run, {rank.failed_batch} ran out of memory" in " ".join(shown.out.split())
    assert "Errors of one straight line at the batch sizes that it was fitted to" in " ".join(shown.out.split())
    with h5py.File(tmp_path / "plan.h5") as file:
        table = file["probes"][:]
    assert np.isnan(table["measured"][table["role"] == b"failed"]).all()


def test_too_little_memory_is_one_line(
    larger_set: Path, tmp_path: Path, device: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_plan(planned_job(larger_set), Options(4 * 10**8, budget_s=0.5), tmp_path, probe=device)
    assert caught.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "hpclbfl: error: memory: not even a batch of 2 fits into the limit"


def test_components_of_a_federated_client(larger_set: Path) -> None:
    shared = Bench(planned_job(larger_set), 0, 1).account(8)
    federated = planned_job(larger_set, sync={"kind": "fedavg", "local_steps": 3}, optimizer={"name": "adam"})
    local = Bench(federated, 0, 1, num_clients=3).account(8)
    # The average, and three clients with a net and an optimizer each.
    assert local["model"] == pytest.approx(4 * shared["model"], rel=0.02)
    assert local["optimizer"] == pytest.approx(3 * 2 * shared["optimizer"], rel=0.02)
    assert local["gradient"] == pytest.approx(shared["gradient"], rel=0.01)
    assert local["activation"] >= shared["activation"]


def test_errors_are_of_held_out_sizes_alone() -> None:
    rows = [
        ProbeRow("t_c_s", 8, 0, 1.0, 5.0, "fit"),
        *(ProbeRow("t_c_s", 12, k, measured, 1.1, "held_out") for k, measured in enumerate((0.9, 1.0, 7.0))),
        ProbeRow("t_c_s", 24, 0, 2.0, 1.0, "held_out"),
    ]
    (found,) = prediction_errors(rows)
    assert (found.quantity, found.num_sizes) == ("t_c_s", 2)
    assert found.worst == pytest.approx(0.5)
    assert found.median == pytest.approx(0.3)


def test_errors_of_a_plain_line_are_of_the_sizes_it_was_fitted_to() -> None:
    # On rank 0 the line through the medians is 1.5 batch - 2/3; on rank 1, whose points lie on one, it errs nowhere.
    measured = {1: (1.0, 0.5, 9.0), 2: (2.0,), 3: (4.0,)}
    rows = [ProbeRow("t_c_s", b, k, s, 99.0, "fit") for b, found in measured.items() for k, s in enumerate(found)]
    (found,) = plain_line_errors(rows)
    assert (found.quantity, found.num_sizes) == ("t_c_s", 3)
    assert (found.least, found.worst) == (pytest.approx(1 / 24), pytest.approx(1 / 6))
    rows += [ProbeRow("t_c_s", b, 0, 2.0 * b, 99.0, "held_out", 1) for b in (1, 2, 3)]
    (found,) = plain_line_errors(rows)
    assert (found.least, found.worst, found.num_sizes) == (pytest.approx(0, abs=1e-9), pytest.approx(1 / 6), 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory-limit", "much"], "memory limit 'much': write a size such as 2GB or 512MiB"),
        (["--plot", "plan.pdf"], "plan.pdf: a plot is a .png or an .svg"),
        (["modle.name=x"], "unknown key 'modle'"),
        (["-np", "2", "clients=3", "batching={local_batch_size: [1, 2]}"], "lists 2 sizes for 3 clients"),
    ],
)
def test_slips_of_the_pen_are_one_line(larger_set: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "job.yaml").write_text(planned_job(larger_set).to_yaml())
    command = [sys.executable, "-m", "hpclbfl", "plan", "job.yaml", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.mpi
@pytest.mark.alone
def test_two_unlike_ranks(larger_set: Path, tmp_path: Path) -> None:
    job = planned_job(
        larger_set, clients=2, batching={"global_batch_size": 64}, emulate={"slowdown": [1.0, 3.0], "bandwidth": 5.0}
    )
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    program = Path(__file__).with_name("plan_program.py")
    assert run_mpirun(2, [sys.executable, str(program), str(tmp_path / "job.yaml"), str(tmp_path)]) == 0
    plan = load_plan(tmp_path / "plan.yaml")
    fast, slow = plan.ranks
    assert (fast.local_batch_size or 0) + (slow.local_batch_size or 0) == 64
    assert (fast.local_batch_size or 0) > (slow.local_batch_size or 0)
    assert slow.slowdown == 3.0
    assert plan.network is not None
    assert plan.network.num_ranks == 2
    # Never faster than the emulated links.
    assert plan.network.bandwidth_bytes_per_s < 7e6
    with h5py.File(tmp_path / "plan.h5") as file:
        table = file["probes"][:]
    assert {b"t_sync_s", b"t_step_s"} <= set(table["quantity"])
    assert set(table["rank"]) == {-1, 0, 1}
    assert set(table["size_bytes"][table["quantity"] != b"t_sync_s"]) == {0}


def test_what_a_teacher_keeps_is_counted_as_gradients(larger_set: Path) -> None:
    """Of ten clients, one here: 20 residuals in factors, their inner products and norms, and the client's gradient."""
    job = planned_job(larger_set)
    taught = job.model_copy(
        update={
            "clients": 10,
            "gradients": GradientsConfig.model_validate(
                {"teacher": component_config(TEACHERS, {"kind": "residual", "small_batch": 4}, "a test", "teacher")}
            ),
        }
    )
    plain, more = Bench(job, 0, 1), Bench(taught, 0, 1)
    layout = Layout.of(plain.state.mean.module.named_parameters())
    width = Factors(layout, 2).width
    item = layout.dtype.itemsize
    expected = layout.size * item + 20 * width * item + (20 * 20 + 20) * 8
    assert more.account(8)["gradient"] - plain.account(8)["gradient"] == expected
