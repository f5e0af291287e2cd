"""Section of a job file: what all partitions share."""

from __future__ import annotations

from typing import ClassVar, Literal

from hpclbfl.config.part_names import brief
from hpclbfl.config.sections.base import Section

DealsBy = Literal["labels", "samples", "groups"]


class PartitionConfig(Section):
    """How the training set is divided among the clients.

    Shards are disjoint and fixed: each client keeps its own for the whole run, unless samples are reshuffled.
    """

    kind: str
    """Which partition."""

    deals_by: ClassVar[DealsBy] = "labels"
    """What it looks at: the samples' classes; their number alone, so that they need no classes; or whose they are,
    which it is then called with in the place of classes."""

    @property
    def is_reshuffled(self) -> bool:
        """Whether clients have no shards of their own, and every epoch divides all samples among them anew."""
        return False

    @property
    def title(self) -> str:
        """What it is called, in a few words."""
        return brief(self.kind) if ":" in self.kind else self.kind.replace("_", " ")
