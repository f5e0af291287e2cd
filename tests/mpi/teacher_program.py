"""Run under mpirun by test_attach_teacher.py: the same training with a teacher, plain, under DDP and under Horovod.

Usage: teacher_program.py FOLDER. Writes rank<rank>.pt: by setting, the parameters at the end and each step's numbers.
In the plain setting one process has two backward passes, which are the batches of the two ranks elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hpclbfl

STEPS, BATCH = 8, 6
KEYS: dict[str, dict[str, Any]] = {
    "residual": {"small_batch": 3, "every": 4, "max_norm": 0.5},
    "subspace": {"factor": 2.0, "directions": 2, "refresh": "drift", "every": 2},
    "mse": {"small_batch": 3, "train_steps": 1},
}


def train(wrap: str, kind: str) -> tuple[torch.Tensor, list[dict[str, float]]]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    if wrap == "ddp":
        model = DistributedDataParallel(model)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if wrap == "hvd":
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    sums = {"ddp": dist.all_reduce, "hvd": lambda tensor: hvd.allreduce(tensor, op=hvd.Sum), "plain": None}
    place: dict[str, Any] = {"passes": 2} if wrap == "plain" else {"num_ranks": hvd.size(), "rank": hvd.rank()}
    teacher = hpclbfl.Teacher(kind, local_batch_size=BATCH, sum_=sums[wrap], **place, **KEYS[kind]).attach(optimizer)
    told = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in (0, 1) if wrap == "plain" else (hvd.rank(),):
            draw = torch.Generator().manual_seed(100 * step + rank)
            inputs, targets = (torch.randn(BATCH, n, generator=draw, dtype=torch.float64) for n in (12, 3))
            loss = nn.functional.mse_loss(model(inputs), targets)
            (loss / 2 if wrap == "plain" else loss).backward()
        optimizer.step()
        told.append({name: value.item() for name, value in teacher.metrics.items() if name != "teacher seconds"})
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]), told


def main(folder: Path) -> None:
    hvd.init()
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=hvd.rank(), world_size=hvd.size())
    found = {f"{wrap} {kind}": train(wrap, kind) for wrap in ("plain", "ddp", "hvd") for kind in KEYS}
    torch.save(found, folder / f"rank{hvd.rank()}.pt")


main(Path(sys.argv[1]))
