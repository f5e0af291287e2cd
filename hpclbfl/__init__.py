"""Large-batch federated and data-parallel training experiments on HPC clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpclbfl.gradients.attach import GradientScaler as GradientScaler

__version__ = "0.1.0"
__all__ = ["GradientScaler", "__version__"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # torch takes seconds to load, and most commands do without it.
        if name == "GradientScaler":
            from hpclbfl.gradients.attach import GradientScaler

            return GradientScaler
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
