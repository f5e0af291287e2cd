"""The step-up scaler in one process, with mixed precision and clipping: python docs/examples/plain.py

AMP unscales the gradients; the scaler measures, clips to max_norm and multiplies by X; the optimizer steps.
"""

from __future__ import annotations

import torch
from torch import nn

import hpclbfl

STEPS, BATCH = 200, 64

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images, labels = torch.randn(4096, 3 * 16 * 16, device=device), torch.randint(10, (4096,), device=device)
images[:, :10] += 2 * nn.functional.one_hot(labels, 10)

model = nn.Sequential(nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, fused=True)
amp = torch.amp.GradScaler(device)
scaler = hpclbfl.GradientScaler(factor=4.0, threshold=0.5, max_norm=5.0).attach(optimizer)

num_scaled = torch.zeros((), dtype=torch.int64, device=device)
for _ in range(STEPS):
    rows = torch.randint(len(images), (BATCH,), device=device)
    with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    amp.scale(loss).backward()
    amp.step(optimizer)
    amp.update()
    num_scaled += scaler.scale == 4.0  # Tensors: nothing here waits for a GPU.

print(f"loss {loss.item():.3f}; {num_scaled.item() / STEPS:.1%} of {STEPS} steps at X")
