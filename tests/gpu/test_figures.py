"""The script that times a GPU, on one small case: that it fails should not come out on a machine with a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_times_a_small_case(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "tools" / "gpu_figures.py"), "--out", str(out), "--dry"]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    (case,) = json.loads(out.read_text())["cases"]
    assert (case["model"], case["batch"], case["clients"]) == ("resnet8", 4, 2)
    assert set(case["step_s"]) == {"bare", *case["ratio_to_bare"]} and min(case["step_s"].values()) > 0
