"""What is measured inside a probe's process: steps of the job's own training code, their times and their memory.

Components of Eq. 3 are counted exactly, storage by storage: parameters and buffers, gradients as the optimizer finds
them, its state, and whatever the forward pass saves for the backward pass. The peak of a step comes from the device's
allocator on a GPU and from the kernel's count of resident memory on a CPU.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpclbfl.batching import Plan
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.components import ALGORITHMS, PARTITIONS, POLICIES, component_config
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import ImageDataConfig
from hpclbfl.core.clock import Mark, seconds
from hpclbfl.data.datasets import Dataset, load_dataset
from hpclbfl.data.frames import Frames
from hpclbfl.data.loader import Loader
from hpclbfl.data.sampling import GlobalSampler
from hpclbfl.data.splits import Split
from hpclbfl.training.loop import begin_record
from hpclbfl.training.setup import make_state

IMAGES = 4096
"""Training images that a probe opens; it goes through them again and again."""
OTHERS = 2
"""Batch size of the rank's other clients while one is probed."""


class ProbeCommunicator(LocalCommunicator):
    """A lone process in the place of a rank: it takes that rank's device and share of the node's cores."""

    def __init__(self, local_rank: int, local_size: int) -> None:
        self.local_rank, self.local_size = local_rank, local_size


class Bench:
    """A job's training on one device, step by step, with a batch size of one's choice.

    Args:
        job: as it is to run; its partition, batch policy and emulation are left out.
        local_rank, local_size: of the rank that the probe stands for.
        num_clients: how many the rank holds.
    """

    def __init__(self, job: JobConfig, local_rank: int, local_size: int, num_clients: int = 1) -> None:
        whole = load_dataset(job.data.without_download())
        self.state = make_state(probe_job(job, whole, num_clients), ProbeCommunicator(local_rank, local_size))
        # A batch may be larger than what is opened here, up to the whole set.
        num_opened, num_train = len(self.state.train), len(whole.train)
        self.state.sampler = GlobalSampler(num_opened, len(self.state.sizes), job.seed, max(num_opened, num_train))
        self.device = self.state.device
        self.num_train = num_train
        self.fingerprint = whole.fingerprint
        self.missing_bytes = self._missing_bytes(whole)
        """Of decoded images that a training run keeps in memory and this process does not."""

    def _missing_bytes(self, whole: Dataset) -> int:
        opened = [(whole.train, self.state.train), (whole.test, self.state.test)]
        decoded = [(split, loader) for split, loader in opened if isinstance(loader, Loader) and loader.in_memory]
        return sum(math.prod(loader.input_shape) * (len(split) - len(loader)) for split, loader in decoded)

    def step(self, batch: int) -> tuple[float, float]:
        """Train one step with `batch` samples on the first client; t_mov and t_c, s, the device synchronised."""
        state = self.state
        state.plan = Plan((batch, *[OTHERS] * (len(state.clients) - 1)), "probe")
        record = begin_record(state)
        # The step's number stays, and with it what the algorithm does in it.
        state.algorithm.step(state, record, 0)
        state.counters.positions += state.counts_now
        t_mov = _total(client.data for client in record.clients)
        t_c = _total(client.compute for client in record.clients) + _total(record.update) + _total(record.sync)
        return t_mov, t_c

    def account(self, batch: int) -> dict[str, int]:
        """Train one step and count its memory: bytes of the model, gradient, optimizer and activation."""
        state = self.state
        modules = [state.mean.module, *(client.replica.module for client in state.clients)]
        model = _Storages(t for module in modules for t in (*module.parameters(), *module.buffers()))
        optimizers = state.model.optimizers
        inputs, saved, gradients = _Storages(), _Storages(), _Storages()

        def keep(tensor: Tensor) -> Tensor:
            if not (model.holds(tensor) or inputs.holds(tensor)):
                saved.add(tensor)
            return tensor

        def note_inputs(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.add(arguments[0])

        def note_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        gradients.add(parameter.grad)

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
            "model": model.num_bytes,
            "gradient": gradients.num_bytes,
            "optimizer": _Storages(v for v in states if isinstance(v, Tensor)).num_bytes,
            "activation": saved.num_bytes,
        }

    def peak_of(self, batch: int, num_steps: int) -> tuple[int, list[float]]:
        """Peak memory of steps, bytes (see `peak_memory`), and the time of each, s.

        A first, tiny step touches what every step needs: parameters, gradients, momentum.
        """
        self.step(OTHERS)
        with peak_memory(self.device) as peak:
            times = [sum(self.step(batch)) for _ in range(num_steps)]
        return peak[0] + (0 if self.device.type == "cuda" else self.missing_bytes), times


class _Storages:
    """Adds up the memory of tensors, each storage once, while all of them are alive."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self.num_bytes = 0
        self._places: set[int] = set()
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._places:
            self._places.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._places


def probe_job(job: JobConfig, whole: Dataset, num_clients: int) -> JobConfig:
    """The job as a probe runs it: few images, a learning rate that moves nothing, nothing emulated."""
    data = job.data.without_download()
    images = whole.train if isinstance(whole.train, Split) else None
    if isinstance(data, ImageDataConfig) and images and data.in_memory is None and data.augment != "resized_crop_flip":
        # Fewer images might fit where the whole set would not.
        in_memory = Frames(images, data.resize, in_memory=False).are_small
        data = data.model_copy(update={"in_memory": in_memory})
    data = data.model_copy(update={"limit": min(IMAGES, len(whole.train))})
    sync = job.sync
    if sync.trains_alone and sync.watched_change is None:
        # A round that no probe comes to the end of.
        sync = component_config(ALGORITHMS, {"kind": "fedavg", "local_steps": 10**9}, "plan", "sync")
    changes = {
        "clients": num_clients,
        "data": data,
        "partition": component_config(PARTITIONS, {"reshuffle": True}, "plan", "partition"),
        "sync": sync,
        "batching": component_config(POLICIES, {"local_batch_size": OTHERS}, "plan", "batching"),
        # Weights that run away would end in numbers of another speed.
        "optimizer": job.optimizer.model_copy(update={"lr": 1e-12}),
        "gradients": job.gradients.model_copy(update={"weight_noise": None}),
        "emulate": None,
    }
    return job.model_copy(update=changes)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Gives a list that holds the peak, bytes, after the block: allocated on a GPU, resident on a CPU."""
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
    else:
        reset_resident_peak()
        yield peak
        peak.append(resident_peak())


def reset_resident_peak() -> None:
    """Let the kernel's count of peak resident memory begin anew; where it cannot, the peak is that since the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_peak() -> int:
    """Peak resident memory of this process, bytes."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Resident memory of this process now, bytes; 0 where the system does not tell."""
    return _status("VmRSS")


def anonymous() -> int:
    """Memory of this process now that mirrors no file, exact where `resident` may lag by some pages; bytes."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return resident()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")), 0) or resident()


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _total(spans: Iterable[tuple[Mark, Mark]]) -> float:
    return sum(seconds(*span) for span in spans)
