"""Large-batch federated and data-parallel training experiments on HPC clusters."""

from __future__ import annotations

# Not from typing: under `python -m hpclbfl` a module imported here would be looked for in the working folder first.
TYPE_CHECKING = False

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
