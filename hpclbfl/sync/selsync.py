"""SelSync: local steps until some client's gradient changes, then an averaging of all.

S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023. Each client
watches the relative change of its own gradient (`hpclbfl.gradients.change`); where one reaches the threshold, all
average their parameters after that step. A change that is not known yet, in the first steps, asks for nothing.
"""

from __future__ import annotations


class SelectiveSynchronisation:
    """See `hpclbfl.sync.Synchroniser`."""

    def shared(self, step: int) -> bool:
        """Never: every client has its own model."""
        return False

    def needs_vote(self, step: int) -> bool:
        """Always: any client may ask for an averaging."""
        return True

    def averages(self, step: int, fired: bool) -> bool:
        """Where a client asked."""
        return fired
