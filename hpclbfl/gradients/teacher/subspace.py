"""The step-up function of Eq. 6 by direction: factor 1 in the critical directions of the gradient, X elsewhere.

    A(G) = X G - (X - 1) V^T (V V^T)^-1 V G

The rows of V [r, P] are the leading right singular vectors of the clients' residuals, from the K x K matrix of their
inner products; gradient noise is of low rank, and its first directions hold those of the Hessian's largest eigenvalues.
Each is compressed again to rank rho by layer, so that a step takes 2 r rho products with a layer; this leaves them not
quite orthonormal. X stays out of the values as the gradient's lazy factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpclbfl.config.components import TEACHERS
from hpclbfl.config.sections.base import PositiveFloat, PositiveInt
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.teacher import kind
from hpclbfl.gradients.teacher.factored import (
    Entries,
    FactoredConfig,
    ResidualMemory,
    Residuals,
    captured,
    pseudo_inverse,
)
from hpclbfl.gradients.teacher.factors import Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
    from hpclbfl.gradients.learning import ClientGradients
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

SHARE = "teacher share"
"""Of the gradient's squared norm in the critical directions."""


class SubspaceConfig(FactoredConfig):
    """Multiplies the gradient by X but for the leading directions of its noise, in which it stays as it is."""

    factor: PositiveFloat
    """X; 1 changes nothing."""
    rank: PositiveInt = 10
    """r: critical directions, fewer where there are fewer residuals."""


@checkpointed
@dataclass(frozen=True)
class Subspace:
    """The residuals of a training, and their leading directions."""

    entries: Entries
    directions: Rows
    """r; zeros from the number of residuals on."""
    inverse: Tensor
    """[r, r] (V V^T)^-1, float64."""


@TEACHERS.register("subspace", SubspaceConfig)
class SubspaceTeacher(ResidualMemory):
    """See the module; a `hpclbfl.gradients.teacher.kind.Kind`."""

    def __init__(self, config: SubspaceConfig) -> None:
        super().__init__(config)
        self._factor, self._rank = config.factor, config.rank

    def init(self, layout: Layout, num_clients: int) -> Subspace:
        """No directions."""
        entries = self.empty(layout, num_clients)
        zeros = torch.zeros(self._rank, self._rank, dtype=torch.float64, device=layout.device)
        return Subspace(entries, self.factors.zeros(self._rank), zeros)

    def test(self, lesson: Residuals, state: Subspace, ctx: Context) -> Metrics:
        """How far fresh residuals lie in the critical directions."""
        if not state.entries.count:
            return {}
        inner = self.factors.gram(state.directions, state.directions)
        cross = self.factors.gram(lesson.rows, state.directions)
        share = captured(cross, inner, lesson.gram, torch.finfo(lesson.rows.whole.dtype).eps)
        return {kind.ERROR: 1 - share, kind.COSINE: share.clamp(min=0).sqrt()}

    def learn(
        self, lesson: Residuals, state: Subspace, begins: bool, found: ClientGradients, ctx: Context
    ) -> tuple[Subspace, Metrics]:
        """Remember the residuals, and find their leading directions."""
        entries = self.remember(lesson, state.entries, begins, found)
        values, vectors = torch.linalg.eigh(entries.gram[: entries.count, : entries.count])
        weights = entries.gram.new_zeros(self._rank, len(entries.gram))
        eps = torch.finfo(entries.rows.whole.dtype).eps
        for row in range(min(self._rank, entries.count)):
            value = values[-1 - row]
            if value > 1e3 * eps * values[-1]:
                weights[row, : entries.count] = vectors[:, -1 - row] / value.sqrt()
        combined = self.factors.combine(entries.rows, weights)
        directions = Rows(found.from_first(combined.thin), found.from_first(combined.whole))
        inverse = pseudo_inverse(self.factors.gram(directions, directions), eps)
        return Subspace(entries, directions, found.from_first(inverse)), {kind.ENERGY: entries.energy}

    def apply(self, gradient: Gradient, state: Subspace, ctx: Context, change: Tensor) -> tuple[Gradient, Metrics]:
        """Subtract (1 - 1 / X) of the gradient's part in the critical directions, and multiply by X."""
        if self._factor == 1 or not state.entries.count:
            return gradient, {}
        products = self.factors.products(gradient, state.directions)
        within = state.inverse @ products
        share = within @ products / gradient.sq_norm
        factor = torch.full_like(share, self._factor)
        gradient = gradient.edited()
        self.factors.add_(gradient, state.directions, within * (1 / self._factor - 1))
        return gradient.scaled(factor), {kind.NOISE: (self._factor - 1) ** 2 * (1 - share).clamp(min=0), SHARE: share}
