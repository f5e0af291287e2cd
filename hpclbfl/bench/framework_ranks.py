"""A rank's part of `hpclbfl bench step` for Lightning and accelerate: their loops around the same work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpclbfl.bench.memory import launch_pss
from hpclbfl.bench.peers import PlainTraining, alone
from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.step import Settings
from hpclbfl.bench.torchrun import name_ranks
from hpclbfl.bench.training import IMAGES, make_job
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core import vision  # noqa: F401, Lightning imports torchvision, which may not fit this torch


class _Place(LocalCommunicator):
    """Says which rank this is; the framework communicates."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = rank, size


def measure(task: Task) -> dict[str, Any]:
    """Times of the steps, seconds; the slowest rank's."""
    name_ranks()
    settings = Settings(**task.settings)
    place = _Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    job = make_job(Path(task.scratch) / IMAGES, settings.model, settings.batch, place.size)
    work = PlainTraining(job, place, alone)
    count = settings.warmup + settings.steps
    library, ended = (_lightning if task.variant == "lightning" else _accelerate)(work, count)
    own = torch.tensor(ended, dtype=torch.float64).diff()[-settings.steps :]
    torch.distributed.all_reduce(own, op=torch.distributed.ReduceOp.MAX)
    memory = launch_pss() / 1e6
    torch.distributed.barrier()
    return {"library": library, "steps_s": own.tolist(), "start_s": ended[1] - task.begun, "memory_mb": memory}


def _accelerate(work: PlainTraining, count: int) -> tuple[str, list[float]]:
    import accelerate

    loop = accelerate.Accelerator(cpu=True)
    net, optimizer = loop.prepare(work.net, work.optimizer)
    ended = [time.time()]
    for _ in range(count):
        images, labels = work.next_batch()
        loop.backward(nn.functional.cross_entropy(net(images), labels))
        optimizer.step()
        optimizer.zero_grad()
        ended.append(time.time())
    return f"accelerate {accelerate.__version__}, torch.distributed, gloo", ended


def _lightning(work: PlainTraining, count: int) -> tuple[str, list[float]]:
    import lightning
    from torch.utils.data import DataLoader, IterableDataset

    ended = [time.time()]

    class Batches(IterableDataset[tuple[Tensor, Tensor]]):
        """Whole batches, as they are loaded."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return (work.next_batch() for _ in range(count))

    class Module(lightning.LightningModule):  # type: ignore[misc]
        """The net, its loss and its optimizer."""

        def __init__(self) -> None:
            super().__init__()
            self.net = work.net

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return work.optimizer

    class Watch(lightning.Callback):  # type: ignore[misc]
        """Notes the ends of steps."""

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.time())

    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=int(os.environ["WORLD_SIZE"]),
        max_steps=count,
        max_epochs=1,
        logger=False,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(Batches(), batch_size=None))
    return f"Lightning {lightning.__version__}, torch.distributed, gloo", ended


if __name__ == "__main__":
    run(measure)
