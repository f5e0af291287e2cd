"""Initial optimizer state: momentum and moments are created as zeros before the first step.

torch and timm create these tensors in the first step. A client without samples would then have none when states are
averaged, and torch's fused SGD leaves momentum undefined if loss scaling skips the first step. Zeros do not change any
result: after the first step momentum equals the gradient either way.

An optimizer of the user's own needs a method for this, unless it is derived from one of these and keeps their state:

    def reset_state(self) -> None: ...  # resets the state to that before the first step, with all of its tensors
"""

from __future__ import annotations

import torch

from hpclbfl.core.errors import ConfigError


def reset_slots(optimizer: torch.optim.Optimizer) -> None:
    """Reset an optimizer's state to that before the first step, with all tensors present.

    Raises:
        ConfigError: it is none of SGD, Adam, AdamW, LARS and LAMB, and has no method for this.
    """
    own = getattr(optimizer, "reset_state", None)
    if own is not None:
        own()
        return
    if not _is_known(optimizer):
        raise ConfigError(
            f"optimizer.name: {type(optimizer).__name__} has no method reset_state, which resets its state to that "
            "before the first step, with all of its tensors"
        )
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


def _is_known(optimizer: torch.optim.Optimizer) -> bool:
    if isinstance(optimizer, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW):
        return True
    return any(base.__module__.startswith("timm.") for base in type(optimizer).__mro__)
