"""`hpclbfl bench comm`: the sum of a buffer over ranks, by engine and size.

A launch per variant: Horovod's thread would tax the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import HOROVOD_DEFAULTS, Launcher, runnable
from hpclbfl.bench.turns import Turns

VARIANTS = {
    "mpi": "engine mpi (in chunks)",
    "horovod": "engine horovod (as launched)",
    "horovod-default": "Horovod (defaults)",
    "mpi4py": "mpi4py, one Allreduce",
    "gloo": "torch.distributed",
    "memcpy": "memcpy (the limit)",
}
_HOST_ONLY = ("mpi", "mpi4py")


@dataclass(frozen=True)
class Settings:
    """What can be chosen."""

    rounds: int = 9
    num_ranks: int = 2
    mb: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Sizes of the float32 buffer, MB (1e6 bytes)."""
    variants: tuple[str, ...] = field(default_factory=lambda: runnable(VARIANTS, host_only=_HOST_ONLY))


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants; every launch takes all sizes."""
    findings = Findings(f"Sum over {settings.num_ranks} ranks", VARIANTS)
    libraries: dict[str, str] = findings.extra.setdefault("libraries", {})
    with Launcher(settings.num_ranks, debug) as launcher:
        for _, variant in turns(settings.variants, settings.rounds):
            extra = HOROVOD_DEFAULTS if variant == "horovod-default" else None
            found = launcher.run("comm_ranks", variant, settings, extra)
            libraries[variant] = found["library"]
            for mb, times in zip(settings.mb, found["times_s"], strict=True):
                findings.add(_group(mb), variant, "ms", [1e3 * t for t in times])
    findings.sort(list(VARIANTS))
    for mb in settings.mb:
        for against in ("horovod-default", "gloo", "mpi4py", "memcpy"):
            findings.compare(_group(mb), "mpi", against)
        findings.compare(_group(mb), "horovod", "horovod-default")
    return findings


def _group(mb: float) -> str:
    return f"{mb:g} MB"
