"""Probes that die, and limits as people write them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hpclbfl.algorithms.emulate import emulated_limit, emulated_slowdown
from hpclbfl.config.sections import EmulateConfig
from hpclbfl.core.errors import ConfigError, RunFailed
from hpclbfl.core.memory import free_memory, parse_size
from hpclbfl.planner.runner import MARK, Outcome, run_probe, run_process
from tests.planner.conftest import planned_job

MB = 10**6


def run(program: str, limit_bytes: int | None = None) -> Outcome:
    return run_process([sys.executable, "-c", program], {"a": 1}, dict(os.environ), limit_bytes)


def test_an_answer_comes_back() -> None:
    echo = f"import json, sys; print('noise'); print('{MARK}' + json.dumps({{'got': json.load(sys.stdin)}}))"
    assert run(echo).answer == {"got": {"a": 1}}
    assert run(echo, 500 * MB).peak_bytes > 1 * MB


@pytest.mark.parametrize(
    "program",
    [
        "import time; x = bytearray(300_000_000); time.sleep(20)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.abort()",
        "x = bytearray(10**18)",
        f"print('{MARK}' + '{{\"out_of_memory\": true}}')",
    ],
    ids=["over the limit", "killed", "aborted", "MemoryError", "said so"],
)
def test_running_out_of_memory_is_survived(program: str) -> None:
    assert run(program, 100 * MB).answer is None


def test_other_ends_are_errors_of_one_line() -> None:
    with pytest.raises(RunFailed, match="a probe ended with exit code 1: ValueError: what"):
        run("raise ValueError('what')")
    with pytest.raises(RunFailed, match="a probe ended with exit code 0: no message"):
        run("pass")
    with pytest.raises(ConfigError, match="no such net"):
        run(f'print(\'{MARK}\' + \'{{"error": "no such net", "exit_code": 2}}\')')


@pytest.mark.slow
def test_batch_memory_is_what_images_take(larger_set: Path) -> None:
    job = planned_job(larger_set)
    request = {"kind": "batches", "job": job.model_dump(mode="json"), "local_rank": 0, "local_size": 1}
    order = [(1, 0), (256, 0), (1024, 0), (1, 1), (256, 1)]
    request |= {"batches": order, "in_memory": True}
    answer = run_probe(request, None, True).answer
    assert answer is not None
    # 16 x 16 px of 3 channels, in uint8 in two buffers and in float32.
    assert [(batch, repetition) for batch, repetition, _ in answer["rows"]] == order
    for batch, _, size in answer["rows"]:
        # Whole pages of memory: a few hold one image.
        assert size == pytest.approx(batch * 16 * 16 * 3 * (1 + 1 + 4), rel=0.05, abs=40_000 if batch == 1 else 0)


@pytest.mark.slow
def test_a_real_probe_runs_out_of_memory(larger_set: Path) -> None:
    job = planned_job(larger_set)
    request = {"kind": "peak", "job": job.model_dump(mode="json"), "local_rank": 0, "local_size": 1}
    request |= {"num_steps": 1, "num_clients": 1}
    small = run_probe({**request, "batch": 8, "limit_bytes": 900 * MB}, 900 * MB)
    assert small.answer is not None
    peak = small.answer["peak_bytes"]
    limit = peak + 60 * MB
    assert run_probe({**request, "batch": 1100, "limit_bytes": limit}, limit).answer is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("512 MiB", 512 * 2**20), ("1.5g", 1_500_000_000), ("4096", 4096), ("1e9", 10**9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 TBs", "1.2.3MB", "0"])
def test_bad_sizes_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write a size such as 2GB or 512MiB"):
        parse_size(text)


def test_emulated_devices() -> None:
    assert emulated_limit(None) is None
    assert emulated_slowdown(None, 1, 2) == 1.0
    config = EmulateConfig(slowdown=(1.0, 3.0), memory_limit=1.5)
    assert emulated_limit(config) == 1_500_000_000
    assert emulated_slowdown(config, 1, 2) == 3.0
    with pytest.raises(ConfigError, match=r"emulate\.slowdown lists 2 ranks, this job has 4"):
        emulated_slowdown(config, 1, 4)


def _machine(root: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    return proc, groups


def test_free_memory_of_a_machine(tmp_path: Path) -> None:
    assert free_memory(*_machine(tmp_path, "0::/\n", {"memory.max": "max\n"})) == 8_000_000 * 1024


def test_free_memory_of_a_job_in_a_control_group(tmp_path: Path) -> None:
    files = {
        "slurm/job1/memory.max": "4000000000",
        "slurm/job1/memory.current": "1500000000",
        "slurm/job1/memory.stat": "anon 1\ninactive_file 500000000\n",
        "slurm/job1/step0/memory.max": "max",
    }
    assert free_memory(*_machine(tmp_path, "0::/slurm/job1/step0\n", files)) == 3_000_000_000


def test_free_memory_under_the_older_control_groups(tmp_path: Path) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": "2000000000",
        "memory/job/memory.usage_in_bytes": "100",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "100",
    }
    cgroup = "3:cpuset:/x\n4:memory:/job\n0::/\n"
    assert free_memory(*_machine(tmp_path, cgroup, files)) == 1_999_999_900
