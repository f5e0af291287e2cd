"""The record of what ran."""

import json
import subprocess
import sys

import h5py
import numpy as np
import torch

import hpclbfl
from hpclbfl.runs import provenance
from hpclbfl.runs.provenance import collect, environment


def test_record(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    record = collect("local", 4, {"mpi_library": "Open MPI v4.1.4"})
    assert json.loads(json.dumps(record)) == record
    assert (record["engine"], record["num_ranks"], record["mpi_library"]) == ("local", 4, "Open MPI v4.1.4")
    assert record["time"].endswith("+00:00")
    assert record["hpclbfl"] == hpclbfl.__version__
    assert record["versions"]["h5py"] == h5py.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert set(record["versions"]) == {"torch", "torchvision", "timm", "horovod", "mpi4py", "h5py", "numpy"}
    assert record["cpu"]["threads"] >= record["cpu"]["usable"] >= 1
    assert record["environment"]["OMP_NUM_THREADS"] == "2"
    assert record["argv"] == sys.argv


def test_environment_keeps_no_secrets():
    variables = {
        "HOROVOD_CYCLE_TIME": "5",
        "MALLOC_MMAP_MAX_": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_JWT": "x",
        "HOROVOD_SECRET_KEY": "x",
        "NCCL_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HOME": "/home/x",
    }
    assert environment(variables) == {"HOROVOD_CYCLE_TIME": "5", "MALLOC_MMAP_MAX_": "0", "SLURM_JOB_ID": "7"}


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_commit_of_the_packages_checkout_alone(tmp_path, monkeypatch):
    module = tmp_path / "hpclbfl" / "__init__.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(hpclbfl, "__file__", str(module))
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance._git() == {"commit": commit, "dirty": False}
    module.write_text("changed = True\n")
    assert provenance._git() == {"commit": commit, "dirty": True}
    # A copy installed below somebody else's checkout.
    installed = tmp_path / "venv" / "site-packages" / "hpclbfl" / "__init__.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(hpclbfl, "__file__", str(installed))
    assert provenance._git() is None


def test_no_git_and_no_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance._git() is None
    assert provenance._version("no-such-package") is None


def test_nothing_heavy_is_imported():
    code = "import sys; from hpclbfl.runs.provenance import collect; r = collect('local', 1); " + (
        "print(sorted({'torch', 'horovod', 'mpi4py', 'numpy'} & set(sys.modules)), r['gpus'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_a_gpus_rounding_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert provenance._tf32() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert provenance._tf32() == {"convolutions": False, "matrix_products": False}
