"""The mpirun command line by value, and a real mpirun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpclbfl.comm.mpi_runtime import bundled_environment, bundled_libmpi
from hpclbfl.core.errors import ConfigError, EnvironmentFault
from hpclbfl.launch import mpirun as launch
from hpclbfl.launch.mpirun import mpirun_command, parse_hosts, rank_environment, ranks_per_node, run_mpirun


def test_hosts_have_slots() -> None:
    assert parse_hosts("h1:2,h2") == {"h1": 2, "h2": 1}
    assert parse_hosts("h1:2, h1:1") == {"h1": 3}


@pytest.mark.parametrize("hosts", [":2", "h1:two", "h1:0", "h1:2,,h2:2", "h1:-1", "-oProxyCommand=x:2", "h 1", "h;x"])
def test_bad_hosts_are_named(hosts: str) -> None:
    with pytest.raises(ConfigError, match="expected host:slots"):
        parse_hosts(hosts)


def test_ranks_of_the_fullest_node() -> None:
    assert ranks_per_node(4, {}) == 4
    assert ranks_per_node(5, {"SLURM_JOB_NUM_NODES": "2"}) == 3
    assert ranks_per_node(4, {}, {"h1": 1, "h2": 3}) == 3


def test_the_users_variables_stay() -> None:
    added = rank_environment({"OMP_NUM_THREADS": "3"}, threads=8)
    assert "OMP_NUM_THREADS" not in added
    assert added["MKL_NUM_THREADS"] == "3"
    assert added["MALLOC_MMAP_MAX_"] == "0"


def test_command_on_one_host() -> None:
    argv, env = mpirun_command(2, ["prog", "arg"], {"PATH": "/bin", "HOME": "/h"}, cores=8)
    assert argv[:7] == ["mpirun", "-np", "2", "--bind-to", "none", "--map-by", "slot"]
    assert " ".join(argv).count("-mca pml ob1") == 1
    assert argv[-2:] == ["prog", "arg"]
    assert env["OMP_NUM_THREADS"] == "4"
    assert env["HOME"] == "/h"
    exported = {argv[i + 1] for i, word in enumerate(argv) if word == "-x"}
    assert {"PATH", "OMP_NUM_THREADS", "MALLOC_TOP_PAD_"} <= exported
    assert "HOME" not in exported
    assert not {"--allow-run-as-root", "--oversubscribe", "-H", "--prefix"} & set(argv)


def test_command_with_everything() -> None:
    bundled = {"OPAL_PREFIX": "/venv", "LD_LIBRARY_PATH": "/venv/lib"}
    argv, env = mpirun_command(
        6,
        ["prog"],
        {"OMPI_MCA_pml": "ucx"},
        cores=2,
        is_root=True,
        mpirun="/venv/bin/mpirun",
        hosts="a:3,b:3",
        bundled=bundled,
    )
    assert argv[0] == "/venv/bin/mpirun"
    assert {"--allow-run-as-root", "--oversubscribe"} <= set(argv)
    assert argv[argv.index("-H") + 1] == "a:3,b:3"
    assert argv[argv.index("--prefix") + 1] == "/venv"
    assert "pml" not in argv
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["OPAL_PREFIX"] == "/venv"


def test_more_ranks_than_slots_is_refused() -> None:
    with pytest.raises(ConfigError, match="-np 3: --hosts a:2 has 2 slots"):
        mpirun_command(3, ["prog"], {}, cores=8, hosts="a:2")
    with pytest.raises(ConfigError, match="at least one rank"):
        mpirun_command(0, ["prog"], {}, cores=8)


def test_missing_mpirun_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"no mpirun found: .*make install"):
        launch.find_mpirun()


def test_bundled_mpi_comes_first(tmp_path: Path) -> None:
    assert bundled_libmpi(str(tmp_path)) is None
    assert bundled_environment({}, str(tmp_path)) == {}
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmpi.so.40").touch()
    expected = {"OPAL_PREFIX": str(tmp_path), "LD_LIBRARY_PATH": f"{tmp_path}/lib:/other", "OMPI_MCA_btl": "^ofi"}
    assert bundled_environment({"LD_LIBRARY_PATH": "/other"}, str(tmp_path)) == expected
    assert bundled_environment({"LD_LIBRARY_PATH": f"/other:{tmp_path}/lib"}, str(tmp_path)) == expected
    assert "OMPI_MCA_btl" not in bundled_environment({"OMPI_MCA_btl": "self,vader"}, str(tmp_path))


@pytest.mark.mpi
def test_ranks_get_the_environment(tmp_path: Path) -> None:
    script = f'echo "$OMP_NUM_THREADS $MALLOC_TOP_PAD_" > {tmp_path}/$OMPI_COMM_WORLD_RANK'
    assert run_mpirun(3, ["sh", "-c", script], environ={**os.environ, "OMP_NUM_THREADS": "5"}) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert (tmp_path / "2").read_text() == "5 67108864\n"


@pytest.mark.mpi
def test_exit_code_is_carried() -> None:
    assert run_mpirun(2, ["sh", "-c", 'test "$OMPI_COMM_WORLD_RANK" = 0 || exit 7']) == 7
    assert run_mpirun(1, ["sh", "-c", "kill -9 $$"]) == 137


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # dead, and not yet collected by whoever inherited it


@pytest.mark.mpi
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_ranks(tmp_path: Path, signum: int) -> None:
    code = "import sys; from hpclbfl.launch.mpirun import run_mpirun; sys.exit(run_mpirun(2, sys.argv[1:]))"
    rank = f"echo $$ > {tmp_path}/$OMPI_COMM_WORLD_RANK; exec sleep 60"
    process = subprocess.Popen([sys.executable, "-c", code, "sh", "-c", rank])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all((tmp_path / name).exists() for name in "01"):
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signum)
    assert process.wait(timeout=30) == 128 + signum
    assert not any(_is_running(int((tmp_path / name).read_text())) for name in "01")
