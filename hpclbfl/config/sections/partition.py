"""Section of a job file: what all partitions share."""

from __future__ import annotations

from hpclbfl.config.part_names import brief
from hpclbfl.config.sections.base import Section


class PartitionConfig(Section):
    """How the training set is spread over the clients; see `hpclbfl.data.partitions`.

    Shards are disjoint and never change hands, unless samples are reshuffled.
    """

    kind: str

    @property
    def is_reshuffled(self) -> bool:
        """Whether clients own nothing, and every epoch deals all samples anew over all of them."""
        return False

    @property
    def title(self) -> str:
        """What it is called, in a few words."""
        return brief(self.kind) if ":" in self.kind else self.kind.replace("_", " ")
