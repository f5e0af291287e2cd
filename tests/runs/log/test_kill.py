"""Killed at any system call, a writer loses no row whose flush had returned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpclbfl.runs.log.reader import read_file

PROGRAM = Path(__file__).with_name("kill_program.py")


@pytest.mark.slow
def test_sigkill_at_any_system_calls_loses_no_flushed_row(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, timeout=120)
    if "no ptrace here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows_seen = set()
    for number, flushed in enumerate(told):
        path = tmp_path / f"{number}.h5"
        if flushed is None and not path.exists():
            continue
        # A file that has its name can be read, however its writer ended.
        tables = read_file(path).tables
        steps, events = tables["steps"], tables["events"]
        rows, notes = flushed or (0, 0)
        assert len(steps) >= rows and len(events) >= notes
        numbers = np.arange(len(steps))
        np.testing.assert_array_equal(steps["step"], numbers)
        np.testing.assert_array_equal(steps["loss"], numbers * 0.5)
        np.testing.assert_array_equal(steps["t_step_s"], numbers)
        assert [int(text) for text in events["text"]] == [109, 219, 329][: len(events)]
        rows_seen.add(len(steps))
    # It was killed between all flushes, in the making of the file, too; and at last not at all.
    assert told[0] is None and told[-1] == [330, 3]
    assert {0, 100, 110, 210, 220, 320, 330} <= rows_seen
