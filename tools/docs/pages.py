"""The pages of docs/ that have a generated part."""

from __future__ import annotations

from pathlib import Path

from tools.docs.commands import commands
from tools.docs.components import components, python_example
from tools.docs.job_file import job_file
from tools.docs.logs import logs
from tools.docs.markdown import with_generated
from tools.docs.sweeps import sweeps

ROOT = Path(__file__).parents[2]
GENERATED = {
    "job-file.md": job_file,
    "commands.md": commands,
    "runs.md": logs,
    "clusters.md": sweeps,
    "extending.md": components,
    "python-api.md": python_example,
}


def stale() -> dict[Path, str]:
    """Pages that are not what the source says, each with what it should be."""
    found = {}
    for name, generate in GENERATED.items():
        path = ROOT / "docs" / name
        page = path.read_text(encoding="utf-8")
        wanted = with_generated(page, generate())
        if page != wanted:
            found[path] = wanted
    return found
