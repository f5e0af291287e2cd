"""From the names in a job file to objects: the only lookup tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from hpclbfl.comm.base import Communicator, launched_size
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config import JobConfig
from hpclbfl.errors import ConfigError
from hpclbfl.gradients.scaler import StepUp
from hpclbfl.optim.slots import reset_slots
from hpclbfl.sections import BspConfig, CommConfig, OptimizerConfig
from hpclbfl.sync import Synchroniser
from hpclbfl.sync.bsp import BulkSynchronous
from hpclbfl.sync.fedavg import FederatedAveraging


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
    return LocalCommunicator()


def _under_mpi(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"))


def device(comm: Communicator) -> torch.device:
    """A GPU of the rank's own, or the CPU; ranks beyond the node's GPUs share them in turn."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = comm.local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def dtype(job: JobConfig) -> torch.dtype:
    """Of parameters and images; bf16 and fp16 are autocast on top of float32."""
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


_OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], OptimizerConfig], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, c: torch.optim.SGD(
        parameters, lr=c.lr, momentum=c.momentum, nesterov=c.nesterov, weight_decay=c.weight_decay, fused=True
    ),
    "adam": lambda parameters, c: torch.optim.Adam(
        parameters, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True
    ),
    "adamw": lambda parameters, c: torch.optim.AdamW(
        parameters, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True
    ),
}


def optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's optimizer in its fused form, one pass over the parameters, with its state laid out."""
    made = _OPTIMIZERS[config.name](parameters, config)
    reset_slots(made)
    return made


def loss_scaler(job: JobConfig, on: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16; passes everything through otherwise."""
    made = torch.amp.GradScaler(on.type, enabled=job.precision == "fp16")
    # Its scale is made with the first loss, which a rank without samples never sees.
    made.scale(torch.zeros((), device=on))
    return made


def transform(job: JobConfig) -> StepUp | None:
    """The multiplier of the gradient; without a scaler one that measures alone, or nothing."""
    config = job.gradients.scaler
    if config is None:
        return StepUp(factor=1.0, when="never") if job.gradients.measure else None
    return StepUp(config.factor, config.threshold, config.when, config.duty if config.duty is not None else 1.0)


def synchroniser(job: JobConfig, global_batch_size: int, num_train: int) -> Synchroniser:
    """BSP, or federated averaging with H from local_steps or local_epochs (rounded to whole steps)."""
    if isinstance(job.sync, BspConfig):
        return BulkSynchronous()
    if job.sync.local_steps is not None:
        return FederatedAveraging(job.sync.local_steps)
    steps = (job.sync.local_epochs or 1.0) * num_train / global_batch_size
    return FederatedAveraging(max(1, round(steps)))


def net(job: JobConfig, num_classes: int, image_shape: tuple[int, int, int], on: torch.device) -> nn.Module:
    """The job's net with weights drawn from its seed, the same on every rank."""
    from hpclbfl.models import create_model
    from hpclbfl.replicas import key_generators

    _, height, width = image_shape
    if height != width:
        raise ConfigError(f"data.resize: images of {width} x {height} px are not square; give the side in px")
    key_generators(job.seed)
    module: Any = create_model(job.model.name, num_classes, height, job.model.stem, job.model.dropout)
    made: nn.Module = module.to(device=on, dtype=dtype(job))
    return made
