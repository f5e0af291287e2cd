"""`hpclbfl bench scaler`: what Eq. 8 and the scaler add to a step, as a share of it.

The difference of two steps' times drowns in their noise, so the added code's own time is taken, within steps of engine
mpi. One launch per round holds all variants, which take steps in turn: none has a thread beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher
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
class Settings:
    """What can be chosen."""

    rounds: int = 5
    num_ranks: int = 2
    model: str = "resnet50"
    batch: int = 32
    """Samples per rank and step."""
    steps: int = 10
    """Timed per variant and launch."""
    warmup: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants."""
    from hpclbfl.bench.training import image_side, write_images

    what = f"{settings.model}, {image_side(settings.model)} px, batch {settings.batch} per rank"
    findings = Findings(f"Eq. 8 and the scaler in a step on {settings.num_ranks} ranks: {what}", VARIANTS)
    with Launcher(settings.num_ranks, debug) as launcher:
        write_images(launcher.scratch, settings.model, settings.num_ranks * settings.batch)
        for _ in turns(("all variants",), settings.rounds):
            found = launcher.run("scaler_ranks", "all", settings)
            findings.extra["libraries"] = {"all": found["library"]}
            for variant in settings.variants:
                _add_round(findings, variant, found["times"][variant], found["errors"][variant])
    findings.sort(list(VARIANTS))
    for against in ("foreach", "loop"):
        findings.compare("share of the step", "ours", against)
    return findings


def _add_round(findings: Findings, variant: str, times: Mapping[str, Sequence[float]], error: float) -> None:
    """Take one launch's times of a variant (seconds, by part and step) and its norm's relative error."""
    step_s = float(np.median(times["step"]))
    if variant == "ours":
        parts = our_parts_s(times)
        for part, cost in parts.items():
            findings.add("our cost by part", part, "ms", [1e3 * cost], PARTS[part])
        added_s = sum(parts.values())
    else:
        added_s = float(np.median(times["added"]))
    findings.add("share of the step", variant, "%", [100 * added_s / step_s])
    findings.add("step", variant, "ms", [1e3 * t for t in times["step"]])
    findings.add("relative error of the squared norm", variant, "1", [error])


def our_parts_s(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians of the parts of our cost, seconds.

    The factor rides on the pass that the optimizer makes anyway, and still costs something there: the scaled gradient
    is written back. So every other step went without the factor.

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
