"""Migration: jobs in run folders of earlier versions, in today's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpclbfl.config.part_names import parse_name

_MOMENTUM, _MOMENTS = ("sgd", "lars"), ("adam", "adamw", "lamb")
_HOLDERS: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "model": (
        "name",
        {
            "stem": ("resnet18", "resnet50"),
            "dropout": ("vgg11", "vgg11_bn", "alexnet", "vit_b_16", "vit_cifar", "vgg_small", "alexnet_small"),
        },
    ),
    "partition": (
        "kind",
        {"labels": ("labels_per_client",), "alpha": ("dirichlet", "quantity"), "reshuffle": ("iid",)},
    ),
    "optimizer": (
        "name",
        {
            **dict.fromkeys(("momentum", "nesterov"), _MOMENTUM),
            **dict.fromkeys(("betas", "eps"), _MOMENTS),
            "trust_coefficient": ("lars",),
        },
    ),
    "batching": (
        "policy",
        {
            "from": ("proportional",),
            "window": ("proportional", "dynamic"),
            "min_gain": ("dynamic",),
            "min_local_batch_size": ("proportional", "dynamic"),
            "max_local_batch_size": ("proportional", "dynamic", "noise_scale"),
            **dict.fromkeys(("max_global_batch_size", "lr_rule"), ("noise_scale",)),
        },
    ),
    "schedule": (
        "kind",
        {
            **dict.fromkeys(("milestones_epochs", "gamma"), ("multistep",)),
            "total_epochs": ("cosine",),
            **dict.fromkeys(("alpha", "rate", "delay_epochs", "floor"), ("tvlars",)),
        },
    ),
}
"""By section: what names the component, and the keys that versions up to 0.1 wrote for all of them, though only these
read them."""


def migrated(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a job that a run folder holds as this version writes them.

    Versions without `partition.reshuffle` dealt all samples anew over all clients under `kind: iid`.

    Args:
        job: from config.yaml, a log or a provenance; whatever its values are.
    """
    found = dict(job)
    partition = job.get("partition")
    if isinstance(partition, Mapping) and partition.get("kind") == "iid" and "reshuffle" not in partition:
        found["partition"] = {**partition, "reshuffle": True}
    for section, (naming, holders) in _HOLDERS.items():
        values = found.get(section)
        # Those versions had no parts of the user's own, whose keys are their own.
        if isinstance(values, Mapping) and naming in values and parse_name(values[naming]) is None:
            own = {key: value for key, value in values.items() if values[naming] in holders.get(key, (values[naming],))}
            found[section] = own
    return found
