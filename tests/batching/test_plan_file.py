"""plan.yaml: a round trip, and plans for something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpclbfl.batching.plan_file import (
    LineFit,
    MemoryPlan,
    NetworkPlan,
    Plan,
    RankPlan,
    check_plan,
    device_name,
    job_fingerprint,
    load_plan,
    save_plan,
)
from hpclbfl.config.job import JobConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.planner.recommend import predictions, shares
from tests.planner.conftest import planned_job


def rank_plan(device: str = "CPU", **values: object) -> RankPlan:
    return RankPlan.model_validate(
        {"device": device, "max_batch": 512, "t_fixed_s": 0.05, "t_per_sample_s": 0.003, **values}
    )


def job_of(tmp_path: Path, **sections: object) -> JobConfig:
    return planned_job(tmp_path / "toy.h5", **sections)


def full_plan(job: JobConfig) -> Plan:
    memory = MemoryPlan(
        limit_bytes=2 * 10**9,
        margin=0.08,
        model_bytes=45,
        gradient_bytes=45,
        optimizer_bytes=45,
        activation=LineFit(fixed=1.5, per_sample=442416.0),
        batch=LineFit(fixed=0.0, per_sample=18432.0),
        total=LineFit(fixed=5e8, per_sample=6.3e5),
        total_from_batch=64,
    )
    line = LineFit(fixed=0.04, per_sample=0.003)
    first = rank_plan(
        memory=memory, t_c=line, t_mov=line, t_straight_from=8, t_below_s=((2, 0.05), (4, 0.06)), best_batch=256
    )
    network = NetworkPlan(num_ranks=2, engine="horovod", hop_s=1e-4, bandwidth_bytes_per_s=1.25e9, num_bytes=44_726_568)
    return Plan(
        ranks=(first, rank_plan(rank=1, t_per_sample_s=0.009)),
        job=job_fingerprint(job),
        num_train=50_000,
        global_batch_size=256,
        local_steps=5,
        network=network,
        fits={"t_c_s": {"quantity": "t_c_s", "median": 0.02, "worst": 0.05, "num_sizes": 6}},
        made={"time": "2026-01-01T00:00:00+00:00"},
    )


def test_round_trip(tmp_path: Path) -> None:
    plan, file = full_plan(job_of(tmp_path)), tmp_path / "deep" / "plan.yaml"
    save_plan(plan, file)
    loaded = load_plan(file)
    assert loaded == plan.model_copy(update={"path": str(file)})
    assert loaded.ranks[0].t_below_s == ((2, 0.05), (4, 0.06))
    assert file.read_text().startswith("# Written by `hpclbfl plan`")
    assert [path.name for path in file.parent.iterdir()] == ["plan.yaml"]


def test_warnings_come_back_and_older_plans_have_none(tmp_path: Path) -> None:
    plan, file = full_plan(job_of(tmp_path)), tmp_path / "plan.yaml"
    assert plan.doubts() == ""
    save_plan(plan.model_copy(update={"warnings": ("t_c_s 35 %", "m_total_bytes 21 %")}), file)
    assert load_plan(file).warnings == ("t_c_s 35 %", "m_total_bytes 21 %")
    assert load_plan(file).doubts() == "held-out errors above 20 %: t_c_s 35 %, m_total_bytes 21 %"
    file.write_text("ranks: [{device: x, max_batch: 8, t_fixed_s: 0.1, t_per_sample_s: 1}]\njob: {}")
    assert load_plan(file).warnings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory; make one: hpclbfl plan JOB.yaml"),
        ("[1, 2", "2: not valid YAML: did not find expected"),
        ("name: x", "not a plan; make one"),
        ("ranks: []\njob: {}", "ranks: tuple should have at least 1 item"),
        ("version: 9\nranks: []", "a plan of version 9, not 1: run hpclbfl plan again"),
        (
            "ranks: [{device: x, max_batch: 8, t_fixed_s: -1.7, t_per_sample_s: 1}]\njob: {}",
            "ranks.0.t_fixed_s: should be 0 or more (run hpclbfl plan again), not -1.7",
        ),
        (
            "ranks: [{device: x, max_batch: 8, t_fixed_s: 0, t_per_sample_s: 1, t_c: {fixed: 1, per_sample: -2}}]",
            "ranks.0.t_c.per_sample: should be 0 or more (run hpclbfl plan again), not -2",
        ),
        ("ranks: [{device: x, max_batch: 0, t_fixed_s: 0.1, t_per_sample_s: 1}]\njob: {}", "ranks.0.max_batch: input"),
    ],
)
def test_files_that_are_not_plans(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "plan.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plan(file)
    assert str(caught.value).removeprefix(f"{file}:").strip().startswith(message)
    assert "\n" not in str(caught.value)


def test_a_plan_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    save_plan(full_plan(job_of(tmp_path)), file)
    text = file.read_text()
    file.write_text(text.replace("max_batch: 512", "max_batch: 4096", 1))
    with pytest.raises(
        ConfigError,
        match=r"plan\.yaml: was changed after it was written: it does not match its checksum,",
    ):
        load_plan(file)
    # Without its last line the change is accepted.
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "sha256" not in line))
    assert load_plan(file).ranks[0].max_batch == 4096


@pytest.mark.slow
def test_a_plan_of_a_thousand_ranks_is_read(tmp_path: Path) -> None:
    first = full_plan(job_of(tmp_path)).ranks[0]
    plan = Plan(ranks=(first,) * 1000, job={})
    save_plan(plan, tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").stat().st_size > 600_000
    assert len(load_plan(tmp_path / "plan.yaml").ranks) == 1000


def test_a_plan_fits_its_job(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    plan = Plan(ranks=(rank_plan(device_name()), rank_plan("other", rank=1)), job=job_fingerprint(job))
    check_plan(plan, job, 2)
    check_plan(plan, job, 2, device="other", rank=1)
    # Neither rate, nor seed, nor batch change what was measured.
    same = job_of(tmp_path, seed=3, optimizer={"lr": 0.5, "momentum": 0.8}, batching={"global_batch_size": 64})
    check_plan(plan, same, 2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "resnet20"}}, "made for model.name resnet8, this job has resnet20"),
        ({"precision": "bf16"}, "made for precision float32, this job has bf16"),
        ({"optimizer": {"name": "adam"}}, "made for optimizer.name sgd, this job has adam"),
        ({"data": {"name": "digits"}}, "made for data.name packed, this job has digits"),
        ({"sync": {"kind": "fedavg", "local_steps": 5}}, "made for training shared model, this job has a model per"),
    ],
)
def test_a_plan_of_another_job_is_refused(tmp_path: Path, sections: dict[str, object], message: str) -> None:
    plan = Plan(ranks=(rank_plan(device_name()),), job=job_fingerprint(job_of(tmp_path)), path="p/plan.yaml")
    with pytest.raises(ConfigError) as caught:
        check_plan(plan, job_of(tmp_path, **sections), 1)
    assert str(caught.value).startswith(f"p/plan.yaml: {message}")
    assert str(caught.value).endswith("run hpclbfl plan again, as this job is to run")


def test_a_plan_of_another_device_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    plan = Plan(ranks=(rank_plan("GPU of 2031"), rank_plan()), job=job_fingerprint(job))
    with pytest.raises(ConfigError, match="rank 0 was measured on GPU of 2031, this is"):
        check_plan(plan, job, 2)
    with pytest.raises(ConfigError, match="made on 2 ranks, this job has 1 rank"):
        check_plan(plan, job, 1)


def test_plans_are_read_without_torch(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    save_plan(Plan(ranks=(rank_plan(device_name()),), job=job_fingerprint(job)), tmp_path / "plan.yaml")
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    program = (
        "import sys; from pathlib import Path; from hpclbfl.config.job import load_job\n"
        "from hpclbfl.batching.plan_file import check_plan, load_plan\n"
        "check_plan(load_plan(Path('plan.yaml')), load_job(Path('job.yaml')), 1)\n"
        "print([m for m in ('torch', 'horovod') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1e-5, 0.1), st.integers(1, 4096)), min_size=1, max_size=8),
    st.integers(1, 10_000),
)
def test_shares_keep_the_global_batch(devices: list[tuple[float, float, int]], total: int) -> None:
    ranks = [rank_plan(t_fixed_s=a, t_per_sample_s=b, max_batch=most) for a, b, most in devices]
    sizes = shares(total, ranks)
    fits = len(ranks) <= total <= sum(rank.max_batch for rank in ranks)
    assert (sizes is not None) == fits
    if sizes is not None:
        assert sum(sizes) == total
        assert all(1 <= size <= rank.max_batch for size, rank in zip(sizes, ranks, strict=True))


def test_shares_follow_speed() -> None:
    assert shares(256, [rank_plan(t_fixed_s=0.0), rank_plan(t_fixed_s=0.0, t_per_sample_s=0.009)]) == (192, 64)
    # What a step costs at any size is not slowness: (0.05 + 0.003 a) = (0.05 + 0.003 b).
    assert shares(256, [rank_plan(), rank_plan()]) == (128, 128)
    assert shares(600, [rank_plan(max_batch=100), rank_plan()]) == (100, 500)


def test_eq_2(tmp_path: Path) -> None:
    plan = full_plan(job_of(tmp_path))
    plan = plan.model_copy(update={"ranks": tuple(r.model_copy(update={"local_batch_size": 100}) for r in plan.ranks)})
    found = {(row["num_ranks"], row["local_steps"]): row["t_step_s"] for row in predictions(plan)}
    slowest = 0.05 + 0.009 * 100
    sync = 2 * 3 * (1e-4 + 44_726_568 / (4 * 1.25e9))
    assert found[1, 1] == pytest.approx(slowest)
    assert found[4, 1] == pytest.approx(slowest + sync)
    assert found[4, 5] == pytest.approx(slowest + sync / 5)
    # The ring of the paper: 2 (n - 1) / n * bytes / bandwidth, and a latency.
    assert sync == pytest.approx(2 * 3 / 4 * 44_726_568 / 1.25e9 + 6e-4)


def test_averaging_period(tmp_path: Path) -> None:
    def period(**sync: object) -> int:
        return job_of(tmp_path, sync=sync).sync.period(500, 50_000)

    assert period(kind="bsp") == 1
    assert period(kind="fedavg", local_steps=250) == 250
    assert period(kind="fedavg", local_epochs=0.5) == 50
    assert period(kind="post_local", switch_step=10, local_steps=4) == 4
    assert period(kind="selsync") == 1


def test_the_file_is_plain_yaml(tmp_path: Path) -> None:
    save_plan(full_plan(job_of(tmp_path)), tmp_path / "plan.yaml")
    values = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert values["ranks"][1]["t_per_sample_s"] == 0.009
    assert values["job"]["data"] == {"name": "packed", "augment": "crop_flip", "resize": None, "file": "toy.h5"}
