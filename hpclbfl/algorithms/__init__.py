"""When gradients are reduced and when parameters are averaged; a method a module.

A synchroniser is a set of pure functions of the step (counted from 1, the step just taken), equal on every rank.
"""

from __future__ import annotations

from typing import Protocol


class Synchroniser(Protocol):
    """Decides the communication of each step."""

    def shared(self, step: int) -> bool:
        """One model, its gradients summed over all clients in this step; else replicas train alone."""

    def needs_vote(self, step: int) -> bool:
        """Ranks exchange votes after this step; while the model is shared, votes ride on the gradients anyway."""

    def averages(self, step: int, fired: bool) -> bool:
        """Parameters are averaged after this step; `fired`: some rank's detector asked for it."""

    def why_never(self, step: int, num_averagings: int) -> str:
        """Why clients that train alone have not been averaged in so many steps; empty: they did not train alone.

        `num_averagings`: those that were not asked for by a change.
        """
