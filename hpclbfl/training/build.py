"""From sections of a job to the parts of a run that are no components."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpclbfl.algorithms.replicas import Client, FlatModel, seed_generators
from hpclbfl.batching.bounds import check_one_client_per_rank
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.config.sections import CommConfig, OptimizerConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.launched import launched_size
from hpclbfl.data.sampling import Sampler
from hpclbfl.gradients import GradientTransform
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.clip import Clip
from hpclbfl.gradients.noise_scale import NoiseScale
from hpclbfl.gradients.pipeline import Pipeline
from hpclbfl.gradients.scaler import StepUpScale
from hpclbfl.losses.checked import Loss
from hpclbfl.models import DataSpec, make_model
from hpclbfl.optim.extrapolation import Extrapolation
from hpclbfl.optim.optimizers import make_optimizer
from hpclbfl.training.emulate import Emulation


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


def optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The job's optimizer with its state laid out; the names stand in `hpclbfl.optim.optimizers`."""
    return make_optimizer(config, parameters)


def loss_scaler(job: JobConfig, on: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16; passes everything through otherwise."""
    made = torch.amp.GradScaler(on.type, enabled=job.precision == "fp16")
    # Its scale is made with the first loss, which a rank without samples never sees.
    made.scale(torch.zeros((), device=on))
    return made


def local_client(job: JobConfig, client_id: int, template: nn.Module, on: torch.device) -> Client:
    """A client with a copy of a net and an optimizer of its own."""
    replica = FlatModel(template)
    return Client(client_id, replica, optimizer(job.optimizer, replica.parameters), loss_scaler(job, on))


def reducer(job: JobConfig, parameters: Sequence[nn.Parameter], comm: Communicator) -> GradientReducer:
    """Of the shared model's gradients."""
    config = job.gradients
    return GradientReducer(
        parameters,
        comm,
        job.comm.bucket_mb,
        # Under loss scaling the norm is known only after the sum has been unscaled.
        measure=config.measure and job.precision != "fp16",
        measure_clients=config.noise_scale is not None,
        wire_dtype=torch.float16 if config.compression == "fp16" else None,
    )


def pipeline(job: JobConfig, agree: Callable[[Tensor], Tensor]) -> Pipeline | None:
    """Measures and multiplies gradients; None where nothing is measured."""
    config = job.gradients
    if not config.measure:
        return None
    step_up = StepUpScale(factor=1.0, when="never")
    if config.scaler is not None:
        c = config.scaler
        step_up = StepUpScale(c.factor, c.threshold, c.when, c.duty if c.duty is not None else 1.0, c.change)
    elif job.sync.watched_change is not None:
        step_up = StepUpScale(factor=1.0, when="never", change=job.sync.watched_change)
    transforms: list[GradientTransform[Any]] = [step_up]
    if config.clip_norm is not None:
        transforms.append(Clip(config.clip_norm))
    noise_scale = NoiseScale(config.noise_scale.decay) if config.noise_scale is not None else None
    return Pipeline(Chain(transforms), noise_scale, job.seed, agree)


def extrapolation(job: JobConfig) -> Extrapolation | None:
    """Of the points at which clients take their gradients."""
    rate = job.gradients.extrapolation_lr
    return Extrapolation(rate) if rate is not None else None


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
