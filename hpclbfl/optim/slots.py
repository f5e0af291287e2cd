"""Optimizer state from the first step on: momentum and the like as zeros instead of nothing.

torch makes these tensors in the first step. A client without samples would then have none when states are averaged, and
torch's fused SGD leaves momentum undefined when loss scaling skips the very first step. Zeros change no result: the
first step makes momentum the gradient either way.
"""

from __future__ import annotations

import torch


def reset_slots(optimizer: torch.optim.Optimizer) -> None:
    """Set the state of SGD, Adam or AdamW back to that before the first step, all tensors present."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.SGD):
                if group["momentum"]:
                    optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            else:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
