from __future__ import annotations

from typing import Any

import pytest
import yaml

from hpclbfl.config.job import ConfigError, JobConfig, parse_job


def parse(**sections: Any) -> JobConfig:
    return parse_job({"data": {"name": "digits"}, "model": {"name": "resnet8"}, **sections}, "job.yaml")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optimizer": {"name": "lamb", "momentum": 0.9}}, "'momentum' goes with name lars or sgd, not lamb"),
        ({"optimizer": {"name": "adamw", "momentum": 0.9}}, "'momentum' goes with name lars or sgd, not adamw"),
        (
            {"optimizer": {"name": "lars", "betas": [0.8, 0.9]}},
            "'betas' goes with name adam or adamw or lamb, not lars",
        ),
        ({"optimizer": {"betas": [0.8, 0.9]}}, "'betas' goes with name adam or adamw or lamb, not sgd"),
        ({"optimizer": {"name": "lars", "eps": 1e-5}}, "'eps' goes with name adam or adamw or lamb, not lars"),
        ({"optimizer": {"name": "lars", "nesterov": True}}, "'nesterov' needs a momentum above 0"),
        ({"optimizer": {"name": "lamb", "nesterov": True}}, "'nesterov' goes with name lars or sgd, not lamb"),
        ({"optimizer": {"trust_coefficient": 0.01}}, "'trust_coefficient' goes with name lars, not sgd"),
        (
            {"optimizer": {"name": "lamb", "trust_coefficient": 0.01}},
            "'trust_coefficient' goes with name lars, not lamb",
        ),
        ({"optimizer": {"decay": "biases"}}, "optimizer.decay: input should be 'all' or 'weights'"),
        (
            {"optimizer": {"name": ["lars"]}},
            "optimizer.name: ['lars'] is not known: known are adam, adamw, lamb, lars, sgd",
        ),
        ({"schedule": {"kind": "tvlars", "rate": 1.0}}, "'schedule.delay_epochs' is missing"),
        ({"schedule": {"kind": "tvlars", "delay_epochs": 1.0}}, "'schedule.rate' is missing"),
        (
            {"schedule": {"kind": "tvlars", "rate": 1.0, "delay_epochs": 5, "warmup_epochs": 5}},
            "'warmup_epochs' cannot be used with kind tvlars, which replaces the warm-up",
        ),
        ({"schedule": {"rate": 1.0}}, "'rate' goes with kind tvlars"),
        ({"schedule": {"kind": "cosine", "floor": 0.1}}, "'floor' goes with kind tvlars"),
        ({"schedule": {"alpha": 0.5}}, "'alpha' goes with kind tvlars"),
        ({"schedule": {"delay_epochs": 0}}, "'delay_epochs' goes with kind tvlars"),
        ({"schedule": {"scaling": "sqrt"}}, "'scaling: sqrt' and 'reference_batch_size' go together"),
        ({"schedule": {"reference_batch_size": 8}}, "'scaling: linear (or sqrt)' and 'reference_batch_size' go"),
    ],
)
def test_keys_of_others_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(**sections)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "decay", "eps"),
    [
        ("sgd", "all", None),
        ("adam", "all", 1e-8),
        ("adamw", "all", 1e-8),
        ("lars", "weights", None),
        ("lamb", "weights", 1e-6),
    ],
)
def test_defaults_go_by_the_name(name: str, decay: str, eps: float | None) -> None:
    for given in ({}, {"decay": None, "eps": None}):
        job = parse(optimizer={"name": name, **given})
        assert (job.optimizer.decay, getattr(job.optimizer, "eps", None)) == (decay, eps)
    # A job that was written out reads as the same job.
    assert parse_job(yaml.safe_load(job.to_yaml()), "config.yaml") == job
    assert parse(optimizer={"name": name, "decay": "weights"}).optimizer.decay == "weights"


def test_null_is_the_default_written_out() -> None:
    given = parse(optimizer={"name": "lamb", "decay": "weights", "eps": 1e-6})
    assert parse(optimizer={"name": "lamb"}).digest("data") == given.digest("data")
    assert parse().optimizer == parse(optimizer={}).optimizer
