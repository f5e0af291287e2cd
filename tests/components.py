"""Configs of components, as a job gives them, and the least of a split that a partition looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpclbfl.config.component_configs import component_config
from hpclbfl.core.registry import Registry
from hpclbfl.data.packed import IntArray


def config_of(registry: Registry[Any], **keys: Any) -> Any:
    """The validated config of the component that the keys name."""
    return component_config(registry, keys, "a test", registry.what)


@dataclass(frozen=True)
class Marked:
    """Samples that are nothing but labels and groups."""

    labels: IntArray | None
    groups: IntArray | None = None

    def __len__(self) -> int:
        marks = self.groups if self.labels is None else self.labels
        return 0 if marks is None else len(marks)

    def subset(self, indices: IntArray) -> Marked:
        labels, groups = (None if marks is None else marks[indices] for marks in (self.labels, self.groups))
        return Marked(labels, groups)

    @staticmethod
    def fingerprint(classes: tuple[str, ...], splits: Any) -> str:
        return ""
