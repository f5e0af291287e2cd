from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "own_parts"
TIMEOUT_S = 240


class Workplace:
    """A folder of a user's with the example parts in it, and the command line as the user calls it there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def call(self, *words: object, **environ: str) -> subprocess.CompletedProcess[str]:
        """`hpclbfl words`, whatever its exit code."""
        command = [sys.executable, "-m", "hpclbfl", *map(str, words)]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def run(self, *words: object, **environ: str) -> str:
        """The same, for a call that succeeds; what it said on stderr."""
        done = self.call(*words, **environ)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def edit_all(self) -> None:
        """Leave no part as it was: one cannot be imported any more, one is gone, the others would train otherwise."""
        (self / "nets.py").write_text("raise SystemExit('edited')\n")
        (self / "schedules.py").unlink()
        for name in ("optimizers.py", "partitions.py"):
            text = (self / name).read_text()
            (self / name).write_text(text.replace("0.99", "0.5").replace("np.floor", "np.ceil"))


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "place")
