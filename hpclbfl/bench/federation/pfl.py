"""pfl-research's simulation on the same ranks, its processes joined by torch.distributed."""

from __future__ import annotations

import os
from typing import Any

from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.torchrun import name_ranks


def measure(task: Task) -> dict[str, Any]:
    """Times of the rounds."""
    name_ranks()
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    # It joins the other processes as soon as it is imported.
    import pfl
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel
    from torch import nn

    from hpclbfl.bench.federation.work import LR, MOMENTUM, WEIGHT_DECAY, Rounds, Work

    work, rounds = Work(task), Rounds(task.begun)

    class Net(nn.Module):
        """The net with what it wants of one."""

        def __init__(self) -> None:
            super().__init__()
            self.net = work.net()

        def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(images), labels)

        def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
            return {}

    class Watch(TrainingProcessCallback):  # type: ignore[misc]
        """Notes the ends of rounds."""

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            rounds.end()
            return False, Metrics()

    net = Net()
    model = PyTorchModel(
        net,
        lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        torch.optim.SGD(net.parameters(), lr=1.0),
    )
    users = list(range(work.num_clients))
    sampler = get_user_sampler("minimize_reuse", users)
    data = FederatedDataset(lambda user: Dataset(raw_data=work.samples_of(user), user_id=str(user)), sampler)
    FederatedAveraging().run(
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=work.num_clients,
            val_cohort_size=0,
        ),
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=work.batch),
        callbacks=[Watch()],
        send_metrics_to_platform=False,
    )
    found = rounds.found(f"pfl {pfl.__version__}, torch.distributed, gloo", net)
    torch.distributed.barrier()
    return found


if __name__ == "__main__":
    run(measure)
