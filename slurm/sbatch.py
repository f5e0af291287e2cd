"""From a run's size and a cluster profile to sbatch's parameters, and from runs to arrays. Reads and writes nothing."""

from __future__ import annotations

import math
import shlex
from typing import Any

from hpclbfl.core.errors import ConfigError
from hpclbfl.slurm.resources import ProfileConfig, minutes


def tasks_per_node(ranks: int, profile: ProfileConfig) -> int:
    """Return the number of ranks on the fullest node.

    Raises:
        ConfigError: more nodes than ranks, or more ranks than fit on the nodes.
    """
    nodes = profile.num_nodes(ranks)
    if ranks < nodes:
        raise ConfigError(f"nodes: {nodes} for runs of {ranks} ranks leaves some without work")
    fullest = math.ceil(ranks / nodes)
    if profile.ranks_per_node is not None and fullest > profile.ranks_per_node:
        raise ConfigError(
            f"ranks_per_node: {profile.ranks_per_node} leaves no room for {ranks} ranks on {nodes} nodes; "
            f"leave out 'nodes', or ask for {math.ceil(ranks / profile.ranks_per_node)}"
        )
    return fullest


def setup_lines(profile: ProfileConfig) -> list[str]:
    """Return the shell lines at the start of a job."""
    modules = ["module load " + " ".join(shlex.quote(module) for module in profile.modules)] if profile.modules else []
    return [*modules, *profile.setup]


def sbatch_parameters(name: str, ranks: int, profile: ProfileConfig, parallel: int | None) -> dict[str, Any]:
    """Return submitit's parameters for an array of runs.

    One process per run, which the batch script becomes through `exec`, supervises the ranks; so the signal before the
    time limit goes to the batch script only (`B:`).

    Args:
        name: of the job.
        ranks: of each run.
        profile: the cluster.
        parallel: most runs of the array at a time; None: no limit.

    Raises:
        ConfigError: nodes and ranks do not fit.
    """
    local_ranks = tasks_per_node(ranks, profile)
    flags: dict[str, Any] = {"ntasks": ranks, "signal": f"B:USR2@{profile.signal_s}", "requeue": True}
    if profile.memory is not None:
        flags["mem"] = profile.memory
    flags |= {key.replace("_", "-"): value for key, value in profile.sbatch.items() if value is not False}
    constraint = profile.constraint
    if isinstance(constraint, dict):
        constraint = "[" + "&".join(f"{kind}*{count}" for kind, count in constraint.items()) + "]"
    return {
        "job_name": name,
        "nodes": profile.num_nodes(ranks),
        "ntasks_per_node": local_ranks,
        "cpus_per_task": profile.cpus_per_rank,
        "gpus_per_node": (profile.gpus_per_rank or 0) * local_ranks or None,
        "time": minutes(profile.time) if profile.time is not None else None,
        "partition": profile.partition,
        "account": profile.account,
        "constraint": constraint,
        "array_parallelism": parallel or 1_000_000,
        "setup": setup_lines(profile) or None,
        "additional_parameters": flags,
        "stderr_to_stdout": True,
        "use_srun": False,
        "wckey": None,
    }


def shares(total: int | None, sizes: list[int]) -> list[int | None]:
    """Return how many tasks of each array may run at a time: `total` over all arrays, in proportion to their sizes.

    With more arrays than `total`, array i waits for array i - total to end and then runs one task at a time.
    """
    if total is None:
        return [None] * len(sizes)
    given = [1] * min(total, len(sizes))
    while sum(given) < total:
        open_ = [i for i in range(len(given)) if given[i] < sizes[i]]
        if not open_:
            break
        given[min(open_, key=lambda i: given[i] / sizes[i])] += 1
    return [given[i % len(given)] for i in range(len(sizes))]


def cut(count: int, largest: int) -> list[int]:
    """Return the sizes of as few arrays of at most `largest` tasks as hold `count` tasks, as equal as possible."""
    num_arrays = math.ceil(count / largest)
    return [count // num_arrays + (i < count % num_arrays) for i in range(num_arrays)]
