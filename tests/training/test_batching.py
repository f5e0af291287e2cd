"""Batch policies in whole runs of one process, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from hpclbfl.batching.bounds import bounds_of_ranks
from hpclbfl.batching.plan_file import Plan, RankPlan, device_name, job_fingerprint, save_plan
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import load_job, parse_job
from hpclbfl.config.sections.batching import BoundedConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.footprint import smallest_batch
from hpclbfl.training.loop import begin_record
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from tests.conftest import make_job


def test_the_global_batch_grows_and_the_learning_rate_follows(tmp_path: Path, toy_set: Path) -> None:
    batching = {"global_batch_size": 8, "policy": "noise_scale", "max_global_batch_size": 24, "lr_rule": "sqrt"}
    job = make_job(toy_set, batching=batching, gradients={"noise_scale": {}}, stop={"epochs": 3})
    run_job(job, tmp_path)
    run = read_run(tmp_path)
    steps = run.tables["steps"]
    totals = steps["local_batch_size"].reshape(-1, 4).sum(1)
    assert totals[0] == 8 and totals[-1] == 24
    np.testing.assert_allclose(steps["lr"][::4], 0.02 * np.sqrt(totals / 8))
    # 96 samples an epoch: the first one ends after twelve steps, and B changes then.
    assert set(totals[:12]) == {8}
    assert run.tables["plans"]["step"].tolist() == [0] * 4 + [int(np.argmax(totals > 8))] * 4
    assert steps["num_samples"][-1] == totals.sum() and steps["epoch"][-1] >= 3


def test_a_batch_is_capped_at_the_shard_and_that_is_told(
    tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 samples of one label for each client."""
    partition = {"kind": "labels_per_client", "labels": 1}
    job = make_job(toy_set, partition=partition, batching={"local_batch_size": [60, 1, 7, 24]}, stop={"steps": 2})
    run_job(job, tmp_path)
    steps = read_run(tmp_path).tables["steps"]
    assert steps["local_batch_size"].tolist() == [24, 1, 7, 24] * 2
    assert steps["num_samples"][-1] == 2 * 56
    told = "batches are capped at what the clients hold: 1 of 4 take 24 samples a step, the global batch is 56 instead"
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "attempts" / "000" / "log").read_text()


def test_batches_of_all_clients_are_capped_at_the_training_set(
    tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anew = {"kind": "iid", "reshuffle": True}
    job = make_job(toy_set, partition=anew, batching={"local_batch_size": [60, 1, 7, 50]}, stop={"steps": 2})
    run_job(job, tmp_path)
    steps = read_run(tmp_path).tables["steps"]
    # 96 in all: what the small ones leave is shared evenly.
    assert steps["local_batch_size"].tolist() == [44, 1, 7, 44] * 2
    assert steps["epoch"][-1] == 2
    assert "2 of 4 take 44 samples a step, the global batch is 96 instead of 118" in capsys.readouterr().err


def test_batches_of_1_7_and_24_are_one_of_32(toy_set: Path) -> None:
    """Reshuffled, the three slices are those of the one batch; the net has no BatchNorm (invariant 2)."""
    models = {}
    for sizes in ([1, 7, 24], [32]):
        job = make_job(
            toy_set,
            clients=len(sizes),
            partition={"kind": "iid", "reshuffle": True},
            model={"name": "vit_cifar"},
            batching={"local_batch_size": sizes},
            stop={"steps": 3},
        )
        state = make_state(job, LocalCommunicator())
        for _ in range(3):
            state.algorithm.step(state, begin_record(state), 0)
            state.counters.positions += state.sampler.counts(state.sizes_now)
            state.counters.step += 1
        models[len(sizes)] = parameters_to_vector(state.clients[0].replica.module.parameters()).detach()
    assert models[1].dtype == torch.float64
    torch.testing.assert_close(models[3], models[1], rtol=0, atol=1e-9)
    # Had nothing been learnt, they would agree, too.
    start = parameters_to_vector(make_state(job, LocalCommunicator()).clients[0].replica.module.parameters())
    assert float((models[1] - start).detach().norm()) > 1e-3


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        (
            {"batching": {"local_batch_size": 4, "policy": "dynamic"}},
            "needs one client per rank, not 4 clients on 1 rank",
        ),
        (
            {"clients": 1, "batching": {"local_batch_size": 8, "policy": "dynamic", "max_local_batch_size": 4}},
            "a global batch of 8 does not fit bounds that sum to 1 and 4",
        ),
        (
            {"batching": {"local_batch_size": 4, "policy": "noise_scale", "max_global_batch_size": 64}},
            "give gradients.noise_scale",
        ),
        (
            {
                "batching": {
                    "local_batch_size": [4, 6, 4, 4],
                    "policy": "critical_phase",
                    "factor": 2,
                    "max_local_batch_size": 5,
                }
            },
            "batching.max_local_batch_size: 5 is less than the 6 samples of a client",
        ),
        (
            {"batching": {"local_batch_size": 10**6}},
            "batching.local_batch_size: a batch of 1000000 exceeds the 96 training samples",
        ),
        (
            {"batching": {"global_batch_size": 97}},
            "batching.global_batch_size: a batch of 97 exceeds the 96 training samples",
        ),
        (
            {
                "clients": 1,
                "batching": {
                    "local_batch_size": 8,
                    "policy": "dynamic",
                    "min_local_batch_size": 100,
                    "max_local_batch_size": 200,
                },
            },
            "batching.min_local_batch_size: 100 is more than client 0 can have, 96",
        ),
        ({"clients": 97}, "clients: 97 clients, but only 96 training samples to share"),
        ({"emulate": {"slowdown": [1, 2]}}, "emulate.slowdown lists 2 ranks, this job has 1"),
        ({"emulate": {"at": [{"step": 1, "rank": 3, "factor": 2}]}}, "emulate.at: rank 3 is not among"),
        (
            {"sync": {"kind": "fedavg", "local_steps": "proportional", "max_local_steps": 4}},
            "sync.local_steps proportional needs one client per rank",
        ),
    ],
)
def test_policies_that_do_not_fit_the_job(toy_set: Path, sections: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        make_state(make_job(toy_set, **sections), LocalCommunicator())


@pytest.mark.parametrize(
    ("batching", "error"),
    [
        ({"local_batch_size": 4, "policy": "proportional"}, "'batching.from' is missing"),
        ({"local_batch_size": 4, "from": "warmup"}, "batching: 'from' goes with policy proportional, not fixed"),
        ({"local_batch_size": 4, "policy": "noise_scale"}, "'batching.max_global_batch_size' is missing"),
        ({"local_batch_size": 4, "window": 3}, "'window' goes with policy dynamic"),
        (
            {"local_batch_size": 4, "max_local_batch_size": 9},
            "goes with policy critical_phase or dynamic or noise_scale or",
        ),
        (
            {"local_batch_size": 4, "form": "warmup"},
            "did you mean 'from', which goes with policy proportional",
        ),
    ],
)
def test_keys_that_do_not_fit_each_other(toy_set: Path, batching: dict[str, Any], error: str) -> None:
    values = {"data": {"name": "packed", "path": str(toy_set)}, "model": {"name": "resnet8"}, "batching": batching}
    with pytest.raises(ConfigError, match=error):
        parse_job(values, "job.yaml")


def test_a_job_with_an_alias_survives_the_round_trip(toy_set: Path) -> None:
    import yaml

    job = make_job(toy_set, batching={"global_batch_size": 8, "policy": "proportional", "from": "warmup"})
    again = parse_job(yaml.safe_load(job.to_yaml()), "config.yaml")
    assert again == job and again.batching.source == "warmup"
    assert again.digest("") == job.digest("")


def test_a_plan_lies_beside_the_job_file_and_its_content_counts(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "plan.yaml").write_text("one")
    text = f"{{data: {{name: packed, path: {toy_set}}}, model: {{name: resnet8}}, clients: 1, "
    (tmp_path / "job.yaml").write_text(text + "batching: {policy: proportional, from: plan.yaml, local_batch_size: 4}}")
    job = load_job(tmp_path / "job.yaml")
    assert job.batching.source == str(tmp_path / "plan.yaml")
    digest = job.digest("")
    (tmp_path / "plan.yaml").write_text("two")
    assert job.digest("") != digest
    (tmp_path / "plan.yaml").unlink()
    with pytest.raises(ConfigError, match=r"batching.from: .*plan.yaml cannot be read"):
        job.digest("")


def test_a_run_that_shares_by_a_plan_repeats_its_warnings(
    tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batching = {"global_batch_size": 8, "policy": "proportional", "from": str(tmp_path / "plan.yaml")}
    job = make_job(toy_set, clients=1, batching=batching, stop={"steps": 1})
    rank = RankPlan(device=device_name(), max_batch=64, t_fixed_s=0.1, t_per_sample_s=0.01)
    for warnings in ((), ("t_local_s 35 %",)):
        save_plan(Plan(ranks=(rank,), job=job_fingerprint(job), warnings=warnings), tmp_path / "plan.yaml")
        run_job(job, run := tmp_path / f"run{len(warnings)}")
        events = [row for row in read_run(run).tables["events"] if row["kind"] == b"plan"]
        told = [line for line in capsys.readouterr().err.splitlines() if "held-out" in line]
        assert len(events) == len(told) == len(warnings)
    text = (
        f"held-out errors above 20 %: t_local_s 35 %: the shares may not follow the speeds ({tmp_path / 'plan.yaml'})"
    )
    assert told[0].endswith(f"warning: {text}")
    assert events[0]["text"].decode() == text[:256]
    assert text in (run / "attempts" / "000" / "log").read_text()


def test_a_plan_with_a_negative_time_is_refused(tmp_path: Path, toy_set: Path) -> None:
    batching = {"global_batch_size": 8, "policy": "proportional", "from": str(tmp_path / "plan.yaml")}
    job = make_job(toy_set, clients=1, batching=batching, stop={"steps": 1})
    (tmp_path / "plan.yaml").write_text(
        "ranks: [{device: x, max_batch: 8, t_fixed_s: -1.7, t_per_sample_s: 0.01}]\njob: {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        make_state(job, LocalCommunicator())
    reason = "ranks.0.t_fixed_s: should be 0 or more (run hpclbfl plan again), not -1.7"
    assert str(caught.value) == f"{tmp_path / 'plan.yaml'}: {reason}"


@pytest.mark.parametrize(("model", "given", "lowest"), [("resnet18", {}, 2), ("vit_cifar", {}, 1), ("resnet18", 3, 3)])
def test_no_policy_leaves_batchnorm_with_a_single_sample(toy_set: Path, model: str, given: Any, lowest: int) -> None:
    """At 8 px the last layers of resnet18 have one value per channel and sample."""
    bounds = {"min_local_batch_size": given} if given else {}
    batching = {"global_batch_size": 8, "policy": "dynamic", **bounds}
    job = make_job(toy_set, model={"name": model}, batching=batching, clients=1)
    state = make_state(job, LocalCommunicator())
    assert state.policy._low == [lowest]  # type: ignore[attr-defined]
    # The job is what the user gave.
    assert state.job.batching == job.batching


def test_a_rank_without_samples_needs_no_second_one() -> None:
    batching = {"local_batch_size": 8, "policy": "dynamic"}
    job = parse_job({"data": {"name": "digits"}, "model": {"name": "resnet8"}, "batching": batching}, "a test")
    config = job.batching.at_least(2)
    assert isinstance(config, BoundedConfig)
    assert bounds_of_ranks(config, 3, [8, 8, 8], [100, 0, 5]) == ([2, 1, 2], [24, 1, 5])


def test_trying_a_single_sample_leaves_the_net_as_it_was(toy_set: Path) -> None:
    state = make_state(make_job(toy_set, model={"name": "resnet18"}), LocalCommunicator())
    net = state.mean.module.eval()
    before, generator = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert smallest_batch(net, state.train) == 2
    assert not net.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
