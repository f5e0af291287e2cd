"""`hpclbfl bench gradients`: what a step costs with each gradient transform and compressor, against one without.

One launch per round holds all variants, which take steps in turn (engine mpi: none has a background thread). Steps in
which a teacher is trained are left out, and told apart. Ranks of one machine share its memory, so that transfers cost
little: compressors have to pay here, and gain where links are slow (`emulate.bandwidth`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.launches import Launcher
from hpclbfl.bench.training import SCALER, StepSettings, write_images
from hpclbfl.bench.turns import Turns

_NEVER_AGAIN = 10**9
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "measured": {"gradients": {}},
    "plain": {"gradients": {"measure": False}},
    "scaler": {"gradients": {"scaler": SCALER}},
    "noise": {"gradients": {"noise_scale": {}}},
    "residual": {"gradients": {"teacher": {"kind": "residual", "small_batch": 1, "every": _NEVER_AGAIN}}},
    "subspace": {"gradients": {"teacher": {"kind": "subspace", "factor": 4, "rank": 10, "every": _NEVER_AGAIN}}},
    "mse": {"gradients": {"teacher": {"kind": "mse", "small_batch": 1, "every": _NEVER_AGAIN}}},
    "fp16": {"compression": {"kind": "fp16"}},
    "topk": {"compression": {"kind": "topk", "ratio": 0.01}},
    "randomk": {"compression": {"kind": "randomk", "ratio": 0.01}},
    "powersgd": {"compression": {"kind": "powersgd", "rank": 2}},
    "qsgd": {"compression": {"kind": "qsgd", "bits": 4}},
    "signsgd": {"compression": {"kind": "signsgd"}},
}
"""Of a variant's job."""
VARIANTS = {
    "measured": "|G|^2 and Eq. 8 alone",
    "plain": "nothing measured",
    "scaler": "step-up scaler",
    "noise": "noise scale",
    "residual": "teacher, residual",
    "subspace": "teacher, subspace of 10",
    "mse": "teacher, mse",
    "fp16": "half precision",
    "topk": "top-k, 1 %",
    "randomk": "random-k, 1 %",
    "powersgd": "PowerSGD, rank 2",
    "qsgd": "QSGD, 4 bits",
    "signsgd": "signs",
}
GROUP, LESSON, SENT = "step", "training step of a teacher, less a step", "sent per step and rank"


@dataclass(frozen=True)
class Settings(StepSettings):
    """Settings of the benchmark."""

    rounds: int = 5
    warmup: int = 5
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants."""
    findings = Findings(f"Gradient transforms and compressors in a step {settings.describe()}", VARIANTS)
    with Launcher(settings.num_ranks, debug) as launcher:
        write_images(launcher.scratch, settings.model, settings.num_ranks * settings.batch)
        for _ in turns(("all variants",), settings.rounds):
            found = launcher.run("gradients_ranks", "all", settings)
            findings.extra["libraries"] = {"all": found["library"]}
            for variant in settings.variants:
                findings.add(GROUP, variant, "ms", [1e3 * t for t in found["times"][variant]])
                if lesson := found["lessons"].get(variant):
                    findings.add(LESSON, variant, "ms", [1e3 * t for t in lesson])
                findings.add(SENT, variant, "MB", [found["sent_mb"][variant]])
    findings.sort(list(VARIANTS))
    for variant in settings.variants:
        if variant != "measured":
            findings.compare(GROUP, variant, "measured")
    return findings
