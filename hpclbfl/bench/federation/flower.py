"""Flower's simulation: clients are actors of Ray, one for each core that ranks would have."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from typing import Any

from hpclbfl.bench.federation.work import Rounds, Work, work_of
from hpclbfl.bench.ranks import Task, run


def measure(task: Task) -> dict[str, Any]:
    """Times of the rounds."""
    import flwr
    import ray
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    plain = json.dumps(asdict(task))
    work, rounds = Work(task), Rounds(task.begun)
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        own = work_of(plain)
        net = own.net()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        own.train(net, int(context.node_config["partition-id"]))
        found = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": own.samples})}
        return Message(content=RecordDict(found), reply_to=message)

    def ended(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        # Number 0 is before the first round.
        if number:
            rounds.end()
        return None

    @server_app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=work.num_clients)
        initial = ArrayRecord(work.net().state_dict())
        last = strategy.start(grid, initial, work.rounds, train_config=ConfigRecord(), evaluate_fn=ended)
        library = f"Flower {flwr.__version__}, Ray {ray.__version__}"
        found.update(rounds.found(library, last.arrays.to_torch_state_dict()))

    found: dict[str, Any] = {}
    # The path of a socket may have 107 characters: Ray's lie directly below /tmp.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as place:
        init = {"num_cpus": task.settings["num_ranks"], "include_dashboard": False, "_temp_dir": place}
        run_simulation(
            server_app,
            client_app,
            work.num_clients,
            backend_config={"init_args": init, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    return found


if __name__ == "__main__":
    run(measure)
