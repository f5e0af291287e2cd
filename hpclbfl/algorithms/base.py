"""What an algorithm is: it owns a step, from the clients' batches to their new parameters, and what follows it.

Two kinds of models are at its disposal. Clients that share one (`SharedModel`) sum their gradients in every step;
clients that train alone (`Replicas`) have a net and an optimizer each, and are averaged now and then. A method takes
the rank's whole state and the record of the step for the log; what it returns is equal on every rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpclbfl.algorithms.local_client import LocalClient
    from hpclbfl.algorithms.record import StepRecord
    from hpclbfl.algorithms.state import RankState

VOTE_EVERY = 50
"""Steps between two exchanges of flags while clients train alone, unless a round is shorter."""


class Algorithm:
    """Base of all algorithms."""

    def shares_model(self, step: int) -> bool:
        """Whether the clients train one model in this step, counted from 1; else each its own."""
        raise NotImplementedError

    def start(self, state: RankState) -> None:
        """Before the first step, or before a checkpoint is loaded."""

    def step(self, state: RankState, record: StepRecord, flags: int) -> int:
        """One optimizer step of every client of this rank.

        Args:
            record: of the step, filled on the way.
            flags: of this rank, see `hpclbfl.algorithms.flags`.

        Returns:
            The flags of all ranks; 0 where they were not exchanged in this step.
        """
        raise NotImplementedError

    def end_of_step(self, state: RankState, record: StepRecord, flags: int) -> bool:
        """What follows a step, `state.counters` being past it; whether a round ended with it."""
        raise NotImplementedError

    def why_never(self, step: int, num_averagings: int) -> str:
        """Why clients that train alone were never averaged in so many steps; empty: they did not train alone.

        `num_averagings`: those that were not asked for by a change.
        """
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What it must remember besides the models, equal on every rank: tensors and plain values."""
        return {}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Go on from such a state, whose types and shapes have been checked."""


class LocalTraining(Algorithm):
    """Clients train alone; in some steps the weighted mean of their models replaces them.

    A subclass says when: `averages`. It may change a client's gradient before the step: `adjust_gradient`.
    """

    def shares_model(self, step: int) -> bool:
        """Never."""
        return False

    def exchanges_flags(self, step: int) -> bool:
        """Whether the ranks talk after this step, counted from 1; in a step that ends with an averaging they must."""
        raise NotImplementedError

    def averages(self, step: int, flags: int) -> bool:
        """Whether the models are averaged after this step."""
        raise NotImplementedError

    def step(self, state: RankState, record: StepRecord, flags: int) -> int:
        """Client after client: backward pass, measure, transform, step; then the flags, where they are exchanged.

        In a step in which transforms learn from the clients' gradients, all backward passes come first.
        """
        replicas = state.replicas
        asking = replicas.asking(state, record)
        for client in replicas.clients:
            client.backward(state, record)
            if not asking:
                flags |= self._finish(state, client, record)
        if asking:
            replicas.teach(state, record, asking)
            for client in replicas.clients:
                client.begin_update(state)
                flags |= self._finish(state, client, record)
        return state.exchange_flags(record, flags, now=self.exchanges_flags(state.counters.step + 1))

    def _finish(self, state: RankState, client: LocalClient, record: StepRecord) -> int:
        flags = 0
        if client.has_gradient:
            self.adjust_gradient(state, client)
            flags = client.update(state, record) | self.ask(client, record)
        client.end_step(state, record)
        return flags

    def adjust_gradient(self, state: RankState, client: LocalClient) -> None:
        """Change the gradient of a client's own loss, which lies in its parameters, unscaled; before it is measured."""

    def ask(self, client: LocalClient, record: StepRecord) -> int:
        """Flags by which a client asks for something, from what was measured of its gradient."""
        return 0

    def end_of_step(self, state: RankState, record: StepRecord, flags: int) -> bool:
        """Averages, where it is time."""
        if not self.averages(state.counters.step, flags):
            return False
        state.replicas.average_clients(state, record)
        state.counters.averaged_step = state.counters.step
        return True
