"""The teacher that adds a small batch's noise: a linear encoder of residuals, and a stochastic decoder.

In each step m of the K residuals that are remembered are drawn, and with one normal number xi_k for all layers of each

    A(G)_l = G_l + c sqrt(tr Sigma_t / tr_D) m^(-1/2) sum_k xi_k P_kl Q_kl^T,    c^2 = 1 / b_small - 1 / B

tr Sigma_t is the running estimate of the noise scale, tr_D the mean squared norm of what is remembered: the magnitude
follows the training, while the directions are those of the last training of the teacher. The noise has mean 0 and the
covariance c^2 tr Sigma_t / tr_D D^T D / K for any m. While clients train alone b_c stands for B, and tr Sigma is that
of the last training. A(G) then has the mean and nearly the covariance of a gradient over b_small samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hpclbfl.config.components import TEACHERS
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.teacher import kind
from hpclbfl.gradients.teacher.factored import (
    Entries,
    FactoredConfig,
    ResidualMemory,
    Residuals,
    captured,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
    from hpclbfl.gradients.learning import ClientGradients
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

LEADING = 5
"""Directions along which the variance is compared."""
_DRAW_STREAM = 9


class ResidualConfig(FactoredConfig):
    """Adds noise of the covariance that a smaller batch's gradient has, drawn from residuals of the clients.

    One needs at least two clients. Shards that are not i.i.d. count as noise, too.
    """

    small_batch: PositiveInt
    """b_small, samples: the batch whose noise the gradient shall have; below B, or below each b_c where clients train
    alone."""
    draws: PositiveInt = 8
    """m: residuals that are drawn in a step."""

    needs_noise: ClassVar[bool] = True

    @property
    def imitated_batch(self) -> int:
        """See `TeacherConfig`."""
        return self.small_batch


@TEACHERS.register("residual", ResidualConfig)
class ResidualTeacher(ResidualMemory):
    """See the module; a `hpclbfl.gradients.teacher.kind.Kind`."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self._small, self._draws = config.small_batch, config.draws

    def init(self, layout: Layout, num_clients: int) -> Entries:
        """No residuals."""
        return self.empty(layout, num_clients)

    def test(self, lesson: Residuals, state: Entries, ctx: Context) -> Metrics:
        """How far fresh residuals lie in the span of those remembered, and how large the noise is beside them."""
        if not state.count:
            return {}
        cross = self.factors.gram(lesson.rows, state.rows.cut(0, state.count, self.factors.rho))
        inner = state.gram[: state.count, : state.count]
        share = captured(cross, inner, lesson.gram, torch.finfo(lesson.rows.whole.dtype).eps)
        trace = _trace(state, ctx)
        found = {
            kind.ERROR: 1 - share,
            kind.COSINE: share.clamp(min=0).sqrt(),
            kind.NORM_RATIO: (trace / lesson.sq_norms.mean()).sqrt(),
        }
        if len(cross) >= 4:
            found[kind.VARIANCE] = trace / state.encoded_trace * along_leading(lesson.gram, cross)
        return found

    def learn(
        self, lesson: Residuals, state: Entries, begins: bool, found: ClientGradients, ctx: Context
    ) -> tuple[Entries, Metrics]:
        """Remember the residuals."""
        entries = self.remember(lesson, state, begins, found)
        return entries, {kind.ENERGY: entries.energy}

    def apply(self, gradient: Gradient, state: Entries, ctx: Context, change: Tensor) -> tuple[Gradient, Metrics]:
        """Add the noise; none where B is no larger than b_small."""
        variance = 1.0 / self._small - 1.0 / ctx.batch_size if ctx.batch_size else 0.0
        if variance <= 0 or not state.count:
            return gradient, {}
        which, draws = self._drawn(state.count, ctx)
        ratio = _trace(state, ctx) / state.encoded_trace
        # 0 / 0 where all clients had the same gradient.
        factor = (variance / len(which) * ratio.nan_to_num(0.0, 0.0, 0.0)).sqrt()
        weights = factor * torch.from_numpy(draws).to(factor.device)
        inner = state.gram[which][:, which]
        metrics = {kind.NOISE: weights @ inner @ weights / gradient.measured.sq_norm}
        if gradient.factor is not None:
            # The noise is that of the gradient as a whole, whatever factor waits.
            metrics[kind.NOISE] = metrics[kind.NOISE] / gradient.factor**2
            weights = weights / gradient.factor
        gradient = gradient.edited()
        self.factors.add_(gradient, self.factors.pick(state.rows, which), weights)
        return gradient, metrics

    def _drawn(self, count: int, ctx: Context) -> tuple[list[int], np.ndarray]:
        """Which entries, and [m] xi; the same on all ranks."""
        key = np.random.SeedSequence(ctx.seed, spawn_key=(_DRAW_STREAM, ctx.step, ctx.client + 1))
        generator = np.random.Generator(np.random.Philox(key))
        which = generator.permutation(count)[: self._draws].tolist()
        return which, generator.standard_normal(len(which))


def _trace(state: Entries, ctx: Context) -> Tensor:
    """tr(Sigma) in force, 0-d; an estimate that is negative or not known is none."""
    trace = state.trace if ctx.noise is None else ctx.noise.tr_sigma.to(state.gram.device)
    return torch.nan_to_num(trace, 0.0, 0.0, 0.0).clamp(min=0)


def along_leading(gram: Tensor, cross: Tensor) -> Tensor:
    """Variance of remembered residuals along the leading directions of half of the fresh ones, relative to the others'.

    Args:
        gram: [n, n] inner products of the fresh ones, n at least 4.
        cross: [n, K] with those remembered.

    Returns:
        0-d; the directions, LEADING at most, are principal components of every second of the fresh ones.
    """
    half = gram[::2, ::2]
    values, vectors = torch.linalg.eigh(half)
    count = min(LEADING, len(half) - 1)
    # [half, count]: coefficients of unit vectors.
    leading = vectors[:, -count:] / values[-count:].clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    ours = (leading.T @ cross[::2]).square().mean(1).sum()
    ratio: Tensor = ours / (leading.T @ gram[::2, 1::2]).square().mean(1).sum()
    return ratio
