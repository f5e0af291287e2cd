"""Configs of components, as a job gives them."""

from __future__ import annotations

from typing import Any

from hpclbfl.config.components import component_config
from hpclbfl.core.registry import Registry


def config_of(registry: Registry[Any], **keys: Any) -> Any:
    """The validated config of the component that the keys name."""
    return component_config(registry, keys, "a test", registry.what)
