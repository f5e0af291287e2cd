"""What the cluster is told; and golden batch scripts, one for each profile."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclbfl.config.job import parse_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.yamltext import dump
from hpclbfl.slurm.expand import Run
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.resources import PROFILES, ProfileConfig, ResourcesConfig, load_profile, minutes
from hpclbfl.slurm.sbatch import cut, sbatch_parameters, shares, tasks_per_node
from hpclbfl.slurm.submit import arrays, sbatch_text
from hpclbfl.slurm.sweep_file import read_sweep
from tests.slurm.conftest import BASE

GOLDEN = Path(__file__).with_name("golden")


def toy_runs(count: int, ranks: int = 2) -> list[Run]:
    job = parse_job({**BASE, "data": {"name": "digits"}}, "toy")
    return [Run(f"toy-{i:010x}", f"toy-old-{i:010x}", f"{i:010x}", job, ranks, {"seed": i}) for i in range(count)]


def text(profile: ProfileConfig, num_runs: int = 3, ranks: int = 2, max_array_size: int = 1001) -> str:
    (array,) = arrays("demo", toy_runs(num_runs, ranks), profile, max_array_size)
    return sbatch_text(array, SweepFolder(Path("/scratch/demo")))


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "local"))
def test_batch_script_is_the_golden_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.setattr("hpclbfl.slurm.submit.RUN_MODULE", Path("/env/hpclbfl/launch/entry/run_module.py"))
    found = text(load_profile(name))
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("HPCLBFL_WRITE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text()


def test_a_lone_run_is_no_array() -> None:
    assert "--array" not in text(load_profile("slurm-srun"), num_runs=1)


def test_resources_of_the_sweep_come_before_the_profile() -> None:
    profile = ProfileConfig(nodes=4, time="60", sbatch={"qos": "normal"}, memory="1G")
    wanted = ResourcesConfig(constraint={"a100": 1, "v100": 2}, time="2:00:00", sbatch={"exclusive": True})
    found = text(profile.merged(wanted, "sweep"), ranks=5).splitlines()
    for flag in (
        *("nodes=3", "ntasks=5", "ntasks-per-node=2", "constraint='[a100*1&v100*2]'", "time=120", "qos=normal"),
        *("exclusive", "mem=1G"),
    ):
        assert f"#SBATCH --{flag}" in found


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"launchr": "srun"}, "p.yaml: unknown key 'launchr': did you mean 'launcher'?"),
        ({"launcher": "prun"}, "p.yaml: launcher: input should be 'srun' or 'mpirun', not 'prun'"),
        ({"time": "soon"}, "p.yaml: time: give minutes (90), hours:minutes:seconds (1:30:00)"),
        ({"time": 0}, "p.yaml: time: give minutes"),
        ({"memory": "4 GB"}, "p.yaml: memory: give a number with K, M, G or T, such as 16G, not '4 GB'"),
        ({"time": 2}, "'signal_s: 120' is more than half of 'time: 2': no run would get anywhere"),
        ({"sbatch": {"nodes": 2}}, "p.yaml: sbatch: 'nodes' is set from the other keys"),
        (
            {"partition": "p\ntouch X #"},
            r"partition: should be one word of letters, digits and _.,:;?!+@=&|*^/()[]-, not",
        ),
        ({"kind": "local", "modules": ["gcc"]}, "p.yaml: 'modules' goes with kind slurm, not local"),
        ({"constraint": {"a100": 1}, "nodes": 2}, "'nodes: 2' is not the sum of the nodes in 'constraint'"),
        ({"cpus_per_rank": True}, "cpus_per_rank: should be a whole number, not true"),
    ],
)
def test_wrong_profiles_are_refused_in_one_line(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(dump(keys))
    with pytest.raises(ConfigError) as error:
        load_profile(str(path))
    assert words in str(error.value) and str(error.value).isprintable()


WORD = "should be one word of letters, digits and _.,:;?!+@=&|*^/()[]-"


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"partition": "p\ntouch X #"}, rf"partition: {WORD}, not 'p\ntouch X #'"),
        ({"account": "a b"}, f"account: {WORD}, not 'a b'"),
        ({"account": ["a"]}, f"account: {WORD}, not ['a']"),
        ({"account": "x" * 10**5}, f"account: {WORD}, not 'xxx"),
        ({"constraint": "a100;touch `X`"}, f"constraint: {WORD}, not 'a100;touch `X`'"),
        ({"constraint": {"a\nb": 1}}, rf"constraint: 'a\nb' {WORD}"),
        ({"constraint": {"a": True}}, "constraint.a: should be a whole number, not true"),
        ({"memory": "16G\n"}, r"memory: give a number with K, M, G or T, such as 16G, not '16G\n'"),
        ({"time": "90\n"}, "time: give minutes (90), hours:minutes:seconds (1:30:00) or days"),
        ({"time": "\u0663"}, "time: give minutes (90), hours:minutes:seconds (1:30:00) or days"),
        ({"time": "9" * 6000}, "time: give minutes (90), hours:minutes:seconds (1:30:00) or days"),
        ({"sbatch": {"qos\ntouch X": 1}}, r"sbatch: 'qos\ntouch X' is no flag of sbatch, or is given twice"),
        (
            {"sbatch": {"mem-per-cpu": 1, "mem_per_cpu": 1}},
            "sbatch: 'mem_per_cpu' is no flag of sbatch, or is given twice",
        ),
        ({"sbatch": {"qos": "x\ntouch X"}}, f"sbatch: 'qos' {WORD}"),
        ({"sbatch": {"comment": "$(touch X)"}}, f"sbatch: 'comment' {WORD}"),
        ({"sbatch": {"gres": ["gpu"]}}, f"sbatch: 'gres' {WORD}"),
        ({"sbatch": ["qos"]}, "sbatch: should be a mapping of sbatch's flags, such as {qos: long, exclusive: true}"),
        (
            {"sbatch": {"wrap": "touch"}},
            "sbatch: 'wrap' may only be set in a cluster profile (--cluster); a sweep may set begin, ",
        ),
        (
            {"sbatch": {"export": "BASH_ENV=x"}},
            "sbatch: 'export' may only be set in a cluster profile (--cluster); a sweep may set ",
        ),
        (
            {"sbatch": {"chdir": "/tmp"}},
            "sbatch: 'chdir' may only be set in a cluster profile (--cluster); a sweep may set begin, ",
        ),
        # sbatch takes the beginning of a flag for the flag.
        ({"sbatch": {"arr": 5}}, "sbatch: 'arr' is set from the other keys (nodes, memory, time, signal_s ...)"),
        (
            {"sbatch": {"expor": "A=x"}},
            "sbatch: 'expor' may only be set in a cluster profile (--cluster); a sweep may set begin, ",
        ),
        (
            {"launcher_args": ["--x"]},
            "'launcher_args' runs programs, so only a cluster profile (--cluster) may set it",
        ),
        ({"modules": ["gcc"]}, "'modules' runs programs, so only a cluster profile (--cluster) may set it"),
        ({"setup": ["touch X"]}, "'setup' runs programs, so only a cluster profile (--cluster) may set it"),
        ({"launcher": "mpirun"}, "'launcher' runs programs, so only a cluster profile (--cluster) may set it"),
        ({"nodes": "2"}, "nodes: should be a whole number, not '2'"),
    ],
)
def test_what_a_sweep_may_not_ask_for(tmp_path: Path, resources: dict[str, Any], message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(dump({"name": "demo", "base": {}, "resources": resources}))
    with pytest.raises(ConfigError) as error:
        read_sweep(path)
    found = str(error.value)
    assert found.isprintable() and len(found) < 1200
    assert found.removeprefix(f"{path}: resources").lstrip(".: ").startswith(message)


@pytest.mark.parametrize(
    "value", ["gpu:a100:2", "n[1-3],m4", "(a|b)&c", "a*2", "1-2:3", "x/y", "user@site.org", "now+1hour"]
)
def test_words_that_slurm_uses_come_quoted_into_the_script(value: str) -> None:
    wanted = ResourcesConfig(partition=value, constraint=value, sbatch={"gres": value, "exclusive": True, "nice": 5})
    found = text(ProfileConfig().merged(wanted, "sweep")).splitlines()
    for flag in ("partition", "constraint", "gres"):
        assert f"#SBATCH --{flag}={shlex.quote(value)}" in found
    assert {"#SBATCH --exclusive", "#SBATCH --nice=5"} <= set(found)


@given(
    st.dictionaries(st.text(max_size=6) | st.sampled_from(["qos", "gres", "comment"]), st.text(max_size=8), max_size=2)
)
def test_no_resources_add_a_line_to_the_script(flags: dict[str, str]) -> None:
    plain = [line.partition("=")[0] for line in text(ProfileConfig()).splitlines()]
    values = {"partition": next(iter(flags.values()), "gpu"), "sbatch": flags}
    try:
        wanted = ResourcesConfig.model_validate(values)
    except ValueError:
        return
    found = [line.partition("=")[0] for line in text(ProfileConfig().merged(wanted, "sweep")).splitlines()]
    assert sorted(found) == sorted([*plain, "#SBATCH --partition", *(f"#SBATCH --{key}" for key in flags)])


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/scratch/a\ntouch X", "a batch script cannot name it; give a folder without control characters"),
        ("/scratch/a\\b", "Slurm would read the \\ in it as a pattern; give a folder without one"),
    ],
)
def test_a_folder_that_a_batch_script_cannot_name_is_refused(folder: str, reason: str) -> None:
    (array,) = arrays("demo", toy_runs(2), ProfileConfig(), 10)
    with pytest.raises(ConfigError) as error:
        sbatch_text(array, SweepFolder(Path(folder)))
    assert str(error.value).endswith(f": {reason}") and str(error.value).isprintable()


def test_a_folder_with_a_space_is_quoted() -> None:
    (array,) = arrays("demo", toy_runs(2), ProfileConfig(), 10)
    found = sbatch_text(array, SweepFolder(Path("/scratch/a b")))
    assert "#SBATCH --output='/scratch/a b/slurm/%A_%a_0_log.out'" in found
    assert "submitit.core._submit '/scratch/a b/slurm'" in found


def test_an_unknown_profile_names_the_known() -> None:
    with pytest.raises(
        ConfigError, match="--cluster frontier: no such profile: example, local, slurm-mpirun, slurm-srun"
    ):
        load_profile("frontier")


@pytest.mark.parametrize(("ranks", "nodes", "fullest"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (10, 3, 4)])
def test_as_few_nodes_as_the_ranks_fit_on(ranks: int, nodes: int, fullest: int) -> None:
    found = sbatch_parameters("x", ranks, ProfileConfig(ranks_per_node=4, gpus_per_rank=1), None)
    assert (found["nodes"], found["ntasks_per_node"], found["gpus_per_node"]) == (nodes, fullest, fullest)
    assert found["additional_parameters"]["ntasks"] == ranks


def test_too_few_nodes_are_refused() -> None:
    profile = ProfileConfig(nodes=2, ranks_per_node=4)
    assert tasks_per_node(8, profile) == 4
    with pytest.raises(ConfigError, match="no room for 9 ranks on 2 nodes; leave out 'nodes', or ask for 3"):
        tasks_per_node(9, profile)


def test_more_nodes_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="nodes: 4 for runs of 2 ranks leaves some without work"):
        text(ProfileConfig(nodes=4))


def test_a_percent_sign_in_the_folder_is_refused() -> None:
    (array,) = arrays("demo", toy_runs(2), ProfileConfig(), 10)
    with pytest.raises(ConfigError, match="Slurm would read the % in it as a pattern"):
        sbatch_text(array, SweepFolder(Path("/scratch/100%")))


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("0:00:01", 1), ("2-00", 2880), ("1-02:03:04", 1564), ("1-00:01", 1441)],
)
def test_minutes(time: str, expected: int) -> None:
    assert minutes(time) == expected


@given(st.integers(1, 5000), st.integers(1, 1200))
def test_cut_is_even_and_whole(count: int, largest: int) -> None:
    sizes = cut(count, largest)
    assert sum(sizes) == count and max(sizes) <= largest and max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // largest)


@given(st.integers(1, 40), st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_parallelism_is_shared_and_never_exceeded(total: int, sizes: list[int]) -> None:
    given_ = shares(total, sizes)
    assert len(given_) == len(sizes) and all(share is not None and share >= 1 for share in given_)
    # Of arrays i, i + total, ... one runs at a time.
    together = [share or 0 for share in given_[:total]]
    assert sum(together) <= total
    assert sum(together) == total or all(share >= size for share, size in zip(together, sizes, strict=False))
    assert shares(None, sizes) == [None] * len(sizes)


def test_arrays_are_cut_share_places_and_wait_for_each_other() -> None:
    found = arrays("demo", toy_runs(10), ProfileConfig(max_parallel=5), max_array_size=4)
    assert [len(array.runs) for array in found] == [4, 3, 3]
    assert [array.parameters["array_parallelism"] for array in found] == [2, 2, 1]
    assert [array.after for array in found] == [None] * 3
    assert [run.id for array in found for run in array.runs] == [run.id for run in toy_runs(10)]
    found = arrays("demo", toy_runs(10), ProfileConfig(max_parallel=2), max_array_size=2)
    assert [array.after for array in found] == [None, None, 0, 1, 2]
    assert {array.parameters["array_parallelism"] for array in found} == {1}


def test_runs_of_unlike_ranks_are_in_arrays_of_their_own() -> None:
    mixed = [run for pair in zip(toy_runs(3, 1), toy_runs(3, 4), strict=True) for run in pair]
    found = arrays("demo", mixed, ProfileConfig(), max_array_size=100)
    assert [(len(array.runs), array.parameters["additional_parameters"]["ntasks"]) for array in found] == [
        (3, 1),
        (3, 4),
    ]
