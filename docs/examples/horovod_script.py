"""The step-up scaler under Horovod, with clipping by hand: horovodrun -np 2 python docs/examples/horovod_script.py

mpirun -np 2 python ... does as well. Without own clipping, optimizer.step() alone is enough: the scaler waits for the
reduction inside it.
"""

from __future__ import annotations

import horovod.torch as hvd
import torch
from torch import nn

import hpclbfl

STEPS, BATCH = 200, 32

hvd.init()
torch.manual_seed(0)
images, labels = torch.randn(4096, 3 * 16 * 16), torch.randint(10, (4096,))
images[:, :10] += 2 * nn.functional.one_hot(labels, 10)

model = nn.Sequential(nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
scaler = hpclbfl.GradientScaler(factor=4.0, threshold=0.5).attach(optimizer)
# On unlike machines: agree=lambda norms: hvd.broadcast(norms, 0)

num_scaled = 0
torch.manual_seed(1 + hvd.rank())
for _ in range(STEPS):
    rows = torch.randint(len(images), (BATCH,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.synchronize()
    scaler.measure()  # Before the clipping, which would hold the norm constant.
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    with optimizer.skip_synchronize():
        optimizer.step()
    num_scaled += int(scaler.scale == 4.0)

if hvd.rank() == 0:
    print(f"loss {loss.item():.3f}; {num_scaled / STEPS:.1%} of {STEPS} steps at X on {hvd.size()} ranks")
