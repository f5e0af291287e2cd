"""PowerSGD against torch's own, which compresses the gradients of DistributedDataParallel in two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpclbfl.comm.compression import low_rank
from tests.comm.compression.reductions import Run, draws

SHAPES = ((6, 5), (4,), (3, 2, 2, 2))
STEPS, FIRST = 6, 2
"""torch sends the first two steps uncompressed."""
PROGRAM = """
import os, sys, torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from tests.comm.compression.test_powersgd import FIRST, SHAPES, STEPS, gradients

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ParameterList(torch.zeros(shape, dtype=torch.float64) for shape in SHAPES)

    def forward(self, wanted):
        return sum((part * grad).sum() for part, grad in zip(self.parts, wanted))

net = Net()
ddp = torch.nn.parallel.DistributedDataParallel(net)
state = PowerSGDState(None, 1, start_powerSGD_iter=FIRST, min_compression_rate=1, random_seed=3)
ddp.register_comm_hook(state, powerSGD_hook)
found = []
for step in range(STEPS):
    net.zero_grad()
    ddp(gradients(step, rank)).backward()
    found.append(torch.cat([part.grad.reshape(-1) for part in net.parts]))
if rank == 0:
    torch.save(found, f"{folder}/found.pt")
dist.barrier()
# gloo's threads do not always survive the interpreter's end.
os._exit(0)
"""


def gradients(step: int, rank: int) -> list[torch.Tensor]:
    flat = draws(10 * step + rank, 1, 58)[0]
    parts, begin = [], 0
    for shape in SHAPES:
        size = int(np.prod(shape))
        parts.append(flat[begin : begin + size].view(shape))
        begin += size
    return parts


@pytest.mark.slow
def test_the_same_as_torchs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)], cwd=Path(__file__).parents[3])
        for rank in range(2)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    expected = torch.load(tmp_path / "found.pt")

    run = Run({"kind": "powersgd", "rank": 1}, SHAPES)
    # torch draws its first Q in the order in which a backward pass fills its bucket.
    torch.manual_seed(np.random.RandomState(3).randint(1_000_000_000))
    reduction = run.reduction
    assert isinstance(reduction, low_rank.LowRank)
    for matrix in reversed(reduction.matrices):
        matrix.right.copy_(torch.randn(1, matrix.cols, dtype=torch.float64))
    for step in range(STEPS):
        own = [torch.cat([part.reshape(-1) for part in gradients(step, rank)]) / 2 for rank in range(2)]
        if step < FIRST:
            torch.testing.assert_close(expected[step], own[0] + own[1])
        else:
            torch.testing.assert_close(expected[step], run.step(step, own), rtol=1e-8, atol=1e-10)
