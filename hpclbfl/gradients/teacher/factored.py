"""What the kinds have in common that learn from compressed residuals.

The residual of a client is r_c = (g_c - G) / sqrt(1 / b_c - 1 / B): its covariance is Sigma, that of one sample's
gradient, whatever b_c is. Ranks encode the residuals of their clients (`factors`) into rows, which are zero elsewhere,
and add them up: a sum with zeros is exact, and all ranks hold the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import model_validator

from hpclbfl.config.sections import TeacherConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import Context
from hpclbfl.gradients.teacher.factors import Factors, Rows
from hpclbfl.gradients.teacher.kind import taking_part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Layout
    from hpclbfl.gradients.learning import ClientGradients
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

_CHOICE_STREAM = 8


class FactoredConfig(TeacherConfig):
    """What teachers have in common that learn from compressed residuals."""

    memory: PositiveInt = 64
    """K: residuals of a training that are remembered, at most; of more clients some are drawn."""
    rho: PositiveInt = 2
    """Rank to which each layer's part of a residual is compressed."""

    @model_validator(mode="after")
    def _room(self) -> FactoredConfig:
        if self.memory < 2 * self.train_steps:
            raise ValueError(
                f"'memory' {self.memory} has no room for two clients in each of {self.train_steps} 'train_steps'"
            )
        return self


@checkpointed
@dataclass(frozen=True)
class Entries:
    """The residuals of a training."""

    rows: Rows
    """K of them; those from `count` on are of no meaning."""
    gram: Tensor
    """[K, K] inner products of the encoded residuals, float64."""
    sq_norms: Tensor
    """[K] squared norms before they were encoded, float64."""
    count: int = 0

    @property
    def encoded_trace(self) -> Tensor:
        """tr_D: mean squared norm of the encoded residuals, 0-d."""
        return self.gram.diagonal()[: self.count].mean()

    @property
    def trace(self) -> Tensor:
        """tr(Sigma) as the training's residuals have it, 0-d."""
        return self.sq_norms[: self.count].mean()

    @property
    def energy(self) -> Tensor:
        """Share of the squared norm that the encoding keeps, 0-d."""
        return self.encoded_trace / self.trace


@dataclass(frozen=True)
class Residuals:
    """Those of a training step, equal on all ranks."""

    rows: Rows
    """n"""
    gram: Tensor
    """[n, n]"""
    sq_norms: Tensor
    """[n]"""


class ResidualMemory:
    """Collects residuals, and remembers them.

    Args:
        config: see it.
    """

    def __init__(self, config: FactoredConfig) -> None:
        self._config = config
        self.factors: Factors

    def empty(self, layout: Layout, num_clients: int) -> Entries:
        """Room for as many residuals as a training has."""
        self.factors = Factors(layout, self._config.rho)
        room = min(self._config.memory, num_clients * self._config.train_steps)
        zeros = torch.zeros(room, room, dtype=torch.float64, device=layout.device)
        return Entries(self.factors.zeros(room), zeros, zeros[0].clone())

    def collect(self, found: ClientGradients, ctx: Context, change: Tensor) -> Residuals | None:
        """A step's residuals; None of a gradient that is not finite, and where fewer than two clients have samples."""
        most = self._config.memory // self._config.train_steps
        clients = taking_part(found.counts, most, (ctx.seed, _CHOICE_STREAM, ctx.step))
        if len(clients) < 2 or not bool(torch.isfinite(found.mean.sq_norm)):
            return None
        rows, rho = self.factors.zeros(len(clients)), self.factors.rho
        sq_norms = torch.zeros(len(clients), dtype=torch.float64, device=rows.whole.device)
        largest = max(tensor.numel() for tensor in found.mean.tensors)
        space = rows.whole.new_empty(largest)
        for place, client in enumerate(clients):
            if client in found.own:
                share = 1.0 / found.counts[client] - 1.0 / found.counts.sum()
                one = rows.cut(place, place + 1, rho)
                differences = _differences(found, client, space)
                sq_norms[place] = self.factors.encode(differences, one, float(share**-0.5))
        for part in (rows.thin, rows.whole, sq_norms):
            if part.numel():
                found.sum_(part)
        return Residuals(rows, found.from_first(self.factors.gram(rows, rows)), sq_norms)

    def remember(self, lesson: Residuals, entries: Entries, begins: bool, found: ClientGradients) -> Entries:
        """Add a step's residuals, or begin with them; the tensors of `entries` are written to."""
        rho, begin = self.factors.rho, 0 if begins else entries.count
        end = min(begin + len(lesson.sq_norms), len(entries.sq_norms))
        new, place = lesson.rows.cut(0, end - begin, rho), entries.rows.cut(begin, end, rho)
        place.thin.copy_(new.thin)
        place.whole.copy_(new.whole)
        entries.sq_norms[begin:end] = lesson.sq_norms[: end - begin]
        cross = found.from_first(self.factors.gram(new, entries.rows.cut(0, end, rho)))
        entries.gram[begin:end, :end], entries.gram[:end, begin:end] = cross, cross.T
        return Entries(entries.rows, entries.gram, entries.sq_norms, end)

    def has_drifted(self, error: float, reference: float) -> bool:
        """Whether the share of fresh residuals that is predicted has halved."""
        return 1 - error < (1 - reference) / 2


def _differences(found: ClientGradients, client: int, space: Tensor) -> Iterator[Tensor]:
    """g_c - G by layer, one after the other in the same place: fresh memory costs more than the subtraction."""
    for own, mean in zip(found.own[client], found.mean.tensors, strict=True):
        place = space[: mean.numel()].view(mean.shape)
        yield torch.neg(mean, out=place) if own is None else torch.sub(own, mean, out=place)


def captured(cross: Tensor, inner: Tensor, own: Tensor, eps: float) -> Tensor:
    """Share of vectors' squared norms that lies in the span of others, 0-d.

    Args:
        cross: [n, K] inner products of both.
        inner: [K, K] of the others.
        own: [n, n] of the vectors.
        eps: relative rounding of the inner products.
    """
    inverse = pseudo_inverse(inner, eps)
    return ((cross @ inverse) * cross).sum() / own.trace()


def pseudo_inverse(gram: Tensor, eps: float) -> Tensor:
    """Of a symmetric matrix without negative eigenvalues but for rounding."""
    found: Tensor = torch.linalg.pinv(gram, rtol=1e3 * eps, hermitian=True)
    return found
