"""The net that a run begins with."""

from __future__ import annotations

import torch
from torch import nn

from hpclbfl.config.sections import ModelConfig
from hpclbfl.core.seeding import seed_generators
from hpclbfl.models import DataSpec, make_model


def initial_net(config: ModelConfig, data: DataSpec, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A net whose weights are drawn from a job's seed, the same on every rank; see `make_model`."""
    seed_generators(seed)
    net: nn.Module = make_model(config, data).to(device=device, dtype=dtype)
    return net
