"""Bounds on the clients' batches, and the batches that a run begins with."""

from __future__ import annotations

from collections.abc import Sequence

from hpclbfl.config.sections import BatchingConfig
from hpclbfl.config.sections.batching import BoundedConfig
from hpclbfl.core.errors import ConfigError


def bounds_of_ranks(
    config: BoundedConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> tuple[list[int], list[int]]:
    """[R] smallest and largest batch of each rank, samples, for policies that follow the speed of ranks.

    Args:
        config: the policy's section of the job.
        num_ranks: R.
        sizes: [R] b_c of every client at the start of the run.
        capacity: [R] largest batch that each client can provide.

    Raises:
        ConfigError: there is not one client per rank.
    """
    check_one_client_per_rank(f"batching.policy {config.policy}", len(sizes), num_ranks)
    low, high = config.min_local_batch_size or 1, config.max_local_batch_size or sum(sizes)
    # A capacity of 0 counts as 1: a rank without samples computes its steps as if it had one.
    return [low if most else 1 for most in capacity], [min(high, max(1, most)) for most in capacity]


def check_bounds(low: Sequence[int], high: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse bounds that the global batch cannot satisfy. Raises ConfigError."""
    for client, (least, most) in enumerate(zip(low, high, strict=True)):
        if least > most:
            raise ConfigError(f"batching.min_local_batch_size: {least} is more than client {client} can have, {most}")
    if not sum(low) <= sum(sizes) <= sum(high):
        raise ConfigError(
            f"batching: a global batch of {sum(sizes)} does not fit bounds that sum to {sum(low)} and {sum(high)}"
        )


def check_one_client_per_rank(what: str, num_clients: int, num_ranks: int) -> None:
    """Refuse a policy that follows the speed of ranks if ranks have several clients. Raises ConfigError."""
    if num_clients != num_ranks:
        ranks = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
        raise ConfigError(f"{what} needs one client per rank, not {num_clients} clients on {ranks}")


def check_batches(config: BatchingConfig, sizes: Sequence[int], num_train: int) -> None:
    """Refuse a batch that is larger than the training set.

    Args:
        config: the section of the job.
        sizes: b_c of every client that it asks for.
        num_train: N, size of the training set.

    Raises:
        ConfigError: names the key.
    """
    total = config.global_batch_size
    key, largest = ("local_batch_size", max(sizes)) if total is None else ("global_batch_size", total)
    if largest > num_train:
        raise ConfigError(f"batching.{key}: a batch of {largest} exceeds the {num_train} training samples")


def held_sizes(sizes: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """b_c of every client as a run begins: what the job asks for, at most what a step can hold of the client.

    A client whose shard is empty keeps the size that is asked for; it takes no samples all the same.

    Args:
        sizes: b_c of every client that the job asks for.
        counts: samples of every client in a step of these sizes.
    """
    return tuple(count or size for count, size in zip(counts, sizes, strict=True))
