"""Emulated heterogeneous devices: ranks that sleep after computing, and slow links.

A rank of slow-down f takes f times as long for everything it computes; results do not change. On a GPU the host waits
for the device after each pass, which real slow devices do not make it do: emulated times are for experiments with
policies, not for measuring a GPU.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from hpclbfl.comm.base import Communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import EmulateConfig
from hpclbfl.core.errors import ConfigError

_JITTER_STREAM = 6


class Emulation:
    """The slow-down of this rank.

    Args:
        config: of the job.
        rank: of the communicator.
        seed: of the job; keys the jitter.
        device: of the rank.
    """

    def __init__(self, config: EmulateConfig, rank: int, seed: int, device: torch.device) -> None:
        self._config, self._rank, self._seed, self._device = config, rank, seed, device

    def factor(self, step: int) -> float:
        """The slow-down in a step, at least 1."""
        config = self._config
        factor = config.slowdown[self._rank] if config.slowdown else 1.0
        for change in config.at:
            if change.rank == self._rank and step >= change.step:
                factor = change.factor
        if config.jitter:
            key = np.random.SeedSequence(self._seed, spawn_key=(_JITTER_STREAM, self._rank, step))
            factor *= float(np.exp(config.jitter * np.random.Generator(np.random.Philox(key)).standard_normal()))
        return max(1.0, factor)

    def stretch(self, step: int, begin: float) -> None:
        """Make the work done since `begin` (perf_counter, s) take as long as on the emulated device."""
        factor = self.factor(step)
        if factor > 1.0:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            time.sleep((factor - 1.0) * (time.perf_counter() - begin))

    def transfer(self, sent_bytes: float) -> None:
        """Take the time in which this rank sends so many bytes over the emulated links."""
        if self._config.bandwidth is not None:
            time.sleep(sent_bytes / (1e6 * self._config.bandwidth))


def emulated_limit(config: EmulateConfig | None) -> int | None:
    """What `emulate.memory_limit` says, bytes."""
    if config is None or config.memory_limit is None:
        return None
    return int(config.memory_limit * 1e9)


def emulated_slowdown(config: EmulateConfig | None, rank: int, num_ranks: int) -> float:
    """The slow-down factor of this rank, where `slowdown` lists one for each rank.

    Raises:
        ConfigError: it lists another number of ranks.
    """
    if config is None or config.slowdown is None:
        return 1.0
    if len(config.slowdown) != num_ranks:
        raise ConfigError(f"emulate.slowdown lists {len(config.slowdown)} ranks, this job has {num_ranks}")
    return config.slowdown[rank]


def make_emulation(job: JobConfig, comm: Communicator, device: torch.device) -> Emulation | None:
    """What makes this rank slower than it is; None: nothing does.

    Raises:
        ConfigError: `emulate` names other ranks than there are.
    """
    config = job.emulate
    if config is None:
        return None
    emulated_slowdown(config, comm.rank, comm.size)
    beyond = [change.rank for change in config.at if change.rank >= comm.size]
    if beyond:
        raise ConfigError(f"emulate.at: rank {beyond[0]} is not among this job's {comm.size} ranks, 0 the first")
    return Emulation(config, comm.rank, job.seed, device)
