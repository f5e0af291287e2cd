"""`hpclbfl bench comm`: the sum of a buffer over ranks, by engine and size.

One launch per variant: Horovod's background thread would slow the others down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher, runnable
from hpclbfl.bench.turns import Turns

VARIANTS = {
    "mpi": "engine mpi (in chunks)",
    "horovod": "engine horovod (as launched)",
    "horovod-default": "Horovod (defaults)",
    "mpi4py": "mpi4py, one Allreduce",
    "gloo": "torch.distributed",
    "memcpy": "memcpy (the limit)",
}
_COMPARED = (
    *(("mpi", against) for against in ("horovod-default", "gloo", "mpi4py", "memcpy")),
    ("horovod", "horovod-default"),
)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 9
    num_ranks: int = 2
    mb: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Sizes of the float32 buffer, MB (1e6 bytes)."""
    variants: tuple[str, ...] = field(default_factory=lambda: runnable(VARIANTS, host_only=("mpi", "mpi4py")))


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants; every launch measures all sizes."""
    findings = Findings(f"Sum over {settings.num_ranks} ranks", VARIANTS)
    libraries: dict[str, str] = findings.extra.setdefault("libraries", {})
    groups = [f"{mb:g} MB" for mb in settings.mb]
    with Launcher(settings.num_ranks, debug) as launcher:
        for _, variant in turns(settings.variants, settings.rounds):
            found = launcher.run("comm_ranks", variant, settings)
            libraries[variant] = found["library"]
            for group, times in zip(groups, found["times_s"], strict=True):
                findings.add(group, variant, "ms", [1e3 * t for t in times])
    findings.sort(list(VARIANTS))
    for group in groups:
        for variant, against in _COMPARED:
            findings.compare(group, variant, against)
    return findings
