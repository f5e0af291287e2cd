"""A run whose log is not what it should be is a problem of that run, and of no other."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.analysis.conftest import two_client_run


def counters(file):
    del file["committed"]
    file["committed"] = np.full(10**6, 7, np.int64)


def scalar(file):
    del file["committed"]
    file["committed"] = np.int64(1)


def elsewhere(file):
    del file["steps"]
    file["steps"] = h5py.ExternalLink("/etc/passwd", "steps")


def huge(file):
    file["steps"].resize((10**12,))
    file["committed"][0, 0] = 10**12


def rank(file):
    file.attrs["rank"] = 2**40


REASONS = {
    counters: "'committed' has shape (1000000); expected (6, 2)",
    scalar: "'committed' has shape (); expected (6, 2)",
    elsewhere: "'steps' is a link to another place, and such links are not followed",
    huge: "is torn: 'steps' declares 168,000,000,000,000 bytes, the file has ",
    rank: "attribute 'rank' is 1099511627776; expected a whole number from 0 to 2147483647",
}


@pytest.mark.slow
def test_report_export_and_watch_go_on(tmp_path):
    runs = tmp_path / "runs"
    two_client_run(runs / "good")
    logs = {change: two_client_run(runs / change.__name__).rank_log(0) for change in REASONS}
    for change, log in logs.items():
        with h5py.File(log, "r+") as file:
            change(file)
    told = {}
    for words in (["report", "--out", tmp_path / "out"], ["export", "--out", tmp_path / "tables"], ["watch", "--once"]):
        command = [sys.executable, "-m", "hpclbfl", words[0], str(runs), *map(str, words[1:])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        told[words[0]] = done.stdout.splitlines()
    for change, log in logs.items():
        lines = [line for line in told["report"] if str(log) in line]
        assert len(lines) == 1 and lines[0].startswith(f"{change.__name__}: {log}: {REASONS[change]}")
