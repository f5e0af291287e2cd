"""`hpclbfl bench scaler`: the cost of Eq. 8 and of the scaler, as a share of a step.

The noise of two steps' times exceeds their difference, so the added code itself is timed, within steps of engine mpi.
One launch per round holds all variants, which take steps in turn: none has a background thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher
from hpclbfl.bench.training import StepSettings, write_images
from hpclbfl.bench.turns import Turns

VARIANTS = {
    "ours": "ours, in cache while reduced",
    "foreach": "torch._foreach_norm, _foreach_mul_ afterwards",
    "loop": "loop over parameters with .item()",
}
PARTS = {
    "norm": "squared norm, piece by piece and its end",
    "change": "relative change and the gate (Eq. 8, Eq. 6)",
    "hand-over": "factor to the optimizer",
    "ride": "the optimizer's step with the factor, less without",
}
"""Of our own cost."""


@dataclass(frozen=True)
class Settings(StepSettings):
    """Settings of the benchmark."""

    rounds: int = 5
    model: str = "resnet50"
    steps: int = 10
    warmup: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants."""
    findings = Findings(f"Eq. 8 and the scaler in a step {settings.describe()}", VARIANTS)
    with Launcher(settings.num_ranks, debug) as launcher:
        write_images(launcher.scratch, settings.model, settings.num_ranks * settings.batch)
        for _ in turns(("all variants",), settings.rounds):
            found = launcher.run("scaler_ranks", "all", settings)
            findings.extra["libraries"] = {"all": found["library"]}
            for variant in settings.variants:
                times = found["times"][variant]
                parts = our_parts_s(times) if variant == "ours" else {}
                for part, cost in parts.items():
                    findings.add("our cost by part", part, "ms", [1e3 * cost], PARTS[part])
                added_s = sum(parts.values()) if parts else float(np.median(times["added"]))
                share = 100 * added_s / float(np.median(times["step"]))
                findings.add("share of the step", variant, "%", [share])
                findings.add("step", variant, "ms", [1e3 * t for t in times["step"]])
                findings.add("relative error of the squared norm", variant, "1", [found["errors"][variant]])
    findings.sort(list(VARIANTS))
    for against in ("foreach", "loop"):
        findings.compare("share of the step", "ours", against)
    return findings


def our_parts_s(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians of the parts of our cost, seconds.

    The factor is applied in the optimizer's own pass, where it still costs the write of the scaled gradient. So every
    second step runs without the factor.

    Args:
        times: by part and step; `is_scaled` is 1 in steps with the factor.
    """
    is_scaled = np.asarray(times["is_scaled"], dtype=bool)
    optimizer = np.asarray(times["optimizer"])
    return {
        "norm": float(np.median(times["norm"])),
        "change": float(np.median(times["change"])),
        "hand-over": float(np.median(np.asarray(times["hand-over"])[is_scaled])),
        "ride": float(np.median(optimizer[is_scaled]) - np.median(optimizer[~is_scaled])),
    }
