"""From sections of a job to the parts of a run that are no components."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpclbfl.algorithms.client import seed_generators
from hpclbfl.algorithms.emulate import Emulation
from hpclbfl.batching.bounds import check_one_client_per_rank
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.launched import launched_size
from hpclbfl.data.sampling import Sampler
from hpclbfl.losses.checked import Loss
from hpclbfl.models import DataSpec, make_model


def communicator(config: CommConfig, environ: Mapping[str, str] = os.environ) -> Communicator:
    """The engine that the job asks for; `auto` is Horovod under MPI and local in a lone process.

    Raises:
        ConfigError: `local` under a launcher of several ranks, each of which would run the whole job.
    """
    size = launched_size(environ)
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not _under_mpi(environ):
        raise ConfigError("srun started several tasks that do not know of each other: use srun --mpi=pmix")
    if config.engine == "local" and size > 1:
        raise ConfigError(f"comm.engine: local is for one process, this job has {size} ranks; leave it 'auto'")
    if config.engine == "horovod" or (config.engine == "auto" and _under_mpi(environ)):
        from hpclbfl.comm.horovod import HorovodCommunicator

        return HorovodCommunicator()
    if config.engine == "mpi":
        from hpclbfl.comm.mpi import MpiCommunicator

        return MpiCommunicator(config.chunk_mb)
    return LocalCommunicator()


def _under_mpi(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"))


def device(comm: Communicator) -> torch.device:
    """See `hpclbfl.comm.devices.choose`; a collective."""
    return devices.choose(comm)


def dtype(job: JobConfig) -> torch.dtype:
    """Of parameters and floating-point inputs; bf16 and fp16 are autocast on top of float32."""
    return torch.float64 if job.precision == "float64" else torch.float32


def autocast(job: JobConfig, on: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A maker of the context in which the forward pass runs.

    Raises:
        ConfigError: a precision that the device does not have.
    """
    if job.precision in ("float32", "float64"):
        return nullcontext
    if job.precision == "fp16" and on.type != "cuda":
        raise ConfigError("precision: fp16 needs a GPU; this device takes float32, float64 and bf16")
    if job.precision == "bf16" and on.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision: this GPU has no bf16; it takes float32, float64 and fp16")
    half = torch.bfloat16 if job.precision == "bf16" else torch.float16
    return lambda: torch.autocast(on.type, dtype=half)


def check_batches(job: JobConfig, num_train: int) -> None:
    """Refuse a batch that is larger than the training set of `num_train` images. Raises ConfigError."""
    total = job.batching.global_batch_size
    key, largest = ("local_batch_size", max(job.local_batch_sizes())) if total is None else ("global_batch_size", total)
    if largest > num_train:
        raise ConfigError(f"batching.{key}: a batch of {largest} exceeds the {num_train} training samples")


def start_sizes(job: JobConfig, sampler: Sampler) -> tuple[int, ...]:
    """b_c of every client as a run begins: the job's, at most what a step can hold of the client.

    A client whose shard is empty keeps the job's size; it takes no samples all the same.

    Args:
        job: its clients resolved.
        sampler: of the run.
    """
    sizes = job.local_batch_sizes()
    counts = sampler.counts(sizes).tolist()
    return tuple(count or size for count, size in zip(counts, sizes, strict=True))


def local_steps(job: JobConfig, num_ranks: int) -> NDArray[np.int64] | None:
    """[C] H of every client before speeds are known, where H follows them."""
    most = job.sync.steps_of_fastest
    if most is None:
        return None
    num_clients = len(job.local_batch_sizes())
    check_one_client_per_rank("sync.local_steps proportional", num_clients, num_ranks)
    return np.full(num_clients, most, np.int64)


def emulation(job: JobConfig, comm: Communicator, on: torch.device) -> Emulation | None:
    """What makes this rank slower than it is.

    Raises:
        ConfigError: `emulate` names other ranks than there are.
    """
    config = job.emulate
    if config is None:
        return None
    if config.slowdown is not None and len(config.slowdown) != comm.size:
        raise ConfigError(f"emulate.slowdown lists {len(config.slowdown)} ranks, this job has {comm.size}")
    beyond = [change.rank for change in config.at if change.rank >= comm.size]
    if beyond:
        raise ConfigError(f"emulate.at: rank {beyond[0]} is not among this job's {comm.size} ranks, 0 the first")
    return Emulation(config, comm.rank, comm.size, job.seed, on)


def loss(job: JobConfig, data: DataSpec) -> Loss:
    """The job's loss.

    Raises:
        ConfigError: it does not go with the data, or with the job's other options.
    """
    made = Loss(job.loss, data)
    per_sample = [key for key in ("noise_scale", "weight_noise") if getattr(job.gradients, key) is not None]
    if made.counts_terms and per_sample:
        raise ConfigError(
            f"gradients.{per_sample[0]}: takes every sample for one term of the loss, which {brief(job.loss.name)} "
            "counts otherwise: leave it out"
        )
    return made


def net(job: JobConfig, data: DataSpec, on: torch.device) -> nn.Module:
    """The job's net with weights drawn from its seed, the same on every rank."""
    seed_generators(job.seed)
    made: nn.Module = make_model(job.model, data).to(device=on, dtype=dtype(job))
    return made
