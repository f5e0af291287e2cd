"""`hpclbfl bench hetero`: how well batch policies use heterogeneous ranks, compared with the sum of their speeds.

In one scenario two ranks train, one of them slowed 3 times. Four ranks on fewer cores would measure the machine's
scheduler, so they sleep instead of computing: (a + b * batch) * slowdown, with the communication, the exchange of times
and the policies of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher
from hpclbfl.bench.training import write_images
from hpclbfl.bench.turns import Turns

POLICIES: dict[str, dict[str, Any]] = {
    "equal": {"policy": "fixed"},
    "warmup": {"policy": "proportional", "from": "warmup"},
    "dynamic": {"policy": "dynamic"},
}
VARIANTS = {"equal": "equal batches", "warmup": "proportional, from a warm-up", "dynamic": "dynamic"}
SLEEP_S = (0.004, 0.0004)
"""a and b, s: the fixed part of a step, and the part of each sample."""


@dataclass(frozen=True)
class Scenario:
    """Ranks and their speeds."""

    title: str
    slowdown: tuple[float, ...]
    computes: bool
    batch: int
    """Global, samples."""
    steps: int
    first: int
    """First step that counts, when the policy is expected to have converged."""
    change: tuple[int, int, float] | None = None
    """(step, rank, slowdown) during the run."""


SCENARIOS = {
    "slow": Scenario("2 ranks, one slowed 3 times, real compute", (1, 3), True, 64, 40, 20),
    "four": Scenario("4 ranks of speed 1, 1, 1/2, 1/4, sleeping", (1, 1, 2, 4), False, 256, 80, 20),
    "change": Scenario("4 ranks, one slows 4 times in mid-run, sleeping", (1,) * 4, False, 256, 120, 80, (50, 3, 4.0)),
    "alike": Scenario("4 equal ranks, sleeping", (1,) * 4, False, 256, 120, 20),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 3
    model: str = "resnet18"
    """Of the scenario that computes."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all policies in all scenarios."""
    findings = Findings("Throughput relative to the sum of the ranks' speeds at their batches", VARIANTS)
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
