"""YAML: job files, sweeps, profiles, plans and overrides, damaged or made up; and what is written comes back."""

import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from hpclbfl.batching.plan_file import Plan, load_plan
from hpclbfl.config.job import JobConfig, load_job, parse_job
from hpclbfl.core.errors import HpclbflError
from hpclbfl.core.yamlfile import parse_mapping, parse_value
from hpclbfl.core.yamltext import dump
from hpclbfl.slurm.expand import expand
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.resources import ProfileConfig, load_profile
from hpclbfl.slurm.submit import arrays, sbatch_text
from hpclbfl.slurm.sweep_file import describe, read_sweep
from tests.fuzz.budget import fuzz
from tests.slurm.conftest import NamedData

_JOB = """\
name: quickstart
seed: 0
clients: 10
data: {name: digits, augment: none, limit: 100}
partition: {kind: dirichlet, alpha: 0.3}
model: &m {name: resnet8, stem: imagenet}
sync: {kind: fedavg, local_steps: 5, weights: samples}
gradients: {scaler: {factor: 4.0, threshold: 0.5, when: delta_ge}, clip_norm: 5}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4, betas: [0.9, 0.999]}
schedule: {kind: multistep, milestones_epochs: [100, 150], gamma: 0.1}
batching: {local_batch_size: [16, 16], policy: fixed}
emulate: {slowdown: [1, 3], at: [{step: 100, rank: 0, factor: 4}]}
stop: {epochs: 8, steps: 012}
evaluate: {every_epochs: 2, splits: [test]}
comm: {engine: mpi, chunk_mb: 2}
"""
_SWEEP = """\
name: demo
base: {clients: 2, data: {name: digits}, model: {name: resnet8}}
grid: {optimizer.lr: [0.1, 1e-2], partition: [{kind: iid}]}
zip: {seed: [1, 2]}
list: [{sync: {kind: bsp}}, {sync: {kind: fedavg, local_epochs: 1}}]
exclude: [{optimizer.lr: 0.1}]
ranks: clients
resources: {time: 1:30:00, memory: 4G, partition: gpu, sbatch: {qos: normal, exclusive: true}, constraint: {a100: 1}}
"""
_PROFILE = """\
kind: slurm
launcher: srun
launcher_args: [--mpi=pmix]
partition: gpu
account: my-project
memory: 64G
constraint: {a100: 1, v100: 1}
sbatch: {qos: normal, nice: 5}
modules: [gcc/12.3]
setup:
  - export A=b
signal_s: 120
"""
_PLAN = """\
version: 1
ranks:
- {device: CPU, max_batch: 512, t_fixed_s: 0.05, t_per_sample_s: 0.003, t_below_s: [[2, 0.05]]}
job: {model: {name: resnet8}}
network: {num_ranks: 2, engine: mpi, hop_s: 1e-4, bandwidth_bytes_per_s: 1e9, num_bytes: 100}
"""

_HARD = st.sampled_from(
    (
        *("!!timestamp x", "!!bool foo", "!!python/name:os.system ", "9" * 5000, "[" * 500, "{a: " * 60, "? [a] : b"),
        *("&a [*a]", "*m", "&m ", "<<: ", '"\\0"', '"\\ud800"', "1e999", ".nan", "-.inf", "012", "1:30", "0x1f", "0o7"),
        *(
            "true",
            "null",
            "~",
            "''",
            "yes",
            "2026-01-01",
            "10" * 20,
            "-1",
            "1e300",
            "5e-324",
            "{}",
            "[]",
            "- ",
            "|\n  x",
        ),
        *(
            "\n---\n",
            "\n...\n",
            "#",
            "\t",
            "\r\n",
            "\ufeff",
            "\0",
            "\x1b[31m",
            "\x85",
            "é",
            "%YAML 1.1\n---\n",
            "'",
            '"',
        ),
        *("# sha256 of the text above: x\n", "touch X", "$(touch X)", "a b", "../..", "x" * 5000),
    )
)


def _mutated(text: str) -> st.SearchStrategy[bytes]:
    """The text with a few pieces replaced, by hard ones, random bytes or others of its own."""
    piece = _HARD.map(lambda piece: piece.encode()) | st.binary(max_size=4) | st.sampled_from(text.encode().split())
    cut = st.tuples(st.integers(0, len(text)), st.integers(0, 12), piece)

    def apply(cuts: list[tuple[int, int, bytes]]) -> bytes:
        content = text.encode()
        for place, length, new in cuts:
            content = content[:place] + new + content[place + length :]
        return content

    return st.lists(cut, min_size=1, max_size=4).map(apply)


def _replaced(text: str) -> st.SearchStrategy[bytes]:
    """The text with whole values replaced, so that it often stays YAML."""
    values = sorted({word.strip("{}[],") for word in text.replace("\n", " ").split()} - {""})
    value = st.sampled_from(values).map(str.encode)
    other = value | _HARD.map(lambda piece: piece.encode())
    return st.lists(st.tuples(value, other), min_size=1, max_size=3).map(
        lambda pairs: _replace_all(text.encode(), pairs)
    )


def _replace_all(content: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
    for old, new in pairs:
        content = content.replace(old, new, 1)
    return content


def _refusal(error: HpclbflError) -> None:
    text = str(error)
    assert text.isprintable() and len(text) < 5000 and "whole:" not in text, text
    assert error.exit_code == 2


def _files(strategy: st.SearchStrategy[bytes], check: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"

        def one(content: bytes) -> None:
            path.write_bytes(content)
            try:
                check(path)
            except HpclbflError as error:
                _refusal(error)
                assert str(error).startswith(str(path)) or "run " in str(error) or ".path" in str(error), error

        return fuzz(strategy, one)


def test_yaml_job():
    def check(path: Path) -> None:
        job = load_job(path)
        again = parse_job(parse_mapping(job.to_yaml().encode(), "again", ""), "again")
        assert isinstance(job, JobConfig) and again == job and again.digest("") == job.digest("")
        numbers = [value for value in job.optimizer.model_dump().values() if isinstance(value, float)]
        assert numbers and all(map(math.isfinite, numbers))

    assert _files(st.binary(max_size=200) | _mutated(_JOB) | _replaced(_JOB), check) > 0


def test_yaml_sweep():
    def check(path: Path) -> None:
        sweep = read_sweep(path)
        profile = ProfileConfig().merged(sweep.resources, f"{path}: resources")
        runs = expand(sweep, path, NamedData()).runs[:3]
        for array in arrays(sweep.name, runs, profile, 10):
            for line in sbatch_text(array, SweepFolder(Path("/sweep"))).splitlines():
                assert line.startswith(("#SBATCH --", "exec ")) or line in _PLAIN, line
        for run in runs:
            assert run.label.isprintable() and "/" not in run.id

    assert _files(st.binary(max_size=200) | _mutated(_SWEEP) | _replaced(_SWEEP), check) > 0


_PLAIN = ("#!/bin/bash", "", "# Parameters", "# command", "export SUBMITIT_EXECUTOR=slurm")


def test_yaml_profile_and_plan():
    def check(path: Path) -> None:
        if path.read_bytes().startswith((b"kind", b"launcher")):
            assert isinstance(load_profile(str(path)), ProfileConfig)
        else:
            assert isinstance(load_plan(path), Plan)

    texts = _mutated(_PROFILE) | _replaced(_PROFILE) | _mutated(_PLAN) | _replaced(_PLAN)
    assert _files(st.binary(max_size=200) | texts, check) > 0


_KEYS = st.sampled_from(("optimizer.lr", "optimizer", "seed", "clients", "data.path", "a..b", "", "sync", "stop.steps"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12) | _HARD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def test_yaml_override():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text("data: {name: digits}\nmodel: {name: resnet8}\n")

        def check(overrides: list[str]) -> None:
            try:
                assert isinstance(load_job(path, overrides), JobConfig)
            except HpclbflError as error:
                _refusal(error)
                assert str(error).startswith(("override ", f"{path}: ", "data.path: ")), error

        written = st.tuples(_KEYS, st.text(max_size=20) | _HARD | _VALUES.filter(_is_plain).map(_flow)).map("=".join)
        assert fuzz(st.lists(written | st.text(max_size=10), max_size=3), check) > 0


def test_yaml_round_trip():
    def check(value: Any) -> None:
        for flow in (False, True):
            text = dump({"value": value}, flow=flow)
            assert parse_value(text, "test") == {"value": value}
        label = describe({"key": value})
        assert label.isprintable() and parse_value(label.removeprefix("key="), "test") == value

    assert fuzz(_VALUES.filter(_is_plain), check) > 0


def _flow(value: Any) -> str:
    return dump(value, flow=True)


def _is_plain(value: Any) -> bool:
    """Whether a value can be written: without characters that no text may hold."""
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value)
