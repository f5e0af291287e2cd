"""Jobs as run folders of earlier versions hold them, in today's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def migrated(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a job that a run folder holds, with the keys that its version did not have.

    Versions without `partition.reshuffle` dealt all samples anew over all clients under `kind: iid`.

    Args:
        job: from config.yaml, a log or a provenance; whatever its values are.
    """
    partition = job.get("partition")
    if isinstance(partition, Mapping) and "kind" in partition and "reshuffle" not in partition:
        return {**job, "partition": {**partition, "reshuffle": partition["kind"] == "iid"}}
    return dict(job)
