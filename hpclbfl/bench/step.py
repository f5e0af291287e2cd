"""`hpclbfl bench step`: one bulk-synchronous step of this package and its peers, and the share of averaging under FA.

One launch per variant: Horovod's background thread would slow the others down. All have the same flags, threads and
allocator variables, the same images, net and optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher, peer_python, runnable
from hpclbfl.bench.memory import MEMORY
from hpclbfl.bench.torchrun import master_port
from hpclbfl.bench.training import StepSettings, write_images
from hpclbfl.bench.turns import Turns

VARIANTS = {
    "compute": "compute alone",
    "mpi": "ours, engine mpi",
    "horovod": "ours, engine horovod (as launched)",
    "distributed-optimizer": "hvd.DistributedOptimizer (defaults)",
    "ddp": "DistributedDataParallel",
    "lightning": "Lightning, DDP",
    "accelerate": "accelerate, DDP",
    "fa-mpi": "FA, engine mpi",
    "fa-horovod": "FA, engine horovod (as launched)",
}
FRAMEWORKS = ("lightning", "accelerate")
"""In environments of their own, see `tools/bench_peers.sh`."""
_START = "start to the end of the first step"
LOCAL_STEPS = 50
"""H, for the share of an averaging."""


@dataclass(frozen=True)
class Settings(StepSettings):
    """Settings of the benchmark."""

    variants: tuple[str, ...] = field(
        default_factory=lambda: runnable(VARIANTS, host_only=("mpi", "fa-mpi", *FRAMEWORKS), peers=FRAMEWORKS)
    )


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants."""
    findings = Findings(f"One step {settings.describe()}", VARIANTS)
    libraries: dict[str, str] = findings.extra.setdefault("libraries", {})
    with Launcher(settings.num_ranks, debug) as launcher:
        write_images(launcher.scratch, settings.model, settings.num_ranks * settings.batch)
        for _, variant in turns(settings.variants, settings.rounds):
            if variant in FRAMEWORKS:
                found = launcher.run("framework_ranks", variant, settings, master_port(), python=peer_python(variant))
            else:
                found = launcher.run("step_ranks", variant, settings)
            libraries[variant] = found["library"]
            steps, averagings = found["steps_s"], found.get("averagings_s")
            findings.add("FA, a local step" if averagings else "BSP step", variant, "ms", [1e3 * t for t in steps])
            findings.add(_START, variant, "s", [found["start_s"]])
            findings.add(MEMORY, variant, "MB", [found["memory_mb"]])
            if averagings:
                findings.add("FA, an averaging", variant, "ms", [1e3 * t for t in averagings])
                share = float(np.median(averagings)) / (LOCAL_STEPS * float(np.median(steps)))
                findings.add(f"FA, averaging's share at H = {LOCAL_STEPS}", variant, "%", [100 * share])
    findings.sort(list(VARIANTS))
    for variant in ("mpi", "horovod"):
        for against in ("compute", "distributed-optimizer", "ddp", *FRAMEWORKS):
            for group in ("BSP step", _START, MEMORY):
                findings.compare(group, variant, against)
    return findings
