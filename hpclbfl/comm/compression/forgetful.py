"""What reductions have in common that remember nothing from one step to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Forgetful:
    """Base of reductions without residuals, whose random numbers are keyed."""

    def residual(self, client: int) -> Tensor | None:
        """None."""
        return None

    def add_residual(self, client: int, saved: Tensor) -> None:
        """Nothing."""

    def shared_state(self) -> dict[str, Any]:
        """None."""
        return {}

    def load_shared_state(self, found: dict[str, Any]) -> None:
        """Nothing."""
