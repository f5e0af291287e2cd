"""Run under mpirun, or alone, by test_attach.py: the same training in every setting that a GradientScaler knows.

Usage: attach_program.py FOLDER. Writes rank<rank>.pt: by setting, [step, 3] squared norm, change and scale, and the
parameters at the end; by name, the messages of errors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hpclbfl

STEPS, BATCH, FACTOR, ODD = 10, 8, 3.0, 4


@dataclass(frozen=True)
class Setting:
    """Plain training of the whole batch, unless told otherwise; step ODD is the one in which things go wrong."""

    wrap: str = "none"
    """none; ddp or hvd, each rank with its part of the batch."""
    is_manual: bool = False
    """synchronize(), then step() without it."""
    reduces_twice: bool = False
    """synchronize(), then step() with it, which is of no use but not forbidden."""
    own_clip: float | None = None
    amp: str = "none"
    """none; implicit or explicit, by unscale_(); the loss of the last rank is infinite in step ODD."""
    is_fused: bool = False
    agrees: bool = False
    """The ranks' norms differ by a tenth of a per cent until they agree."""
    leaves_out: bool = False
    """Step ODD is synchronized and not taken."""
    raises: str = "never"
    """after or before: another hook, which comes after or before the scaler's, raises in step ODD."""


PLAIN = {
    "plain": Setting(),
    "plain_clip": Setting(own_clip=0.5),
    "plain_leaves_out": Setting(leaves_out=True),
    "plain_raises": Setting(raises="after"),
    "plain_raises_before": Setting(raises="before"),
    "plain_amp": Setting(amp="implicit"),
    "plain_amp_fused": Setting(amp="implicit", is_fused=True),
    "plain_amp_fused_explicit": Setting(amp="explicit", is_fused=True),
}
SPREAD = {
    "ddp": Setting(wrap="ddp"),
    "ddp_agrees": Setting(wrap="ddp", agrees=True),
    "ddp_amp_fused": Setting(wrap="ddp", amp="implicit", is_fused=True),
}
HOROVOD = {
    "hvd": Setting(wrap="hvd"),
    "hvd_manual": Setting(wrap="hvd", is_manual=True),
    "hvd_reduces_twice": Setting(wrap="hvd", reduces_twice=True),
    "hvd_agrees": Setting(wrap="hvd", agrees=True),
    "hvd_clip": Setting(wrap="hvd", is_manual=True, own_clip=0.5),
    "hvd_leaves_out": Setting(wrap="hvd", leaves_out=True),
    "hvd_manual_leaves_out": Setting(wrap="hvd", is_manual=True, leaves_out=True),
    "hvd_raises": Setting(wrap="hvd", raises="after"),
    "hvd_manual_raises": Setting(wrap="hvd", is_manual=True, raises="after"),
    "hvd_raises_before": Setting(wrap="hvd", raises="before"),
    "hvd_manual_raises_before": Setting(wrap="hvd", is_manual=True, raises="before"),
    "hvd_amp_fused": Setting(wrap="hvd", is_manual=True, amp="implicit", is_fused=True),
    "hvd_amp_fused_explicit": Setting(wrap="hvd", is_manual=True, amp="explicit", is_fused=True),
}


def train(setting: Setting) -> dict[str, torch.Tensor]:
    dtype = torch.float64 if setting.amp == "none" else torch.float32
    rank, size = (0, 1) if setting.wrap == "none" else (hvd.rank(), hvd.size())
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)
    if setting.wrap == "ddp":
        model = DistributedDataParallel(model)
    optimizer: Any = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=setting.is_fused
    )
    if setting.wrap == "hvd":
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    # The hook is called twice in a step of Horovod's: before it reduces, and after.
    num_calls, odd_call = 0, 2 * ODD + (not setting.is_manual) if setting.wrap == "hvd" else ODD

    def raise_once(*arguments: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == odd_call + 1:
            raise ZeroDivisionError

    if setting.raises == "before":
        optimizer.register_step_pre_hook(raise_once)
    scaler = hpclbfl.GradientScaler(FACTOR, 0.3, agree=agreement(setting)).attach(optimizer)
    if setting.raises == "after":
        optimizer.register_step_pre_hook(raise_once)
    amp = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=setting.amp != "none")

    rows = []
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, 6, generator=draw, dtype=torch.float64)
        targets = torch.randn(BATCH, 3, generator=draw, dtype=torch.float64) * (1 + step % 3)
        mine = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs[mine].to(dtype)), targets[mine].to(dtype))
        if setting.amp != "none" and step == ODD and rank == size - 1:
            loss = loss * torch.inf
        amp.scale(loss).backward()
        if setting.wrap == "hvd" and (
            setting.is_manual or setting.reduces_twice or (setting.leaves_out and step == ODD)
        ):
            optimizer.synchronize()
        if setting.leaves_out and step == ODD:
            continue
        if setting.amp == "explicit":
            amp.unscale_(optimizer)
        if setting.own_clip is not None:
            scaler.measure()
            nn.utils.clip_grad_norm_(model.parameters(), setting.own_clip)
        with optimizer.skip_synchronize() if setting.is_manual else nullcontext():
            try:
                amp.step(optimizer)
            except ZeroDivisionError:
                continue
        amp.update()
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError("a step has left its grad_scale behind")
        if not (setting.amp != "none" and step == ODD):
            rows.append(torch.stack([scaler.grad_sq_norm, scaler.change, scaler.scale]))
    parameters = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return {"rows": torch.stack(rows), "parameters": parameters}


def agreement(setting: Setting) -> Callable[[torch.Tensor], torch.Tensor | None] | None:
    def broadcast(norms: torch.Tensor) -> torch.Tensor | None:
        norms *= 1 + 1e-3 * hvd.rank()
        return hvd.broadcast(norms, 0) if setting.wrap == "hvd" else dist.broadcast(norms, 0)

    return broadcast if setting.agrees else None


def errors() -> dict[str, str]:
    model = nn.Linear(2, 1)
    parameters = list(model.named_parameters())
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), named_parameters=parameters)
    scaler = hpclbfl.GradientScaler(4.0).attach(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    found = {"measure": message(scaler.measure), "closure": message(lambda: optimizer.step(lambda: None))}
    optimizer.step()
    scaler.detach()
    before = model.weight.detach().clone()
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if scaler.steps != 1 or not torch.equal(model.weight, before - 0.1):
        raise RuntimeError("a detached scaler acts, or has broken the optimizer")
    if hvd.size() > 1:
        adasum = hvd.DistributedOptimizer(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1), op=hvd.Adasum)
        found["adasum"] = message(lambda: hpclbfl.GradientScaler(4.0).attach(adasum))
    return found


def message(call: Callable[[], object]) -> str:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(folder: Path) -> None:
    hvd.init()
    settings = PLAIN | HOROVOD
    if hvd.size() > 1:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=hvd.rank(), world_size=hvd.size())
        settings |= SPREAD
    results = {name: train(setting) for name, setting in settings.items()}
    torch.save((results, errors()), folder / f"rank{hvd.rank()}.pt")


main(Path(sys.argv[1]))
