"""Migration: jobs in run folders of earlier versions, in today's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpclbfl.config.part_names import parse_name
from hpclbfl.core.text import shown

_MOMENTUM, _MOMENTS, _TVLARS = ("sgd", "lars"), ("adam", "adamw", "lamb"), ("tvlars",)
_WITH_DROPOUT = ("vgg11", "vgg11_bn", "alexnet", "vit_b_16", "vit_cifar", "vgg_small", "alexnet_small")
_BY_SPEED = ("proportional", "dynamic")
_RESIZED = ("noise_scale", "critical_phase")
_UNNAMED_LOSS = "cross_entropy"
_NONE = "none"
_FORMER: Mapping[str, tuple[str, Mapping[str, tuple[tuple[str, ...], Any]]]] = {
    "model": ("name", {"stem": (("resnet18", "resnet50"), "imagenet"), "dropout": (_WITH_DROPOUT, None)}),
    "partition": ("kind", {"labels": (("labels_per_client",), None), "alpha": (("dirichlet", "quantity"), None)}),
    "optimizer": (
        "name",
        {
            "momentum": (_MOMENTUM, 0.0),
            "nesterov": (_MOMENTUM, False),
            "betas": (_MOMENTS, [0.9, 0.999]),
            "eps": (_MOMENTS, 1e-8),
            "trust_coefficient": (("lars",), 0.001),
        },
    ),
    "batching": (
        "policy",
        {
            "from": (("proportional",), None),
            "window": (_BY_SPEED, None),
            "min_gain": (("dynamic",), None),
            "min_local_batch_size": (_BY_SPEED, None),
            "max_local_batch_size": ((*_BY_SPEED, *_RESIZED), None),
            "max_global_batch_size": (("noise_scale",), None),
            "lr_rule": (_RESIZED, None),
        },
    ),
    "schedule": (
        "kind",
        {
            "milestones_epochs": (("multistep",), []),
            "gamma": (("multistep",), 0.1),
            "total_epochs": (("cosine",), None),
            "alpha": (_TVLARS, 1.0),
            "rate": (_TVLARS, None),
            "delay_epochs": (_TVLARS, None),
            "floor": (_TVLARS, 0.0),
        },
    ),
}
"""By section: what names the component, and the keys that versions up to 0.1 wrote for all of them: which components
read them, and what stood there for the others."""


def migrated(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a job that a run folder holds as this version writes them.

    Versions without `partition.reshuffle` dealt all samples anew over all clients under `kind: iid`; they had one loss,
    without a name, and compression to fp16 was a key of `gradients`.

    Args:
        job: from config.yaml, a log or a provenance; whatever its values are.
    """
    found = _with_section(dict(job))
    partition = job.get("partition")
    if isinstance(partition, Mapping) and partition.get("kind") == "iid" and "reshuffle" not in partition:
        found["partition"] = {**partition, "reshuffle": True}
    loss = job.get("loss")
    if isinstance(loss, Mapping):
        found["loss"] = {"name": _UNNAMED_LOSS, **loss}
    for section, (naming, keys) in _FORMER.items():
        values = found.get(section)
        # Those versions had no parts of the user's own, whose keys are their own.
        if isinstance(values, Mapping) and naming in values and parse_name(values[naming]) is None:
            name = values[naming]
            found[section] = {key: value for key, value in values.items() if key not in keys or name in keys[key][0]}
    return found


def with_compression(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a job with what `gradients.compression` said, none or fp16, as a section of its own.

    Raises:
        ValueError: it says something else, or there is a section, too.
    """
    section, gradients = job.get("compression"), job.get("gradients")
    if isinstance(section, Mapping) and section.get("kind") == _NONE and len(section) > 1:
        others = ", ".join(shown(key) for key in section if key != "kind")
        raise ValueError(f"compression: kind none goes without {others}")
    found = dict(job)
    if section is None or (isinstance(section, Mapping) and section.get("kind") == _NONE):
        found.pop("compression", None)
    if isinstance(gradients, Mapping) and "compression" in gradients:
        former = gradients["compression"]
        if former not in (_NONE, "fp16"):
            raise ValueError(f"gradients.compression: should be none or fp16, not {shown(former)}; see 'compression'")
        if former == "fp16" and "compression" in found:
            raise ValueError("gradients.compression: goes without a section 'compression', which it stands for")
        found = _with_section(found)
    return found


def _with_section(job: dict[str, Any]) -> dict[str, Any]:
    """The same without complaints: what cannot be understood stays."""
    gradients = job.get("gradients")
    if not isinstance(gradients, Mapping) or gradients.get("compression") not in (_NONE, "fp16"):
        return job
    rest = {key: value for key, value in gradients.items() if key != "compression"}
    section = {"compression": {"kind": "fp16"}} if gradients["compression"] == "fp16" else {}
    return {**section, **job, "gradients": rest}


def with_uncompressed(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job with the key `gradients.compression` that versions up to 0.1 had: hashes cover it."""
    return {**job, "gradients": {**job["gradients"], "compression": _NONE}}


def with_unnamed_loss(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job without the name of the one loss that versions up to 0.1 had: hashes do not cover it."""
    found = dict(job)
    if found["loss"].get("name") == _UNNAMED_LOSS:
        found["loss"] = {key: value for key, value in found["loss"].items() if key != "name"}
    return found


def as_former(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a job as version 0.1 wrote them; the reverse of `migrated`."""
    found = with_uncompressed(with_unnamed_loss(job))
    for section, (_, keys) in _FORMER.items():
        found[section] = {key: default for key, (_, default) in keys.items()} | dict(found[section])
    # What it called i.i.d. was reshuffled; fixed shards it did not have.
    if found["partition"].get("reshuffle") is not False:
        found["partition"].pop("reshuffle", None)
    return found
