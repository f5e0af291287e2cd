"""Time and memory of steps of the job's own training code, measured inside a probe's process.

The components of Eq. 3 are counted exactly, storage by storage: parameters and buffers, gradients as the optimizer sees
them and what a teacher keeps of them, the optimizer's state, and all tensors that the forward pass saves for the
backward pass. The peak of a step comes
from the device's allocator on a GPU and from the kernel's count of resident memory on a CPU.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpclbfl.algorithms.record import StepRecord
from hpclbfl.batching import Plan
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import ALGORITHMS, PARTITIONS, POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import ImageDataConfig
from hpclbfl.core.clock import Mark, seconds
from hpclbfl.data.datasets import Dataset, load_dataset
from hpclbfl.data.frames import Frames
from hpclbfl.data.loader import Loader
from hpclbfl.data.sampling import GlobalSampler
from hpclbfl.data.splits import Split
from hpclbfl.gradients.gradient import Layout
from hpclbfl.planner.taught import kept_for_teacher, without_teacher
from hpclbfl.training.loop import begin_record
from hpclbfl.training.setup import make_state
from hpclbfl.training.state import TrainState

IMAGES = 4096
"""Training images that a probe opens; it iterates over them repeatedly."""
OTHERS = 2
"""Batch size of the rank's other clients while one is probed."""


def take_step(state: TrainState) -> StepRecord:
    """One optimizer step of every client of this rank, driven from outside the training loop, without an averaging."""
    record = begin_record(state)
    state.algorithm.step(state, record, 0)
    state.counters.positions += state.counts_now
    state.counters.step += 1
    return record


class ProbeCommunicator(LocalCommunicator):
    """A single process that stands in for a rank: it uses that rank's device and share of the node's cores."""

    def __init__(self, local_rank: int, local_size: int) -> None:
        self.local_rank, self.local_size = local_rank, local_size


class Bench:
    """A job's training on one device, step by step, with any batch size.

    Args:
        job: its partition, batch policy and emulation are ignored.
        local_rank, local_size: of the rank that the probe stands in for.
        num_clients: clients of the rank.
    """

    def __init__(self, job: JobConfig, local_rank: int, local_size: int, num_clients: int = 1) -> None:
        whole = load_dataset(job.data.without_download())
        self.state = make_state(probe_job(job, whole, num_clients), ProbeCommunicator(local_rank, local_size))
        # A batch may be larger than what is opened here, up to the whole set.
        num_opened, num_train = len(self.state.train), len(whole.train)
        self.state.sampler = GlobalSampler(num_opened, len(self.state.sizes), job.seed, max(num_opened, num_train))
        self.device = self.state.device
        layout = Layout.of(self.state.mean.module.named_parameters())
        self._taught = kept_for_teacher(job, layout, num_clients)
        self.num_train = num_train
        self.fingerprint = whole.fingerprint
        self.missing_bytes = self._missing_bytes(whole)
        """Bytes of decoded images that a training run keeps in memory and this process does not."""

    def _missing_bytes(self, whole: Dataset) -> int:
        opened = [(whole.train, self.state.train), (whole.test, self.state.test)]
        decoded = [(split, loader) for split, loader in opened if isinstance(loader, Loader) and loader.in_memory]
        return sum(math.prod(loader.input_shape) * (len(split) - len(loader)) for split, loader in decoded)

    def step(self, batch: int) -> tuple[float, float]:
        """Train one step with `batch` samples on the first client; t_mov and t_c, s, the device synchronised."""
        state = self.state
        state.plan = Plan((batch, *[OTHERS] * (len(state.clients) - 1)), "probe")
        record = take_step(state)
        t_mov = _total(client.data for client in record.clients)
        t_c = _total(client.compute for client in record.clients) + _total(record.update) + _total(record.sync)
        return t_mov, t_c

    def account(self, batch: int) -> dict[str, int]:
        """Train one step and count its memory: bytes of the model, gradient, optimizer and activation."""
        state = self.state
        modules = [state.mean.module, *(client.replica.module for client in state.clients)]
        model = _storages(t for module in modules for t in (*module.parameters(), *module.buffers()))
        optimizers = state.model.optimizers
        inputs: dict[int, int] = {}
        saved: dict[int, int] = {}
        gradients: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        def note_inputs(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.update(_storages([arguments[0]]))

        def note_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients.update(_storages(p.grad for p in parameters if p.grad is not None))

        handles = [state.clients[0].replica.module.register_forward_pre_hook(note_inputs)]
        handles += [optimizer.register_step_pre_hook(note_gradients) for optimizer in optimizers[:1]]
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self.step(batch)
        finally:
            for handle in handles:
                handle.remove()
        states = [value for o in optimizers for slots in o.state.values() for value in slots.values()]
        return {
            "model": sum(model.values()),
            "gradient": sum(gradients.values()) + sum(_storages(self._taught).values()),
            "optimizer": sum(_storages(v for v in states if isinstance(v, Tensor)).values()),
            "activation": sum(size for place, size in saved.items() if place not in (model | inputs)),
        }

    def peak_of(self, batch: int, num_steps: int) -> tuple[int, list[float]]:
        """Peak memory of steps, bytes (allocated on a GPU, resident on a CPU), and the time of each, s.

        A tiny step comes first and allocates what every step needs: parameters, gradients, momentum.
        """
        self.step(OTHERS)
        is_gpu = self.device.type == "cuda"
        if is_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Resets the kernel's peak; where that is not allowed, the peak since the start of the process counts.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        times = [sum(self.step(batch)) for _ in range(num_steps)]
        if is_gpu:
            return torch.cuda.max_memory_allocated(self.device), times
        peak = _kernel_count("status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak + self.missing_bytes, times


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address of the memory behind tensors, each storage once; all of them must stay alive."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def probe_job(job: JobConfig, whole: Dataset, num_clients: int) -> JobConfig:
    """The job as a probe runs it: few samples, a negligible learning rate, no emulation."""
    data = job.data.without_download()
    images = whole.train if isinstance(whole.train, Split) else None
    if isinstance(data, ImageDataConfig) and images and data.in_memory is None and data.augment != "resized_crop_flip":
        # Fewer images might fit where the whole set would not.
        in_memory = Frames(images, data.resize, in_memory=False).are_small
        data = data.model_copy(update={"in_memory": in_memory})
    data = data.model_copy(update={"limit": min(IMAGES, len(whole.train))})
    sync = job.sync
    if sync.trains_alone and sync.watched_change is None:
        # A round longer than any probe.
        sync = component_config(ALGORITHMS, {"kind": "fedavg", "local_steps": 10**9}, "plan", "sync")
    changes = {
        "clients": num_clients,
        "data": data,
        "partition": component_config(PARTITIONS, {"reshuffle": True}, "plan", "partition"),
        "sync": sync,
        "batching": component_config(POLICIES, {"local_batch_size": OTHERS}, "plan", "batching"),
        # Diverging weights become NaN or denormals, which compute at another speed.
        "optimizer": job.optimizer.model_copy(update={"lr": 1e-12}),
        "gradients": without_teacher(job.gradients).model_copy(update={"weight_noise": None}),
        "emulate": None,
    }
    return job.model_copy(update=changes)


def resident() -> int:
    """Resident memory of this process, bytes; 0 where the system does not report it."""
    return _kernel_count("status", "VmRSS")


def anonymous() -> int:
    """Memory of this process that is backed by no file, bytes; exact where `resident` may lag by some pages."""
    return _kernel_count("smaps_rollup", "Anonymous") or resident()


def _kernel_count(file: str, field: str) -> int:
    """A field of this process's files in /proc, bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self", file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _total(spans: Iterable[tuple[Mark, Mark]]) -> float:
    return sum(seconds(*span) for span in spans)
