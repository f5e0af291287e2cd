"""Every benchmark at its smallest, under a real mpirun."""

from __future__ import annotations

from typing import Any

import pytest

from hpclbfl.bench import comm, federated, gradients, hetero, scaler, step
from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher
from hpclbfl.bench.turns import Turns
from hpclbfl.core.errors import RunFailed

pytestmark = pytest.mark.mpi
SMALL: dict[str, Any] = {"rounds": 1, "model": "resnet8", "batch": 4, "steps": 4, "warmup": 1}


def raw_counts(findings: Findings) -> dict[tuple[str, str], int]:
    series = findings.plain()["series"]
    assert all(len(s["raw"]) == 1 for s in series)
    return {(s["group"], s["variant"]): len(s["raw"][0]) for s in series}


def test_comm() -> None:
    settings = comm.Settings(rounds=1, mb=(0.1, 3.0), variants=("mpi", "gloo"))
    findings = comm.measure(settings, Turns("comm"))
    expected = {(f"{mb} MB", variant): 50 for mb in ("0.1", "3") for variant in ("mpi", "gloo")}
    assert raw_counts(findings) == expected
    assert [(c.group, c.variant, c.against) for c in findings.comparisons] == [
        *(("0.1 MB", "mpi", "gloo"), ("3 MB", "mpi", "gloo")),
    ]
    assert "mpi4py" in findings.extra["libraries"]["mpi"]
    assert findings.extra["libraries"]["gloo"] == "torch.distributed, gloo"


def test_step() -> None:
    settings = step.Settings(**SMALL, variants=("mpi", "distributed-optimizer", "fa-mpi"))
    findings = step.measure(settings, Turns("step"))
    counts = raw_counts(findings)
    for group in ("start to the end of the first step", "memory of all processes (PSS)"):
        assert {variant for name, variant in counts if name == group} == set(settings.variants)
        assert all(counts.pop((group, variant)) == 1 for variant in settings.variants)
    memory = findings.find("memory of all processes (PSS)", "mpi")
    assert memory is not None and 100 < memory.raw[0][0] < 4000
    assert counts == {
        ("BSP step", "mpi"): 4,
        ("BSP step", "distributed-optimizer"): 4,
        ("FA, a local step", "fa-mpi"): 4,
        ("FA, an averaging", "fa-mpi"): 1,
        ("FA, averaging's share at H = 50", "fa-mpi"): 1,
    }
    assert [(c.variant, c.against) for c in findings.comparisons] == [("mpi", "distributed-optimizer")] * 3
    assert "Horovod" in findings.extra["libraries"]["distributed-optimizer"]


def test_federated() -> None:
    settings = federated.Settings(
        rounds=1, model="resnet8", batch=4, clients=4, samples=8, timed=2, variants=("loop", "mpi")
    )
    findings = federated.measure(settings, Turns("federated"))
    groups = [s.group for s in findings.series if s.variant == "loop"]
    assert groups == ["a warm round", "start to the end of the first round", "memory of all processes (PSS)"]
    assert raw_counts(findings)["a warm round", "mpi"] == 2
    assert [c.group for c in findings.comparisons] == groups
    assert set(findings.extra["norms"]) == {"loop", "mpi"}


def test_scaler() -> None:
    findings = scaler.measure(scaler.Settings(**SMALL), Turns("scaler"))
    counts = raw_counts(findings)
    for variant in scaler.VARIANTS:
        assert counts["share of the step", variant] == 1
        assert counts["step", variant] == 4
    assert {part for group, part in counts if group == "our cost by part"} == set(scaler.PARTS)
    errors = findings.find("relative error of the squared norm", "ours")
    assert errors is not None and errors.raw[0][0] < 1e-6
    assert [(c.variant, c.against) for c in findings.comparisons] == [("ours", "foreach"), ("ours", "loop")]


def test_gradients() -> None:
    """A teacher's training steps are told apart, and what is sent follows from the sizes."""
    variants = ("measured", "residual", "topk", "fp16")
    settings = gradients.Settings(**{**SMALL, "warmup": 3, "variants": variants})
    findings = gradients.measure(settings, Turns("gradients"))
    sent = {s.variant: s.raw[0][0] for s in findings.series if s.group == gradients.SENT}
    assert sent["residual"] == sent["measured"]
    assert sent["fp16"] == pytest.approx(sent["measured"] / 2, rel=0.01)
    assert sent["topk"] < sent["measured"] / 20
    assert [s.variant for s in findings.series if s.group == gradients.LESSON] == ["residual"]
    assert {(c.variant, c.against) for c in findings.comparisons} == {
        ("residual", "measured"),
        ("topk", "measured"),
        ("fp16", "measured"),
    }


def test_the_parts_of_our_cost_by_hand() -> None:
    times = {
        "norm": [3.0, 3.0, 5.0, 1.0],
        "change": [0.5] * 4,
        "hand-over": [0.2, 9.0, 0.2, 9.0],
        "optimizer": [10.0, 8.0, 11.0, 8.0],
        "is_scaled": [1.0, 0.0, 1.0, 0.0],
    }
    assert scaler.our_parts_s(times) == {"norm": 3.0, "change": 0.5, "hand-over": 0.2, "ride": 2.5}


def test_a_failing_rank_is_one_line() -> None:
    # Nobody has made the images.
    with Launcher(2) as launcher, pytest.raises(RunFailed) as caught:
        launcher.run("step_ranks", "compute", step.Settings(**SMALL))
    assert str(caught.value).startswith("bench, variant compute: rank ")
    assert "DataError: " in str(caught.value) and "images.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_that_cannot_start_are_one_line() -> None:
    with Launcher(2) as launcher, pytest.raises(RunFailed, match=r"exit code 1: .*No module named") as caught:
        launcher.run("pigeon_ranks", "compute", step.Settings(**SMALL))
    assert "\n" not in str(caught.value)


@pytest.mark.alone
def test_hetero_takes_its_variants_and_says_what_was_planned() -> None:
    with Turns("hetero") as turns:
        settings = hetero.Settings(rounds=1, variants=("dynamic",), scenarios=("four",))
        findings = hetero.measure(settings, turns)
    title = hetero.SCENARIOS["four"].title
    found = findings.find(title, "dynamic")
    assert found is not None and 0 < found.by_round[0] < 1.1
    plans = findings.extra["plans"]["four:dynamic"][0]
    assert plans and all(sum(sizes) == 256 for _, sizes in plans)
    assert plans[-1][1][0] > plans[-1][1][3]
