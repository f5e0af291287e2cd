"""`hpclbfl bench hetero`: how well batch policies use ranks of unlike speed, against the sum of their rates.

Two ranks compute in earnest, one of them slowed three times. With more ranks than cores one would measure the machine's
scheduler, so the scenarios of four ranks sleep instead of computing: (a + b * batch) * slow-down, with the
communication, the exchange of times and the policies as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher
from hpclbfl.bench.turns import Turns

POLICIES: dict[str, dict[str, Any]] = {
    "equal": {"policy": "fixed"},
    "warmup": {"policy": "proportional", "from": "warmup"},
    "dynamic": {"policy": "dynamic"},
}
VARIANTS = {"equal": "equal batches", "warmup": "proportional, from a warm-up", "dynamic": "dynamic"}
SLEEP_S = (0.004, 0.0004)
"""a and b: fixed part of a step, and part of each sample, s."""


@dataclass(frozen=True)
class Scenario:
    """Ranks of unlike speed."""

    title: str
    slowdown: tuple[float, ...]
    computes: bool
    batch: int
    """Global, samples."""
    steps: int
    settled: int
    """First step that counts."""
    change: tuple[int, int, float] | None = None
    """(step, rank, slow-down) in mid-run."""


SCENARIOS = {
    "slow": Scenario("2 ranks, one slowed 3 times, real compute", (1, 3), True, 64, 40, 20),
    "four": Scenario("4 ranks of speed 1, 1, 1/2, 1/4, sleeping", (1, 1, 2, 4), False, 256, 80, 20),
    "change": Scenario("4 ranks, one slows 4 times in mid-run, sleeping", (1,) * 4, False, 256, 120, 80, (50, 3, 4.0)),
    "alike": Scenario("4 ranks alike, sleeping", (1,) * 4, False, 256, 120, 20),
}


@dataclass(frozen=True)
class Settings:
    """What can be chosen."""

    rounds: int = 3
    model: str = "resnet18"
    """Of the scenario that computes."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all policies in all scenarios."""
    from hpclbfl.bench.training import write_images

    findings = Findings("Throughput against the sum of the ranks' rates at their batches", VARIANTS)
    plans: dict[str, Any] = findings.extra.setdefault("plans", {})
    for name in settings.scenarios:
        scenario = SCENARIOS[name]
        with Launcher(len(scenario.slowdown), debug) as launcher:
            if scenario.computes:
                write_images(launcher.scratch, settings.model, scenario.batch)
            for _, variant in turns(settings.variants, settings.rounds):
                found = launcher.run("hetero_ranks", f"{name}:{variant}", settings)
                findings.add(scenario.title, variant, "1", [found["efficiency"]])
                findings.add(f"{scenario.title}: changes of plan", variant, "1", [len(found["plans"])])
                if variant != "equal":
                    overhead = 100 * found["policy_s"] / found["step_s"]
                    findings.add(f"{scenario.title}: policy's share of a step", variant, "%", [overhead])
                plans.setdefault(f"{name}:{variant}", []).append(found["plans"])
    return findings
