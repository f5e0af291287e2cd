"""Bounds on the clients' batches."""

from __future__ import annotations

from collections.abc import Sequence

from hpclbfl.config.sections.batching import BoundedConfig
from hpclbfl.core.errors import ConfigError


def find_bounds(
    low: int | None, high: int | None, sizes: Sequence[int], capacity: Sequence[int]
) -> tuple[list[int], list[int]]:
    """[C] smallest and largest batch of each client, samples.

    Args:
        low: the job's lower bound.
        high: the job's upper bound.
        sizes: b_c of every client at the start of the run.
        capacity: largest batch that each client can provide.
    """
    # A capacity of 0 counts as 1: a rank without samples computes its steps as if it had one.
    return [low or 1] * len(sizes), [min(high or sum(sizes), max(1, most)) for most in capacity]


def check_bounds(low: Sequence[int], high: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse bounds that the global batch cannot satisfy. Raises ConfigError."""
    for client, (least, most) in enumerate(zip(low, high, strict=True)):
        if least > most:
            raise ConfigError(f"batching.min_local_batch_size: {least} is more than client {client} can have, {most}")
    if not sum(low) <= sum(sizes) <= sum(high):
        raise ConfigError(
            f"batching: a global batch of {sum(sizes)} does not fit bounds that sum to {sum(low)} and {sum(high)}"
        )


def bounds_of_ranks(
    config: BoundedConfig, num_ranks: int, sizes: Sequence[int], capacity: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Like `find_bounds`, for policies that follow the speed of ranks; ConfigError unless each has one client."""
    check_one_client_per_rank(f"batching.policy {config.policy}", len(sizes), num_ranks)
    return find_bounds(config.min_local_batch_size, config.max_local_batch_size, sizes, capacity)


def check_one_client_per_rank(what: str, num_clients: int, num_ranks: int) -> None:
    """Refuse a policy that follows the speed of ranks if ranks have several clients. Raises ConfigError."""
    if num_clients != num_ranks:
        ranks = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
        raise ConfigError(f"{what} needs one client per rank, not {num_clients} clients on {ranks}")
