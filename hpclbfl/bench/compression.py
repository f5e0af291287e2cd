"""`hpclbfl bench compression`: how much of a gradient compression loses, by batch size.

S. Tyagi, "On Using Large-Batches in Federated Learning", Eq. 9, takes a gradient for a sparse mean and a dense noise
phi(b), so that gradients of larger batches compress better. Measured is phi(b) = |g - C(g)|^2 / |g|^2, without error
feedback, of gradients g over b samples of one net at several points of its training. A round is another seed: another
initial net, other samples, another training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.turns import Turns
from hpclbfl.comm.compression import Piece, Setup
from hpclbfl.comm.compression.build import Compression
from hpclbfl.comm.compression.volume import layers_of
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.job import parse_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.gradients.gradient import Layout
from hpclbfl.planner.measure import take_step
from hpclbfl.training.setup import make_state
from hpclbfl.training.state import TrainState

VARIANTS = {str(2**k): f"b = {2**k}" for k in range(5, 11)}
COMPRESSORS_SHOWN: Mapping[str, Mapping[str, Any]] = {
    "topk 10 %": {"kind": "topk", "ratio": 0.1},
    "topk 1 %": {"kind": "topk", "ratio": 0.01},
    "topk 0.1 %": {"kind": "topk", "ratio": 0.001},
    "powersgd 2": {"kind": "powersgd", "rank": 2},
    "signsgd": {"kind": "signsgd"},
}
_STAGES = (0.0, 0.25, 1.0)
"""Points of training, as shares of its steps, at which gradients are taken."""
_GRADIENTS = 4
"""Of each batch size at a point."""
_POWER_STEPS = 3
"""Of PowerSGD on one gradient, in place of its warm start."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 5
    model: str = "resnet8"
    batch: int = 128
    """Of the training."""
    steps: int = 200
    """Of the training."""
    data: str | None = None
    """A packed set; None: the digits that come with the package."""
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Train a net in each round, and compress its gradients.

    Raises:
        ConfigError: the training set has fewer samples than a batch size.
    """
    source = "the digits" if settings.data is None else Path(settings.data).name
    title = f"phi(b), the share of a gradient's energy that compression loses: {settings.model} on {source}"
    findings = Findings(title, VARIANTS)
    for number, _ in turns(("all batch sizes",), settings.rounds):
        state = _state(settings, seed=number)
        sizes = [int(variant) for variant in settings.variants]
        if max(sizes) > state.num_train:
            raise ConfigError(f"--variants: {max(sizes)} samples of {state.num_train} in the training set")
        for step in _trained(state, settings.steps):
            for size in sizes:
                found = _lost(state, size, number)
                for name, values in found.items():
                    findings.add(f"{name}, step {step}", str(size), "%", [100 * value for value in values])
    order = {name: place for place, name in enumerate(COMPRESSORS_SHOWN)}
    findings.series.sort(key=lambda series: order[series.group.rpartition(", ")[0]])
    findings.sort(list(VARIANTS))
    largest, smallest = (str(of(int(variant) for variant in settings.variants)) for of in (max, min))
    for group in dict.fromkeys(series.group for series in findings.series):
        if largest != smallest:
            findings.compare(group, largest, smallest)
    return findings


def draw(findings: Findings, path: Path) -> None:
    """Write the figure: phi by batch size, a panel for each point of training, intervals over rounds."""
    from hpclbfl.bench.picture import by_batch

    by_batch(findings, path)


def _state(settings: Settings, seed: int) -> TrainState:
    data = (
        {"name": "digits"} if settings.data is None else {"name": "packed", "path": str(Path(settings.data).resolve())}
    )
    values = {
        "name": "bench",
        "seed": seed,
        "clients": 1,
        "data": {**data, "in_memory": True},
        "model": {"name": settings.model},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "batching": {"local_batch_size": settings.batch},
        "stop": {"steps": settings.steps},
    }
    return make_state(parse_job(values, "bench compression"), LocalCommunicator())


def _trained(state: TrainState, num_steps: int) -> Iterator[int]:
    """Train, and yield at the points at which gradients are taken."""
    stops = sorted({round(share * num_steps) for share in _STAGES})
    for stop in stops:
        while state.counters.step < stop:
            take_step(state)
        yield stop


def _lost(state: TrainState, size: int, seed: int) -> dict[str, list[float]]:
    """phi of gradients over so many samples, by compressor."""
    rng = np.random.default_rng((seed, state.counters.step, size))
    parameters = [p for p in state.mean.parameters if p.requires_grad]
    layers = layers_of([tuple(p.shape) for p in parameters])
    flat = torch.empty(sum(layer.size for layer in layers), dtype=parameters[0].dtype, device=state.device)
    setup = Setup(state.comm, flat, [Piece(0, tuple(layers))], [range(1)], seed)
    layout = Layout.of(state.mean.module.named_parameters())
    found: dict[str, list[float]] = {name: [] for name in COMPRESSORS_SHOWN}
    for number in range(_GRADIENTS):
        samples = np.sort(rng.choice(state.num_train, size, replace=False))
        gradient = _gradient(state, samples)
        for name, values in COMPRESSORS_SHOWN.items():
            plain = {**values, "feedback": False} if "feedback" in _keys(values) else values
            config = component_config(COMPRESSORS, dict(plain), "bench", "compression")
            compression = Compression(config, setup, layout)
            for _ in range(_POWER_STEPS if values["kind"] == "powersgd" else 1):
                _compress(compression, setup, gradient, number)
            lost = (gradient - flat).double().square().sum() / gradient.double().square().sum()
            found[name].append(float(lost))
    return found


def _keys(values: Mapping[str, Any]) -> set[str]:
    return set(COMPRESSORS.config(values["kind"]).model_fields)


def _compress(compression: Compression, setup: Setup, gradient: Tensor, step: int) -> None:
    compression.begin(step)
    reduction = compression.reduction
    target = reduction.target(0).flat
    target.copy_(gradient)
    for piece in setup.pieces:
        reduction.add(0, piece)
        reduction.start(piece)
    reduction.finish()


def _gradient(state: TrainState, samples: NDArray[np.int64]) -> Tensor:
    """[P] of the mean loss over samples."""
    inputs, targets = state.train.batch(samples, np.zeros_like(samples))
    module = state.mean.module
    parameters = [p for p in module.parameters() if p.requires_grad]
    loss = state.loss(module(inputs), targets) / len(samples)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.reshape(-1) for part in parts])
