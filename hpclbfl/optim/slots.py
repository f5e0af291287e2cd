"""Optimizer state from the first step on: momentum and the like as zeros instead of nothing.

torch and timm make these tensors in the first step. A client without samples would then have none when states are
averaged, and torch's fused SGD leaves momentum undefined when loss scaling skips the very first step. Zeros change no
result: the first step makes momentum the gradient either way.
"""

from __future__ import annotations

import torch


def reset_slots(optimizer: torch.optim.Optimizer) -> None:
    """Set the state of SGD, Adam, AdamW, LARS or LAMB back to that before the first step, all tensors present."""
    optimizer.state.clear()
    is_adam = isinstance(optimizer, torch.optim.Adam)
    for group in optimizer.param_groups:
        has_moments = "betas" in group
        if has_moments and not is_adam:
            # LAMB counts the steps for its bias correction once per group, torch per tensor.
            group["step"] = torch.zeros(())
        for parameter in group["params"]:
            if has_moments:
                optimizer.state[parameter] = {
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
                if is_adam:
                    optimizer.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            elif group["momentum"]:
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
