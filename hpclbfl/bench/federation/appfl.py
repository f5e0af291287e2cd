"""APPFL's MPI communicators: a rank serves, the others train their clients in turn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpclbfl.bench.federation.work import Rounds, Work
from hpclbfl.bench.ranks import Task, run
from hpclbfl.core import vision  # noqa: F401, APPFL imports torchvision, which may not fit this torch

_NET = """from hpclbfl.bench.federation.work import Work
from hpclbfl.bench.ranks import Task
import json


def net(task):
    return Work(Task(**json.loads(task))).net()
"""
"""It reads its model from a file."""


def measure(task: Task) -> dict[str, Any]:
    """Times of the rounds; rank 0 serves."""
    import appfl
    from mpi4py import MPI

    comm, rounds = MPI.COMM_WORLD, Rounds(task.begun)
    work = Work(task)
    found = {}
    if comm.rank == 0:
        net = _serve(task, work, comm, rounds)
        found = rounds.found(f"APPFL {appfl.__version__}, mpi4py", net)
    else:
        _train(work, comm)
    comm.Barrier()
    return found


def _serve(task: Task, work: Work, comm: Any, rounds: Rounds) -> Any:
    from appfl.agent import ServerAgent
    from appfl.comm.mpi import MPIServerCommunicator
    from appfl.config import ServerAgentConfig
    from omegaconf import OmegaConf

    class Watched(ServerAgent):  # type: ignore[misc]
        """Notes the ends of rounds."""

        def global_update(self, *args: Any, **options: Any) -> Any:
            found = super().global_update(*args, **options)
            self._seen = getattr(self, "_seen", 0) + 1
            if self._seen % work.num_clients == 0:
                rounds.end()
            return found

    source = Path(task.folder) / "net.py"
    source.write_text(_NET, encoding="utf-8")
    model = {"model_path": str(source), "model_name": "net", "model_kwargs": {"task": json.dumps(asdict(task))}}
    values = {
        "client_configs": {"train_configs": {}, "model_configs": model},
        "server_configs": {
            "num_clients": work.num_clients,
            "num_global_epochs": work.rounds,
            "scheduler": "SyncScheduler",
            "scheduler_kwargs": {"same_init_model": True},
            "aggregator": "FedAvgAggregator",
            "aggregator_kwargs": {"client_weights_mode": "equal"},
            "logging_output_dirname": task.folder,
            "logging_output_filename": "appfl",
            "optimize_memory": False,
        },
    }
    agent = Watched(ServerAgentConfig(**{key: OmegaConf.create(value) for key, value in values.items()}))
    MPIServerCommunicator(comm, agent, agent.logger).serve()
    return agent.model


def _train(work: Work, comm: Any) -> None:
    from appfl.comm.mpi import MPIClientCommunicator

    own = [c for c in range(work.num_clients) if c % (comm.size - 1) == comm.rank - 1]
    names = [f"client{c}" for c in own]
    server = MPIClientCommunicator(comm, server_rank=0, client_ids=names, optimize_memory=False)
    server.get_configuration()
    found = server.get_global_model(init_model=True)
    state = found[0] if isinstance(found, tuple) else found
    net = work.net()
    for _ in range(work.rounds):
        states = {}
        for client, name in zip(own, names, strict=True):
            net.load_state_dict(state)
            work.train(net, client)
            states[name] = {key: value.clone() for key, value in net.state_dict().items()}
        state, _ = server.update_global_model(states)
    server.invoke_custom_action("close_connection")


if __name__ == "__main__":
    run(measure)
