"""The alternatives to this package: plain mpi4py, Horovod's own calls, torch.distributed, and their training steps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpclbfl.comm import devices, mpi_runtime
from hpclbfl.comm.base import Communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.core.precision import dtype_of
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import data_spec, make_loaders
from hpclbfl.models.initial import initial_net
from hpclbfl.optim.optimizers import make_optimizer

_TIMEOUT = timedelta(seconds=120)
Wrap = Callable[[nn.Module, torch.optim.Optimizer], tuple[nn.Module, torch.optim.Optimizer]]


def start_horovod() -> None:
    """Start it as a script of one's own would: our engine, which finds it started, changes none of its settings."""
    mpi_runtime.prepare()
    import horovod.torch as hvd

    hvd.init()


def horovod_sum(flat: Tensor) -> None:
    """Horovod's blocking sum, in place."""
    import horovod.torch as hvd

    hvd.allreduce_(flat, op=hvd.Sum, name="bench")


def mpi_sum(flat: Tensor) -> None:
    """One MPI_Allreduce of the whole, in place."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, flat.numpy())


def join(comm: Communicator, folder: str, device: torch.device) -> str:
    """Form torch.distributed's group of the same ranks; returns its backend."""
    # NCCL refuses two ranks on one GPU.
    backend = "nccl" if device.type == "cuda" and comm.local_size <= torch.cuda.device_count() else "gloo"
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{Path(folder).resolve()}/rendezvous",
        rank=comm.rank,
        world_size=comm.size,
        timeout=_TIMEOUT,
    )
    return backend


def leave(comm: Communicator) -> None:
    """End torch.distributed's group and the communicator on all ranks."""
    if torch.distributed.is_initialized():
        # No rank leaves while another still talks.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    # When the first rank leaves, Horovod ends MPI on all of them.
    comm.barrier()
    comm.close()


def alone(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """No communication at all."""
    return module, optimizer


def in_ddp(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """DistributedDataParallel at its defaults."""
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(module)
    return wrapped, optimizer


def in_horovod(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """hvd.DistributedOptimizer at its defaults."""
    import horovod.torch as hvd

    made: Any = hvd.DistributedOptimizer(optimizer, named_parameters=module.named_parameters())
    return module, made


class PlainTraining:
    """A plain training script on the job's data, net and optimizer, of which only the communication differs from ours.

    Args:
        job: with its clients resolved, one per rank.
        wrap: makes net and optimizer parallel.
    """

    def __init__(self, job: JobConfig, comm: Communicator, wrap: Wrap) -> None:
        self.device = devices.choose(comm)
        dataset = load_dataset(job.data)
        dtype = dtype_of(job.precision)
        self._images = make_loaders(dataset, job.data, job.seed, self.device, dtype).train
        data = data_spec(dataset, self._images)
        net = initial_net(job.model, data, job.seed, self.device, dtype).train()
        optimizer = make_optimizer(job.optimizer, net.parameters())
        self.net, self.optimizer = wrap(net, optimizer)
        self._batch = job.local_batch_sizes()[comm.rank]
        self._offset, self._stride = comm.rank * self._batch, comm.size * self._batch
        self._step = 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Images and labels of this rank's next step."""
        places = self._step * self._stride + self._offset + np.arange(self._batch)
        passes, samples = np.divmod(places, len(self._images))
        self._step += 1
        return self._images.batch(samples, passes)

    def step(self) -> None:
        """One optimizer step of all ranks."""
        images, labels = self.next_batch()
        nn.functional.cross_entropy(self.net(images), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
