"""`hpclbfl bench federated`: rounds of federated averaging of this package, of a plain loop, and of other frameworks.

Every client trains one epoch on its own samples, starting from the common net, then all are averaged: the same images,
net, batches and optimizer, on as many workers of one thread each. Each variant has a launch of its own in every turn,
whose first round is not among the warm ones. Frameworks, where installed (`tools/bench_peers.sh`), lie in environments
of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher, peer_python, runnable
from hpclbfl.bench.memory import MEMORY
from hpclbfl.bench.torchrun import master_port
from hpclbfl.bench.training import image_side, write_images
from hpclbfl.bench.turns import Turns
from hpclbfl.core.errors import ConfigError, RunFailed

VARIANTS = {
    "loop": "a plain loop over the clients",
    "mpi": "ours, engine mpi",
    "horovod": "ours, engine horovod (as launched)",
    "flower": "Flower, simulation",
    "pfl": "pfl-research, simulation",
    "appfl": "APPFL, MPI (one rank more, which serves)",
}
PEERS = ("flower", "pfl", "appfl")
_ROUND, _START = "a warm round", "start to the end of the first round"


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 3
    num_ranks: int = 2
    model: str = "resnet20"
    batch: int = 32
    clients: int = 10
    samples: int = 320
    """Of each client."""
    timed: int = 3
    """Rounds of averaging timed in each launch, after the first."""
    variants: tuple[str, ...] = field(
        default_factory=lambda: runnable(VARIANTS, host_only=tuple(VARIANTS), peers=PEERS)
    )

    def __post_init__(self) -> None:
        if self.samples % self.batch or self.samples < self.batch:
            raise ConfigError(f"bench federated: --samples {self.samples} are no whole batches of {self.batch}")


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants."""
    side, num_ranks = image_side(settings.model), settings.num_ranks
    findings = Findings(
        f"Federated averaging on {num_ranks} ranks: {settings.clients} clients of {settings.samples} samples, "
        f"{settings.model}, {side} px, batch {settings.batch}, one local epoch",
        VARIANTS,
    )
    libraries: dict[str, str] = findings.extra.setdefault("libraries", {})
    count = settings.clients * settings.samples
    norms: dict[str, float] = findings.extra.setdefault("norms", {})
    with Launcher(num_ranks, debug) as launcher:
        write_images(launcher.scratch, settings.model, count, passes=1)
        for _, variant in turns(settings.variants, settings.rounds):
            if variant in PEERS:
                # Flower starts its workers by itself; APPFL's server needs a rank of its own.
                ranks = {"flower": 1, "appfl": num_ranks + 1}.get(variant, num_ranks)
                module, python = f"federation.{variant}", peer_python(variant)
                found = launcher.run(module, variant, settings, master_port(), ranks, python)
            else:
                found = launcher.run("federation.ranks", variant, settings)
            libraries[variant] = found["library"]
            norms[variant] = found["norm"]
            _check_work(norms)
            findings.add(_ROUND, variant, "samples/s", [count / seconds for seconds in found["rounds_s"]])
            findings.add(_START, variant, "s", [found["start_s"]])
            findings.add(MEMORY, variant, "MB", [found["memory_mb"]])
    findings.sort(list(VARIANTS))
    for group in (_ROUND, _START, MEMORY):
        for variant in ("mpi", "horovod"):
            for against in ("loop", *PEERS):
                findings.compare(group, variant, against)
    return findings


def _check_work(norms: Mapping[str, float]) -> None:
    """Refuse frameworks that ended with another net than the plain loop: they have not trained what it trained.

    Ours has other shards, and its clients keep their momentum from round to round.
    """
    plain = {variant: norm for variant, norm in norms.items() if variant in (*PEERS, "loop")}
    first = next(iter(plain), None)
    for variant, norm in plain.items():
        if first is not None and not math.isclose(norm, plain[first], rel_tol=1e-4):
            raise RunFailed(
                f"bench federated: {variant} ended with a net of norm {norm:.6g}, {first} with {plain[first]:.6g}: "
                "they did not do the same work"
            )
