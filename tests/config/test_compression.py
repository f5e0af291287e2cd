"""Section `compression`: what it says, what it stood for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.config.migrate import migrated
from hpclbfl.core.errors import ConfigError


def job(**sections: Any) -> JobConfig:
    return parse_job({"data": {"name": "digits"}, "model": {"name": "resnet8"}, **sections}, "job.yaml")


TOP = {"kind": "topk", "ratio": 0.01}


def test_without_it_a_job_is_printed_and_hashed_as_ever() -> None:
    plain = job()
    assert "compression" not in yaml.safe_load(plain.to_yaml())
    for same in (job(compression={"kind": "none"}), job(compression=None), job(gradients={"compression": "none"})):
        assert same == plain and same.digest("data") == plain.digest("data")
    # As version 0.1 wrote it.
    assert plain.digest("data") == "0a44217b30"
    assert job(compression=TOP).digest("data") != plain.digest("data")


def test_the_key_of_gradients_stands_for_a_section() -> None:
    found = job(gradients={"compression": "fp16", "clip_norm": 1.0})
    assert found == job(compression={"kind": "fp16"}, gradients={"clip_norm": 1.0})
    assert parse_job(yaml.safe_load(found.to_yaml()), "again") == found
    old = {"gradients": {"compression": "fp16", "measure": True}, "seed": 1}
    assert migrated(old) == {"gradients": {"measure": True}, "seed": 1, "compression": {"kind": "fp16"}}
    for strange in ({"gradients": 3}, {"gradients": {"compression": [1]}}, {"gradients": {"compression": None}}):
        assert migrated(strange) == strange


def test_levels_are_part_of_the_section() -> None:
    found = job(compression={**TOP, "adapt": {"by": "phase", "to": 0.001, "change": "selsync"}}).compression
    assert found is not None and found.adapter is not None
    assert (found.level, found.adapter.strongest, found.keeps_residual) == (0.01, 0.001, True)
    assert getattr(found.adapter, "threshold", None) == 0.02, "the detector's"
    assert parse_job(yaml.safe_load(job(compression=found).to_yaml()), "again").compression == found


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"compression": {"kind": "topk"}}, "job.yaml: 'compression.ratio' is missing"),
        (
            {"compression": {"kind": "topkk", "ratio": 0.1}},
            "compression.kind: 'topkk' is not known: did you mean 'topk'?",
        ),
        ({"compression": {"kind": "topk", "ratio": 0}}, "compression.ratio: input should be greater than 0, not 0"),
        ({"compression": {"kind": "topk", "ratio": 0.1, "bits": 4}}, "'bits' goes with kind qsgd, not topk"),
        ({"compression": {"kind": "qsgd", "bits": 3}}, "compression.bits: input should be 2, 4 or 8, not 3"),
        ({"compression": {"ratio": 0.1}}, "'compression.kind' is missing: known are fp16, powersgd, qsgd, randomk"),
        ({"compression": 3}, "compression: should be a mapping, not 3"),
        ({"compression": {"kind": "none", "ratio": 0.1}}, "compression: kind none goes without 'ratio'"),
        ({"gradients": {"compression": "int8"}}, "gradients.compression: should be none or fp16, not 'int8'"),
        (
            {"gradients": {"compression": "fp16"}, "compression": TOP},
            "gradients.compression: goes without a section 'compression', which it stands for",
        ),
        (
            {"compression": TOP, "gradients": {"noise_scale": {}}},
            "gradients.noise_scale: needs exact sums of gradients",
        ),
        ({"compression": TOP, "precision": "fp16"}, "compression.feedback: what is not sent lies in units of the loss"),
        (
            {"compression": {**TOP, "adapt": {"by": "phase", "to": 0.1}}},
            "adapt.to: 0.1 is above 0.01, from which it is to go down",
        ),
        (
            {"compression": {"kind": "randomk", "ratio": 0.1, "adapt": {"by": "gain", "to": 0.01}}},
            "adapt.by: gain needs what each client did not send, and randomk acts on sums of clients",
        ),
        (
            {"compression": {"kind": "powersgd", "rank": 4, "adapt": {"by": "phase", "to": 0.5}}},
            "adapt.to: 0.5 is no rank: a whole number from 1 up",
        ),
        ({"compression": {**TOP, "adapt": {"by": "fase", "to": 0.1}}}, "did you mean 'phase'?"),
        ({"compression": {**TOP, "adapt": {"by": "phase", "to": 0.001, "change": "eq9"}}}, "'eq9' is not known"),
        (
            {"compression": {**TOP, "adapt": {"by": "phase", "to": 0.001}}, "gradients": {"measure": False}},
            "compression.adapt: needs 'gradients.measure: true'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(sections: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as refused:
        job(**sections)
    assert error in str(refused.value) and "\n" not in str(refused.value)


def test_feedback_goes_with_loss_scaling_where_models_are_averaged() -> None:
    assert job(compression=TOP, precision="fp16", sync={"kind": "fedavg", "local_steps": 2}).compression is not None
    assert job(compression={**TOP, "feedback": False}, precision="fp16").compression is not None


def test_the_fixture_of_a_former_run_is_found(tmp_path: Path) -> None:
    former = Path(__file__).parents[1] / "runs" / "older" / "bsp" / "config.yaml"
    values = yaml.safe_load(former.read_text())
    assert values["gradients"]["compression"] == "none"
    assert parse_job(migrated(values), "config.yaml").compression is None
