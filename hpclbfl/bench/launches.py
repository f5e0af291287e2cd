"""Starts one variant of a benchmark on MPI ranks and returns what it measured."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpclbfl.bench.ranks import ERROR, RESULT
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import EnvironmentFault, RunFailed
from hpclbfl.core.signals import Interrupted
from hpclbfl.launch.children import module_command
from hpclbfl.launch.messages import find_start_failure
from hpclbfl.launch.mpirun import environment_without_job, has_gpu, local_mpirun_command
from hpclbfl.launch.supervise import run_forwarding_signals

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = Diagnostics(__name__, title="")


def has_peer(name: str) -> bool:
    """Whether a framework lies in an environment of its own; `tools/bench_peers.sh` makes one."""
    return _peer_python(name).exists()


def peer_python(name: str) -> Path:
    """The Python of a framework's environment.

    Raises:
        EnvironmentFault: there is none.
    """
    if not has_peer(name):
        raise EnvironmentFault(f"bench: {name} lies in no environment of its own; tools/bench_peers.sh {name} makes it")
    return _peer_python(name)


def _peer_python(name: str) -> Path:
    return Path(sys.prefix, "peers", name, "bin", "python")


def runnable(variants: Iterable[str], host_only: Container[str], peers: Container[str] = ()) -> tuple[str, ...]:
    """The variants that this machine can run.

    Args:
        host_only: need host memory, and cannot run where ranks compute on GPUs.
        peers: frameworks that lie in environments of their own, and are left out where there is none.
    """
    found = (name for name in variants if name not in peers or has_peer(name))
    return tuple(name for name in found if not (has_gpu() and name in host_only))


class Launcher:
    """Starts `python -m hpclbfl.bench.MODULE TASK` on ranks of this machine, always with the same flags and variables.

    Args:
        debug: show the output of a failing launch.
    """

    def __init__(self, num_ranks: int, debug: bool = False) -> None:
        self._num_ranks, self._debug = num_ranks, debug
        self._folder = tempfile.TemporaryDirectory(prefix="hpclbfl-bench-")
        self.scratch = Path(self._folder.name)
        """A folder that all launches share; is removed in the end."""
        self._count = itertools.count()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(
        self,
        module: str,
        variant: str,
        settings: DataclassInstance,
        extra: Mapping[str, str] | None = None,
        num_ranks: int | None = None,
        python: Path | None = None,
    ) -> dict[str, Any]:
        """Run one variant and return what rank 0 measured.

        Args:
            module: of `hpclbfl.bench`, run on every rank.
            extra: variables of this variant in addition to those of every launch.
            num_ranks: other than the launcher's.
            python: of another environment, see `peer_python`.

        Raises:
            EnvironmentFault: there is no mpirun, or it cannot start the ranks.
            RunFailed: a rank failed; says which, and why.
            Interrupted: a signal ended it.
        """
        folder = self.scratch / f"launch{next(self._count):03d}"
        folder.mkdir()
        task, output, result = folder / "task.json", folder / "output", folder / RESULT
        given = {"variant": variant, "settings": asdict(settings), "folder": str(folder), "scratch": str(self.scratch)}
        # Without the user's HOROVOD_ variables, which would change what is measured.
        clean = {k: v for k, v in environment_without_job(os.environ).items() if not k.startswith("HOROVOD_")}
        environ = {"OMP_NUM_THREADS": "1", **clean, **(extra or {})}
        command = module_command(f"hpclbfl.bench.{module}", str(task))
        if python is not None:
            command[0] = str(python)
        argv, env = local_mpirun_command(num_ranks or self._num_ranks, command, environ)
        task.write_text(json.dumps({**given, "begun": time.time()}), encoding="utf-8")
        ended = run_forwarding_signals(["/bin/sh", "-c", 'exec "$@" >"$0" 2>&1', str(output), *argv], env)
        if ended.signum is not None:
            raise Interrupted(ended.signum)
        if ended.code or not result.exists():
            text = output.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines() if self._debug else ():
                logger.warning(line)
            if reason := find_start_failure(text):
                raise EnvironmentFault(f"bench, variant {variant}: {reason}")
            raise RunFailed(f"bench, variant {variant}: {_reason(folder, ended.code, text)}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def _reason(folder: Path, code: int, output: str) -> str:
    errors = sorted(folder.glob(ERROR.format("*")), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        # The others fail because of the first one.
        return f"{errors[0].stem.replace('rank', 'rank ')}: {errors[0].read_text(encoding='utf-8')}"
    last = {True: "no message", False: ""}
    is_notice = False
    for line in (line.strip() for line in output.splitlines()):
        # mpirun's own notices stand between lines of dashes, before or after what the ranks have written.
        if line.startswith("-----"):
            is_notice = not is_notice
        elif line:
            last[is_notice] = line
    return f"mpirun ended with exit code {code}: {last[False] or last[True]}"
