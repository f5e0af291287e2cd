"""Times of the training step on this machine's device against a bare loop, in turns in one process, as JSON.

    python tools/gpu_figures.py --out figures.json [--engine horovod] [--dry]

Each figure is the median ratio of blocks that take turns, with its 95 % interval; times are host seconds of a block
that ends with the device idle. The bare loop has its batch on the device and takes forward, backward and a fused SGD
step, nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpclbfl.bench.statistics import paired_ratio
from hpclbfl.bench.training import NUM_CLASSES, SCALER, Training, make_job, write_images
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import MODELS
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import CommConfig
from hpclbfl.models import DataSpec, make_model
from hpclbfl.planner.network import synchronize

Step = Callable[[], object]
SIDE = 32
CASES = ",".join(f"{model}:{batch}:1" for model in ("resnet18", "resnet50") for batch in (32, 128, 1024))
CASES += ",resnet18:32:10"


class Bare:
    """Forward, backward and update on one batch that stays on the device.

    Args:
        passes: of the batch in a step, their gradients added up, as many clients in turn make them.
    """

    def __init__(self, model: str, batch: int, device: torch.device, passes: int = 1) -> None:
        torch.manual_seed(0)
        config = component_config(MODELS, {"name": model}, "--model", "model")
        self._net = make_model(config, DataSpec((3, SIDE, SIDE), NUM_CLASSES)).to(device).train()
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
        self._images = torch.randn(batch, 3, SIDE, SIDE, device=device)
        self._labels = torch.arange(batch, device=device) % NUM_CLASSES
        self._passes = passes

    def step(self) -> None:
        """One optimizer step."""
        for _ in range(self._passes):
            loss = nn.functional.cross_entropy(self._net(self._images), self._labels)
            (loss / self._passes).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def ours(job: JobConfig, comm: Communicator, log: Path, has_fixed_batch: bool = False) -> Training:
    """The product's step; with one batch that stays on the device, what is left is not the loader's."""
    training = Training(job, comm, log)
    if has_fixed_batch:
        loader, kept = training.state.train, {}
        load = loader.batch

        def batch(samples: Any, passes: Any, augment: bool = True) -> Any:
            if len(samples) not in kept:
                kept[len(samples)] = load(samples, passes, augment)
            return kept[len(samples)]

        loader.batch = batch  # type: ignore[method-assign]
    return training


def in_turns(variants: dict[str, Step], device: torch.device, rounds: int, block: int) -> dict[str, list[float]]:
    """Seconds a step of each variant, a value for each round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, step in variants.items():
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(block):
                step()
            synchronize(device)
            if number:  # The first round warms up.
                times[name].append((time.perf_counter() - begin) / block)
    return times


def measure(
    model: str, batch: int, clients: int, comm: Communicator, scratch: Path, rounds: int, dry: bool
) -> dict[str, Any]:
    """Medians (s a step) and ratios to the bare loop of one net, batch size and number of clients on the device."""
    device = devices.choose(comm)
    images = write_images(scratch, model, batch * clients)
    parts: dict[str, tuple[dict[str, Any], bool]] = {
        "ours": ({"gradients": {"scaler": SCALER}}, False),
        "ours, scaler off": ({"gradients": {"measure": False}}, False),
        "ours, fixed batch": ({"gradients": {"scaler": SCALER}}, True),
        "ours, fixed batch, scaler off": ({"gradients": {"measure": False}}, True),
    }
    variants: dict[str, Step] = {"bare": Bare(model, batch, device, clients).step}
    for number, (name, (sections, fixed)) in enumerate(parts.items()):
        engine = {"engine": comm.engine}
        job = make_job(images, model, batch, clients, comm=engine, **sections)
        variants[name] = ours(job, comm, scratch / f"{model}-{batch}-{clients}-{number}.h5", fixed).step
    rounds, block = (1, 1) if dry else (rounds, 3 if clients > 1 else 10)
    times = in_turns(variants, device, rounds, block)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: asdict(paired_ratio(times[name], times["bare"])) for name in parts}
    spans = {name: [min(values), max(values)] for name, values in times.items()}
    return {
        "model": model, "batch": batch, "clients": clients, "engine": comm.engine,
        "step_s": medians, "span_s": spans, "ratio_to_bare": ratios,
        "loader_ratio": asdict(paired_ratio(times["ours"], times["ours, fixed batch"])),
    }  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", default="local", choices=["local", "horovod"])
    parser.add_argument("--dry", action="store_true", help="one small case, one step each: that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each variant")
    parser.add_argument("--cases", default=CASES, help="MODEL:BATCH:CLIENTS,... [%(default)s]")
    given = parser.parse_args()
    comm = communicator(CommConfig(engine=given.engine))
    device = devices.choose(comm)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "library": comm.library, "cases": []}
    for case in ("resnet8:4:2" if given.dry else given.cases).split(","):
        model, batch, clients = (kind(word) for kind, word in zip((str, int, int), case.split(":"), strict=True))
        with tempfile.TemporaryDirectory() as scratch:
            found["cases"].append(measure(model, batch, clients, comm, Path(scratch), given.rounds, given.dry))
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(json.dumps(found["cases"][-1]), flush=True)
    comm.close()


if __name__ == "__main__":
    main()
