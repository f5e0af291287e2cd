"""The doctor on this environment, and what it makes of a worse one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpclbfl.cli import doctor
from hpclbfl.cli.doctor import Check
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.launch.mpi_probe import loaded_mpi_libraries


@pytest.mark.mpi
def test_nothing_is_missing_here(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.run(as_json=True)
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert [check for check in found.values() if check["state"] == "missing"] == []
    assert code == 0
    assert "built with MPI" in found["Horovod"]["found"]
    assert found["two ranks"]["state"] == "ok"
    assert {"Python", "machine", "torch", "GPU", "mpirun", "mpi4py", "HDF5", "Slurm", "digits"} <= found.keys()


def test_optional_things_are_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_slurm().state == "absent"
    monkeypatch.setattr(doctor, "CHECKS", (("Slurm", doctor.check_slurm),))
    assert doctor.run(as_json=False) == 0


def test_a_check_that_cannot_start_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_mpirun() -> Check:
        raise EnvironmentFault("no mpirun found")

    def broken_import() -> Check:
        raise ImportError("libfoo.so: cannot open")

    monkeypatch.setattr(doctor, "CHECKS", (("mpirun", no_mpirun), ("torch", broken_import)))
    assert doctor.run(as_json=False) == 1
    printed = capsys.readouterr().out
    assert "no mpirun found" in printed
    assert "-> run make install" in printed
    assert "libfoo.so: cannot open" in printed


def test_a_dying_probe_is_told_by_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", [sys.executable, "-c", "import sys; sys.exit('no such library')"])
    assert doctor.check_horovod() == [
        Check("Horovod", "missing", "exit code 1: no such library", "run make install"),
    ]


def test_hdf5_on_a_folder_that_takes_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    check = doctor.check_hdf5()
    assert check.state == "warn"
    assert "/proc" in check.found


def test_libraries_of_a_process() -> None:
    maps = "7f r-xp 00 00 1 /a/lib/libmpi.so.40\n7f r--p 00 00 1 /a/lib/libmpi.so.40\n7f r--p 0 0 1 /b/libmpich.so.12\n"
    assert loaded_mpi_libraries(maps) == ["/a/lib/libmpi.so.40", "/b/libmpich.so.12"]


@pytest.mark.parametrize(
    ("has_gpu", "nccl", "state"), [(True, False, "warn"), (True, True, "ok"), (False, False, "ok")]
)
def test_a_gpu_without_nccl_is_told(monkeypatch: pytest.MonkeyPatch, has_gpu: bool, nccl: bool, state: str) -> None:
    found = {"horovod": "0.28.1", "mpi": True, "nccl": nccl, "mpi4py": "4.1.2", "libraries": [], "shared": True}
    monkeypatch.setattr(doctor, "_probe", lambda argv: found)
    monkeypatch.setattr(doctor, "has_gpu", lambda: has_gpu)
    check = doctor.check_horovod()[0]
    assert check.state == state
    if state == "warn":
        assert check.remedy == (
            "gradients of GPUs travel through the host: make clean install HOROVOD_GPU_OPERATIONS=NCCL"
        )
