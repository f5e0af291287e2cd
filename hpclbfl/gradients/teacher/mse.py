"""The teacher of the paper's text: an encoder-decoder trained by squared error from large batches to small ones.

Of each client it learns the pair (B G - b_c g_c) / (B - b_c) -> g_c, the gradient of all others to the client's own.
One small net is shared by blocks of BLOCK numbers of every layer: its inputs are a block, divided by the root mean
square of the layer, and features (logarithm of that root mean square, Eq. 8's change, log b_large / b_small);

    y = s x + decoder(encoder(x, features))

s is fitted by least squares, the rest by Adam until pairs that are held out become worse. Each block is of one client
alone: from pairs of several, whose inputs have the others' targets in them, the net would learn them by heart.

What it can learn is no noise: E[G_small | G] = G where the small batch is a part of the large one, and where the two
are independent, as here, the smallest error is that of a shrunken gradient, a x with
a = |g|^2 / (|g|^2 + tr Sigma / b_large). It is here so that the paper's conjecture can be tested.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hpclbfl.config.components import TEACHERS
from hpclbfl.config.sections import TeacherConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.teacher import kind
from hpclbfl.gradients.teacher.net import BLOCK, FEATURES, Net, identity, not_zero

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
    from hpclbfl.gradients.learning import ClientGradients
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

AT_ONCE = 2048
"""Blocks that go through the net together, as a processor's cache holds."""
SAMPLED = 256
"""Blocks of each client in a training step, at most."""
MOST_CLIENTS = 64
"""In a training step."""
_BLOCK_STREAM, _CHOICE_STREAM = 11, 12


class MseConfig(TeacherConfig):
    """A small encoder-decoder, trained by squared error to predict a client's gradient from that of all others.

    This is the paper's text; it learns to leave the gradient as it is, or to shrink it, not a small batch's noise.
    """

    small_batch: PositiveInt
    """b_small, samples: a feature of the net, beside B."""

    @property
    def imitated_batch(self) -> int:
        """See `TeacherConfig`."""
        return self.small_batch


@TEACHERS.register("mse", MseConfig)
class MseTeacher:
    """See the module; a `hpclbfl.gradients.teacher.kind.Kind`."""

    needs_change = True

    def __init__(self, config: MseConfig) -> None:
        self._small = config.small_batch
        self._layout: Layout
        self._begins: NDArray[np.int64]
        """Of every block of a flat gradient."""
        self._layers: NDArray[np.int64]
        """In which it lies."""

    def init(self, layout: Layout, num_clients: int) -> Net:
        """The identity."""
        self._layout = layout
        slices = sorted(((at.start, at.stop, layer) for layer, at in enumerate(layout.slices)))
        begins = [np.arange(start, stop, BLOCK) for start, stop, _ in slices]
        self._begins = np.concatenate(begins)
        self._layers = np.repeat([layer for _, _, layer in slices], [len(part) for part in begins])
        return self._identity(0)

    def collect(self, found: ClientGradients, ctx: Context, change: Tensor) -> Tensor | None:
        """[N, 2 BLOCK + FEATURES]: inputs, targets and features of some blocks of each client."""
        clients = taking_part(found, ctx)
        if len(clients) < 2 or not bool(torch.isfinite(found.mean.sq_norm)):
            return None
        count = max(1, min(SAMPLED, len(self._begins) // len(clients)))
        rows = self._zeros(len(clients), count, 2 * BLOCK + FEATURES)
        total = int(found.counts.sum())
        key = np.random.SeedSequence(ctx.seed, spawn_key=(_BLOCK_STREAM, ctx.step))
        order = np.random.Generator(np.random.Philox(key)).permutation(len(self._begins))
        for place, client in enumerate(clients):
            if client in found.own:
                chosen = order[place * count : (place + 1) * count]
                rows[place, : len(chosen)] = self._pairs(found, client, total, chosen, change)
        found.sum_(rows)
        return rows.flatten(0, 1)

    def test(self, lesson: Tensor, state: Net, ctx: Context) -> Metrics:
        """Prediction and target of each pair."""
        if not state.lessons:
            return {}
        inputs, targets, features = lesson.split([BLOCK, BLOCK, FEATURES], 1)
        predicted = state(inputs, features)
        sizes = [(x * y).sum(dtype=torch.float64) for x, y in ((predicted, predicted), (targets, targets))]
        return {
            kind.ERROR: (predicted - targets).square().sum(dtype=torch.float64) / sizes[1],
            kind.NORM_RATIO: (sizes[0] / sizes[1]).sqrt(),
            kind.COSINE: (predicted * targets).sum(dtype=torch.float64) / (sizes[0] * sizes[1]).sqrt(),
        }

    def learn(
        self, lesson: Tensor, state: Net, begins: bool, found: ClientGradients, ctx: Context
    ) -> tuple[Net, Metrics]:
        """Fit the net to the pairs; rank 0's fit is taken."""
        net = (self._identity(ctx.seed) if begins else state).fitted(lesson)
        return Net(tuple(found.from_first(w.clone()) for w in net.weights), net.lessons), {}

    def has_drifted(self, error: float, reference: float) -> bool:
        """Whether the error has doubled."""
        return error > 2 * reference

    def apply(self, gradient: Gradient, state: Net, ctx: Context, change: Tensor) -> tuple[Gradient, Metrics]:
        """Block after block of each layer."""
        if not state.lessons:
            return gradient, {}
        ratio = math.log(ctx.batch_size / self._small) if ctx.batch_size else 0.0
        gradient = gradient.edited()
        moved = torch.zeros_like(gradient.measured.sq_norm)
        for tensor in gradient.tensors:
            flat = tensor.view(-1)
            size = flat.square().mean().sqrt()
            features = self._features(size.reshape(1), change, ratio)
            for part in flat.split(AT_ONCE * BLOCK):
                blocks = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
                found = (state(blocks / not_zero(size), features) * size).view(-1)[: len(part)]
                moved += (found - part).square().sum()
                part.copy_(found)
        return gradient, {kind.NOISE: moved / gradient.measured.sq_norm}

    def _pairs(
        self, found: ClientGradients, client: int, total: int, chosen: NDArray[np.int64], change: Tensor
    ) -> Tensor:
        """[N, 2 BLOCK + FEATURES] of a client's blocks."""
        layout, size = self._layout, int(found.counts[client])
        own = self._zeros(layout.size)
        for value, at in zip(found.own[client], layout.slices, strict=True):
            if value is not None:
                own[at] = value.reshape(-1)
        others = (total * found.mean.flat - size * own) / (total - size)
        # [N, BLOCK]: where the blocks' numbers lie; a layer's last block may be shorter.
        places = self._begins[chosen][:, None] + np.arange(BLOCK)
        stops = np.array([at.stop for at in layout.slices])[self._layers[chosen]]
        is_there = torch.from_numpy(places < stops[:, None]).to(layout.device)
        index = torch.from_numpy(np.minimum(places, layout.size - 1)).to(layout.device)
        layers = torch.from_numpy(self._layers[chosen]).to(layout.device)
        sizes = torch.stack([others[at].square().mean().sqrt() for at in layout.slices])[layers]
        rows = self._zeros(len(chosen), 2 * BLOCK + FEATURES)
        for place, values in ((0, others), (BLOCK, own)):
            rows[:, place : place + BLOCK] = values[index] * is_there / not_zero(sizes).unsqueeze(1)
        rows[:, 2 * BLOCK :] = self._features(sizes, change, math.log((total - size) / size))
        return rows

    def _features(self, sizes: Tensor, change: Tensor, ratio: float) -> Tensor:
        """[N, FEATURES], of order 1, from [N] root mean squares."""
        found = sizes.new_empty(len(sizes), FEATURES)
        found[:, 0] = not_zero(sizes).log() / 10
        found[:, 1] = change.nan_to_num(0.0).clamp(max=2.0)
        found[:, 2] = ratio / 5
        return found

    def _identity(self, seed: int) -> Net:
        return identity(seed, self._zeros(0))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._layout.dtype, device=self._layout.device)


def taking_part(found: ClientGradients, ctx: Context) -> list[int]:
    """Clients of a training step, see `kind.taking_part`."""
    return kind.taking_part(found.counts, MOST_CLIENTS, (ctx.seed, _CHOICE_STREAM, ctx.step))
