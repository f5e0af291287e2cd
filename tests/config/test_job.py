from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclbfl.config.job import ConfigError, JobConfig, load_job, parse_job

MINIMAL: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "resnet8"}}


def refused(**sections: Any) -> str:
    with pytest.raises(ConfigError) as error:
        parse_job({**MINIMAL, **sections}, "job.yaml")
    message = str(error.value)
    assert message.isprintable() and len(message) < 1000
    return message


def test_unknown_key_names_file_key_near_miss_and_valid_keys() -> None:
    message = refused(optimizer={"lrr": 0.1})
    assert message.startswith("job.yaml: unknown key 'optimizer.lrr': did you mean 'lr'? valid under 'optimizer': ")
    assert "momentum" in message and "weight_decay" in message
    assert "did you mean 'partition'?" in refused(partitions={"kind": "iid"})
    message = refused(sync={"kind": "fedavg", "local_step": 5})
    assert "'sync.local_step': did you mean 'local_steps'?" in message and "optimizer_state" in message
    message = refused(gradients={"scaler": {"factor": 2, "treshold": 1}})
    assert "'gradients.scaler.treshold': did you mean 'threshold'? valid under 'gradients.scaler': factor" in message


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"seed": "many"}, "job.yaml: seed: should be a whole number, not 'many'"),
        ({"clients": True}, "job.yaml: clients: should be a whole number, not true"),
        ({"clients": 0}, "clients: input should be greater than 0, not 0"),
        ({"optimizer": {"nesterov": True}}, "job.yaml: optimizer: 'nesterov' needs a momentum above 0"),
        (
            {"optimizer": {"name": "adam", "momentum": 0.9}},
            "job.yaml: optimizer: 'momentum' goes with name lars or sgd, not adam",
        ),
        ({"sync": {"kind": "fedavg"}}, "exactly one of 'local_steps' and 'local_epochs'"),
        ({"sync": {"kind": "gossip"}}, "job.yaml: sync.kind: 'gossip' is not known: known are bsp, fedavg, post_local"),
        ({"sync": {"local_steps": 5}}, "job.yaml: sync: 'local_steps' goes with kind fedavg or post_local, not bsp"),
        ({"batching": {"local_batch_size": "abc"}}, "job.yaml: batching.local_batch_size: should be a whole number"),
        ({"batching": {"local_batch_size": [True, 2]}}, "should be a whole number above 0, or a list"),
        ({"batching": {"local_batch_size": [4, 0]}}, "should be a whole number above 0, or a list"),
        ({"seed": 2**64}, "job.yaml: seed: input should be less than"),
        ({"schedule": {"total_epochs": 5}}, "'total_epochs' goes with kind cosine"),
        (
            {"schedule": {"kind": "multistep", "milestones_epochs": [5, 5]}},
            "'milestones_epochs' must be in ascending order",
        ),
        ({"partition": {"kind": "dirichlet"}}, "job.yaml: 'partition.alpha' is missing"),
        (
            {"partition": {"kind": "dirichlet", "alpha": 1, "reshuffle": True}},
            "job.yaml: partition: 'reshuffle' goes with kind iid, not dirichlet",
        ),
        ({"partition": {"kind": "iid", "labels": 2}}, "'labels' goes with kind labels_per_client"),
        ({"batching": {"local_batch_size": 4, "global_batch_size": 8}}, "exactly one of 'local_batch_size'"),
        ({"stop": {"top1": 0.9}}, "give at least one of 'epochs'"),
        ({"schedule": {"kind": "multistep"}}, "job.yaml: 'schedule.milestones_epochs' is missing"),
        ({"schedule": {"scaling": "linear"}}, "'scaling: linear' and 'reference_batch_size' go together"),
        ({"evaluate": {"splits": ["train"]}}, "must name 'test'"),
        ({"precision": "float16"}, "precision: input should be 'float32', 'float64', 'bf16' or 'fp16'"),
        ({"optimizer": {"lr": float("nan")}}, "job.yaml: optimizer.lr: input should be a finite number, not nan"),
        ({"optimizer": {"lr": float("inf")}}, "job.yaml: optimizer.lr: input should be a finite number, not inf"),
        ({"optimizer": {"lr": "0.1"}}, "job.yaml: optimizer.lr: should be a number, not '0.1'"),
        ({"optimizer": {"lr": 10**299}}, "job.yaml: optimizer.lr: input should be less than or equal to 1000000000"),
        (
            {"optimizer": {"name": "adam", "betas": [True, 0.9]}},
            "job.yaml: optimizer.betas.0: should be a number, not true",
        ),
        ({"optimizer": None}, "job.yaml: optimizer: should be a mapping, not null"),
        ({"clients": "8"}, "job.yaml: clients: should be a whole number, not '8'"),
        ({"clients": 10**12}, "job.yaml: clients: input should be less than or equal to 1000000, not 1000000000000"),
        ({"stop": {"steps": 12.5}}, "job.yaml: stop.steps: should be a whole number, not 12.5"),
        ({"stop": {"steps": 10**250}}, "job.yaml: stop.steps: input should be less than or equal to 1000000000000000"),
        ({"stop": {"steps": float("inf")}}, "job.yaml: stop.steps: should be a whole number, not inf"),
        (
            {"data": {"name": "digits", "workers": 10**6}},
            "job.yaml: data.workers: input should be less than or equal to",
        ),
        ({"data": {"name": 12}}, "job.yaml: data.name: 12 is not known: known are"),
        ({"name": "x" * 10**6}, "job.yaml: name: string should have at most 100 characters, not 'xxx"),
        ({"deterministic": "yes"}, "job.yaml: deterministic: should be true or false, not 'yes'"),
        ({"emulate": {"slowdown": [True]}}, "job.yaml: emulate.slowdown.0: should be a number, not true"),
        ({"emulate": {"slowdown": 3}}, "job.yaml: emulate.slowdown: should be a list, not 3"),
        ({"emulate": {"slowdown": [0.5] * 100_000}}, "job.yaml: emulate.slowdown.0: input should be greater than or"),
        ({"emulate": {"memory_limit": 1e300}}, "job.yaml: emulate.memory_limit: input should be less than or equal to"),
        (
            {"batching": {"local_batch_size": "16"}},
            "job.yaml: batching.local_batch_size: should be a whole number above 0",
        ),
        (
            {"batching": {"local_batch_size": [1, 2.5]}},
            "job.yaml: batching.local_batch_size.1: should be a whole number",
        ),
        ({"sync": {"kind": "fedavg", "local_steps": 0}}, "job.yaml: sync.local_steps: input should be greater than 0"),
        ({"sync": {"kind": "fedavg", "local_steps": "all"}}, "whole number above 0, or 'proportional', not 'all'"),
        ({"sync": {"kind": "x" * 10**5}}, "job.yaml: sync.kind: 'xxx"),
        ({"x" * 10**5: 1}, "job.yaml: unknown key 'xxx"),
    ],
)
def test_wrong_values_are_refused_in_one_line(sections: dict[str, Any], words: str) -> None:
    assert words in refused(**sections)


def test_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"job.yaml: 'model' is missing"):
        parse_job({"data": {"name": "digits"}}, "job.yaml")


def test_yaml_exponents_are_numbers(tmp_path: Path) -> None:
    job = load(tmp_path, "optimizer: {weight_decay: 5e-4}")
    assert job.optimizer.weight_decay == 5e-4


def load(folder: Path, more: str = "", *overrides: str) -> JobConfig:
    path = folder / "job.yaml"
    path.write_text("data: {name: packed, path: set.h5}\nmodel: {name: resnet8}\n" + more)
    return load_job(path, list(overrides))


def test_overrides_replace_and_add_values(tmp_path: Path) -> None:
    job = load(tmp_path, "", "optimizer.lr=0.5", "sync={kind: fedavg, local_steps: 3}", "stop.epochs=2", "clients=4")
    assert (job.optimizer.lr, job.stop.epochs, job.clients) == (0.5, 2, 4)
    assert job.sync.model_dump()["local_steps"] == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr", "write key.path=value"),
        ("optimizer.lr.x=1", "optimizer"),
        ("optimizer.lr=[", "not valid YAML"),
        ("=5", "override '=5': write key.path=value"),
        ("a..b=1", "override 'a..b=1': 'a..b' is not a valid key: write section.key"),
        (".lr=1", "override '.lr=1': '.lr' is not a valid key: write section.key"),
        (
            "optimizer={lr: 1, lr: 2}",
            "override 'optimizer={lr: 1, lr: 2}': the value is not valid YAML: key 'lr' is given",
        ),
        (
            "optimizer.lr=!!bool foo",
            "override 'optimizer.lr=!!bool foo': the value is not valid YAML: 'foo' is not of type bool",
        ),
        ("data.path='a\0'", "override .*: the value is not valid YAML: the character '.*x00' is not allowed"),
        ("name=\udcff", "override 'name=.*udcff': the value is not valid YAML: the character '.*udcff' is not allowed"),
        ("optimizer.lr=" + "1" * 10**5, "override 'optimizer.lr=1.* [.]{3} 1.*': .*: a number of more than 300 digits"),
        ("optimizr.lr=1", "did you mean 'optimizer'?"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        load(tmp_path, "optimizer: {lr: 1}", override)


def test_paths_are_relative_to_the_job_file_but_in_overrides_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(tmp_path).data.path == str(tmp_path / "set.h5")
    assert load(tmp_path, "", "data.path=other.h5").data.path == str(elsewhere / "other.h5")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        load_job(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("data: {name: x\nmodel: [")
    with pytest.raises(ConfigError, match=r"bad.yaml:\d+: not valid YAML"):
        load_job(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"list.yaml: a job file is a mapping"):
        load_job(tmp_path / "list.yaml")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job.yaml:4: not valid YAML: key 'optimizer' is given twice"):
        load(tmp_path, "optimizer: {lr: 1}\noptimizer: {momentum: 0.9}\n")


def test_evaluation_is_every_epoch_unless_said_otherwise() -> None:
    def evaluate(**keys: Any) -> tuple[float | None, int | None]:
        config = parse_job({**MINIMAL, "evaluate": keys}, "job").evaluate
        return config.every_epochs, config.every_steps

    assert evaluate() == (1, None)
    assert evaluate(splits=["test", "train"]) == (1, None)
    assert evaluate(every_steps=5) == (None, 5)


def test_printed_config_reads_back_as_the_same_job(tmp_path: Path) -> None:
    job = load(tmp_path, "sync: {kind: fedavg, local_epochs: 1}\nbatching: {local_batch_size: [1, 2]}\nclients: 2")
    assert parse_job(yaml.safe_load(job.to_yaml()), "printed") == job


def test_batch_sizes_of_clients() -> None:
    def sizes(clients: int, **batching: Any) -> list[int]:
        return parse_job({**MINIMAL, "clients": clients, "batching": batching}, "job").resolved(1).local_batch_sizes()

    assert sizes(3, local_batch_size=8) == [8, 8, 8]
    assert sizes(3, local_batch_size=[1, 7, 24]) == [1, 7, 24]
    assert sizes(3, global_batch_size=32) == [11, 11, 10]
    with pytest.raises(ConfigError, match="lists 2 sizes for 3 clients"):
        sizes(3, local_batch_size=[1, 2])
    with pytest.raises(ConfigError, match="less than one sample for each of 3 clients"):
        sizes(3, global_batch_size=2)


def test_clients_default_to_one_per_rank() -> None:
    assert parse_job(MINIMAL, "job").resolved(4).clients == 4
    assert parse_job({**MINIMAL, "clients": 10}, "job").resolved(4).clients == 10


def test_hash_covers_what_changes_the_result_alone() -> None:
    def digest(**sections: Any) -> str:
        return parse_job({**MINIMAL, "clients": 2, **sections}, "job").digest("fingerprint")

    plain = digest()
    assert len(plain) == 10
    assert digest(comm={"bucket_mb": 1}) == plain
    assert digest(name="other name") == plain
    assert digest(data={"name": "digits", "workers": 7}) == plain
    assert digest(seed=1) != plain
    assert digest(data={"name": "digits", "limit": 100}) != plain
    assert parse_job({**MINIMAL, "clients": 2}, "job").digest("other data") != plain


def test_slug() -> None:
    assert parse_job({**MINIMAL, "name": "CIFAR-10 ResNet18"}, "job").slug() == "cifar-10-resnet18"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=1", "seed=2"), "override 'seed=2': 'seed' is given twice"),
        (
            ("optimizer.lr=1", "optimizer={name: adam}"),
            "override 'optimizer={name: adam}': 'optimizer' would overwrite 'optimizer.lr'; give it first",
        ),
    ],
)
def test_an_override_that_undoes_another_is_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "", *overrides)
    assert str(error.value) == message
    assert load(tmp_path, "", "optimizer={name: adam}", "optimizer.lr=1").optimizer.lr == 1


def test_numbers_are_those_that_people_write(tmp_path: Path) -> None:
    job = load(tmp_path, "clients: 010\nstop: {steps: 012}\nseed: 0x10\n", "data.workers=0777")
    assert (job.clients, job.stop.steps, job.seed, job.data.workers) == (10, 12, 16, 777)
    job = load(tmp_path, "stop: {steps: 1e3}\nbatching: {local_batch_size: 16.0}\noptimizer: {lr: 1e-4}\n")
    assert (job.stop.steps, job.batching.local_batch_size, job.optimizer.lr) == (1000, 16, 1e-4)
    for value in ("1:30", "0b11", "1_000"):
        with pytest.raises(ConfigError, match=f"data.workers: should be a whole number, not '{value}'$"):
            load(tmp_path, "", f"data.workers={value}")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"name": "digits", "path": "x"}},
            "data: 'path' goes with name caltech101 or cifar10 or cifar100 or food101 or imagefolder or packed, not "
            "digits",
        ),
        (
            {"data": {"name": "packed", "path": "x", "download": True}},
            "data: 'download' goes with name caltech101 or cifar10 or cifar100 or food101, not packed",
        ),
        (
            {"data": {"name": "digits", "in_memory": True, "workers": 4}},
            "data: 'workers' decode on the fly: they do not go with 'in_memory: true'",
        ),
        (
            {"data": {"name": "digits", "augment": "resized_crop_flip"}},
            "data: 'augment: resized_crop_flip' needs 'resize', the side of the crops in pixels",
        ),
        (
            {"data": {"name": "digits", "augment": "resized_crop_flip", "resize": 8, "in_memory": True}},
            "data: 'in_memory: true' goes with augment none or crop_flip, not resized_crop_flip",
        ),
        (
            {"model": {"name": "vgg11", "stem": "cifar"}},
            "model: 'stem' goes with name resnet18 or resnet50, not vgg11",
        ),
        (
            {"model": {"name": "resnet8", "dropout": 0.1}},
            "model: 'dropout' goes with name alexnet or alexnet_small or vgg11 or vgg11_bn or vgg_small or vit_b_16 or "
            "vit_cifar, not resnet8",
        ),
        ({"schedule": {"kind": "cosine", "gamma": 0.5}}, "schedule: 'gamma' goes with kind multistep, not cosine"),
        ({"comm": {"engine": "horovod", "chunk_mb": 2}}, "comm: 'chunk_mb' goes with engine mpi, not horovod"),
        (
            {"gradients": {"scaler": {"factor": 2, "when": "always", "threshold": 0.3}}},
            "gradients.scaler: 'threshold' goes with when: delta_ge or delta_lt, not always",
        ),
        (
            {
                "batching": {
                    "policy": "noise_scale",
                    "local_batch_size": 4,
                    "max_global_batch_size": 64,
                    "min_local_batch_size": 2,
                }
            },
            "batching: 'min_local_batch_size' goes with policy dynamic or proportional, not noise_scale",
        ),
    ],
)
def test_a_key_that_the_kind_does_not_read_is_refused(sections: dict[str, Any], message: str) -> None:
    assert refused(**sections) == f"job.yaml: {message}"


def test_defaults_that_are_written_out_are_no_such_keys(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(parse_job(MINIMAL, "job").to_yaml())
    assert load_job(tmp_path / "config.yaml") == parse_job(MINIMAL, "job")


def test_texts_of_a_printed_config_stay_texts(tmp_path: Path) -> None:
    for name in ("1e5", "012", "yes", "1.5", "0x1f", "2026-01-01"):
        (tmp_path / "config.yaml").write_text(parse_job({**MINIMAL, "name": name}, "job").to_yaml())
        assert load_job(tmp_path / "config.yaml").name == name


def test_a_folder_that_yaml_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"^data\.path: 'set.h5' is no path that can be used: 'utf-8' codec"):
        load(folder)


@pytest.mark.parametrize(
    ("sections", "threshold"),
    [
        ({"sync": {"kind": "selsync"}}, 0.05),
        ({"sync": {"kind": "selsync", "threshold": None}}, 0.05),
        ({"sync": {"kind": "selsync", "change": "squared_norm"}}, 1.0),
        ({"sync": {"kind": "selsync", "threshold": 0}}, 0.0),
        ({"gradients": {"scaler": {"factor": 2}}}, 0.5),
        ({"gradients": {"scaler": {"factor": 2, "change": "selsync"}}}, 0.02),
        ({"gradients": {"scaler": {"factor": 2, "change": "log_ratio"}}}, math.log(1.5)),
        ({"gradients": {"scaler": {"factor": 2, "change": {"name": "selsync", "threshold": 0.3}}}}, 0.3),
        ({"gradients": {"scaler": {"factor": 2, "change": "selsync", "when": "always"}}}, 0.02),
        # As older versions wrote it.
        ({"gradients": {"scaler": {"factor": 2, "change": "selsync", "when": "always", "threshold": 0.5}}}, 0.5),
    ],
)
def test_the_threshold_goes_with_the_metric(sections: dict[str, Any], threshold: float) -> None:
    """What is filled in is written out, and read back."""
    job = parse_job({**MINIMAL, **sections}, "job.yaml")
    for read in (job, parse_job(yaml.safe_load(job.to_yaml()), "job.yaml")):
        section = read.sync if "sync" in sections else read.gradients.scaler
        assert section.threshold == threshold  # type: ignore[union-attr]


@pytest.mark.parametrize("change", ["norm", ["selsync"], 3, None])
def test_a_metric_that_is_none_is_named(change: Any) -> None:
    told = refused(sync={"kind": "selsync", "change": change})
    known = "accordion, log_ratio, noise_scale, selsync, squared_norm"
    if change == "norm":
        assert told.endswith(f"sync.change: 'norm' is not known: known are {known}")
    else:
        assert f"sync.change: should be the name of a detector ({known}), not " in told


@pytest.mark.parametrize(
    "sync",
    [
        {"kind": "fedavg", "local_steps": 2},
        {"kind": "post_local", "switch_step": 1, "local_steps": 2},
        {"kind": "selsync"},
    ],
    ids=lambda sync: sync["kind"],
)
def test_weights(sync: dict[str, Any]) -> None:
    for weights in ("samples", "shards", "uniform"):
        job = parse_job({**MINIMAL, "sync": {**sync, "weights": weights}}, "job.yaml")
        assert job.sync.weights == weights  # type: ignore[union-attr]
    assert "weights" in refused(sync={**sync, "weights": "shard"})
