"""Starting one variant of a benchmark on MPI ranks, and getting back what it measured."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hpclbfl.comm.mpi_runtime import bundled_environment
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import EnvironmentFault, RunFailed
from hpclbfl.core.signals import Interrupted
from hpclbfl.launch.children import module_command
from hpclbfl.launch.messages import find_start_failure
from hpclbfl.launch.mpirun import available_cores, environment_without_job, find_mpirun, has_gpu, mpirun_command
from hpclbfl.launch.supervise import run_forwarding_signals

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = Diagnostics(__name__, title="")

HOROVOD_DEFAULTS = {
    "HOROVOD_CYCLE_TIME": "1",
    "HOROVOD_ENABLE_ASYNC_COMPLETION": "0",
    "HOROVOD_FUSION_THRESHOLD": str(128 << 20),
}
"""Horovod's own values of the variables that a launch sets for it."""
TASK, RESULT, ERROR = "task.json", "result.json", "rank{}.error"
"""Names of files in a launch's folder: what to do, what rank 0 measured, why a rank failed."""


def runnable(variants: Iterable[str], host_only: Container[str]) -> tuple[str, ...]:
    """Those that this machine can run; where ranks work on GPUs, not those that are for host memory."""
    return tuple(name for name in variants if not (has_gpu() and name in host_only))


class Launcher:
    """Starts `python -m MODULE TASK` on the ranks, all launches with the same flags and variables.

    Args:
        num_ranks: on this machine.
        debug: show what a failing launch wrote.
    """

    def __init__(self, num_ranks: int, debug: bool = False) -> None:
        self._num_ranks, self._debug = num_ranks, debug
        self._scratch = tempfile.TemporaryDirectory(prefix="hpclbfl-bench-")
        self.scratch = Path(self._scratch.name)
        """A folder for what all launches share; is removed in the end."""
        self._count = 0

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._scratch.cleanup()

    def run(
        self, module: str, variant: str, settings: DataclassInstance, extra: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Run one variant and return what rank 0 measured.

        Args:
            module: of `hpclbfl.bench`, to be run on every rank.
            settings: of the benchmark.
            extra: variables that this variant needs beside those that a launch sets.

        Raises:
            EnvironmentFault: there is no mpirun, or it cannot start the ranks.
            RunFailed: a rank failed; says which, and why.
            Interrupted: a signal ended it.
        """
        folder = self.scratch / f"launch{self._count:03d}"
        self._count += 1
        folder.mkdir()
        task = {"variant": variant, "settings": asdict(settings), "folder": str(folder), "scratch": str(self.scratch)}
        (folder / TASK).write_text(json.dumps(task), encoding="utf-8")
        environ = {**_clean(os.environ), **(extra or {})}
        argv, env = mpirun_command(
            self._num_ranks,
            module_command(f"hpclbfl.bench.{module}", str(folder / TASK)),
            environ,
            cores=available_cores(),
            is_root=os.geteuid() == 0,
            mpirun=find_mpirun(),
            bundled=bundled_environment(environ),
        )
        output = folder / "output"
        ended = run_forwarding_signals(["/bin/sh", "-c", 'exec "$@" >"$0" 2>&1', str(output), *argv], env)
        if ended.signum is not None:
            raise Interrupted(ended.signum)
        if ended.code or not (folder / RESULT).exists():
            said = output.read_text(encoding="utf-8", errors="replace")
            if self._debug:
                for line in said.splitlines():
                    logger.warning(line)
            if reason := find_start_failure(said):
                raise EnvironmentFault(f"bench, variant {variant}: {reason}")
            raise RunFailed(f"bench, variant {variant}: {_reason(folder, ended.code, said)}")
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return found


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without Horovod's variables: a variant is what its name says. One thread, unless set."""
    kept = {k: v for k, v in environment_without_job(environ).items() if not k.startswith("HOROVOD_")}
    return {"OMP_NUM_THREADS": "1", **kept}


def _reason(folder: Path, code: int, said: str) -> str:
    errors = sorted(folder.glob(ERROR.format("*")), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        # The others fail because the first one did.
        return f"{errors[0].stem.replace('rank', 'rank ')}: {errors[0].read_text(encoding='utf-8')}"
    lines = [line.strip() for line in said.splitlines()]
    # What mpirun has to say about it stands between lines of dashes, after what the ranks said.
    ranks = list(itertools.takewhile(lambda line: not line.startswith("-----"), lines))
    last = next((line for line in reversed(ranks or lines) if line.strip(" -")), "no message")
    return f"mpirun ended with exit code {code}: {last}"
