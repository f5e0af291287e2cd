"""`hpclbfl bench step`: one bulk-synchronous step, ours and others', and the share of averaging under FA.

A launch per variant: Horovod's thread would tax the others. All have the same flags, threads and allocator variables,
the same images, net and optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import HOROVOD_DEFAULTS, Launcher, runnable
from hpclbfl.bench.turns import Turns

VARIANTS = {
    "compute": "compute alone",
    "mpi": "ours, engine mpi",
    "horovod": "ours, engine horovod (as launched)",
    "distributed-optimizer": "hvd.DistributedOptimizer (defaults)",
    "ddp": "DistributedDataParallel",
    "fa-mpi": "FA, engine mpi",
    "fa-horovod": "FA, engine horovod (as launched)",
}
LOCAL_STEPS = 50
"""H, to which the cost of an averaging is set in proportion."""
_HOST_ONLY = ("mpi", "fa-mpi")
_COMPARED = (
    ("mpi", "compute"),
    ("mpi", "distributed-optimizer"),
    ("mpi", "ddp"),
    ("horovod", "compute"),
    ("horovod", "distributed-optimizer"),
    ("horovod", "ddp"),
)


@dataclass(frozen=True)
class Settings:
    """What can be chosen."""

    rounds: int = 9
    num_ranks: int = 2
    model: str = "resnet18"
    batch: int = 32
    """Samples per rank and step."""
    steps: int = 12
    """Timed per launch."""
    warmup: int = 4
    variants: tuple[str, ...] = field(default_factory=lambda: runnable(VARIANTS, host_only=_HOST_ONLY))


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants."""
    from hpclbfl.bench.training import image_side, write_images

    what = f"{settings.model}, {image_side(settings.model)} px, batch {settings.batch} per rank"
    findings = Findings(f"One step on {settings.num_ranks} ranks: {what}", VARIANTS)
    libraries: dict[str, str] = findings.extra.setdefault("libraries", {})
    local, averaging, share = "FA, a local step", "FA, an averaging", f"FA, averaging's share at H = {LOCAL_STEPS}"
    with Launcher(settings.num_ranks, debug) as launcher:
        write_images(launcher.scratch, settings.model, settings.num_ranks * settings.batch)
        for _, variant in turns(settings.variants, settings.rounds):
            extra = HOROVOD_DEFAULTS if variant == "distributed-optimizer" else None
            found = launcher.run("step_ranks", variant, settings, extra)
            libraries[variant] = found["library"]
            steps = found["steps_s"]
            if "averagings_s" not in found:
                findings.add("BSP step", variant, "ms", [1e3 * t for t in steps])
                continue
            findings.add(local, variant, "ms", [1e3 * t for t in steps])
            findings.add(averaging, variant, "ms", [1e3 * t for t in found["averagings_s"]])
            cost = float(np.median(found["averagings_s"])) / (LOCAL_STEPS * float(np.median(steps)))
            findings.add(share, variant, "%", [100 * cost])
    findings.sort(list(VARIANTS))
    for variant, against in _COMPARED:
        findings.compare("BSP step", variant, against)
    return findings
