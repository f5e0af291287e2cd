"""The step-up scaler under DistributedDataParallel: torchrun --nproc-per-node 2 docs/examples/ddp.py

Nothing is special: backward() has reduced the gradients, so all ranks measure the same norm and decide alike.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hpclbfl

STEPS, BATCH = 200, 32

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
images, labels = torch.randn(4096, 3 * 16 * 16), torch.randint(10, (4096,))
images[:, :10] += 2 * nn.functional.one_hot(labels, 10)

model = DistributedDataParallel(nn.Sequential(nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
scaler = hpclbfl.GradientScaler(factor=4.0, threshold=0.5).attach(optimizer)
# On unlike machines: agree=lambda norms: dist.broadcast(norms, 0)

num_scaled = 0
torch.manual_seed(1 + rank)
for _ in range(STEPS):
    rows = torch.randint(len(images), (BATCH,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    num_scaled += int(scaler.scale == 4.0)

if rank == 0:
    print(f"loss {loss.item():.3f}; {num_scaled / STEPS:.1%} of {STEPS} steps at X on {dist.get_world_size()} ranks")
# No rank leaves while another still talks.
dist.barrier()
dist.destroy_process_group()
