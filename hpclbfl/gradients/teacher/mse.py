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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpclbfl.config.components import TEACHERS
from hpclbfl.config.sections import TeacherConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.teacher import kind

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
    from hpclbfl.gradients.learning import ClientGradients
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

BLOCK, HIDDEN, CODE, FEATURES = 64, 32, 16, 3
AT_ONCE = 2048
"""Blocks that go through the net together, as a processor's cache holds."""
SAMPLED = 256
"""Blocks of each client in a training step, at most."""
MOST_CLIENTS = 64
"""In a training step."""
ITERATIONS, RATE, LOOK_EVERY, PATIENCE = 200, 3e-3, 10, 3
"""Of Adam in each training step, on all blocks at once; it ends after as many looks at the quarter of the pairs that is
held out without an improvement."""
_INITIAL_STREAM, _BLOCK_STREAM, _CHOICE_STREAM = 10, 11, 12


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


@checkpointed
@dataclass(frozen=True)
class Net:
    """The encoder-decoder."""

    weights: tuple[Tensor, ...]
    """s, 0-d; [BLOCK + FEATURES, HIDDEN]; [HIDDEN, CODE]; [CODE + FEATURES, HIDDEN]; [HIDDEN, BLOCK]."""
    lessons: int = 0
    """That it has been trained on; 0: it is the identity."""

    def __call__(self, blocks: Tensor, features: Tensor) -> Tensor:
        """[N, BLOCK] from [N, BLOCK] and [N or 1, FEATURES]."""
        skip, encode, code, decode, out = self.weights
        hidden = torch.tanh(torch.addmm(features @ encode[BLOCK:], blocks, encode[:BLOCK]))
        back = torch.tanh(torch.addmm(features @ decode[CODE:], hidden @ code, decode[:CODE]))
        return torch.addmm(skip * blocks, back, out)


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
        held_out = torch.arange(len(lesson), device=lesson.device) % 4 == 3
        fit, check = (part.split([BLOCK, BLOCK, FEATURES], 1) for part in (lesson[~held_out], lesson[held_out]))
        net = self._identity(ctx.seed) if begins else state
        skip = (fit[0] * fit[1]).sum() / _not_zero(fit[0].square().sum())
        skip = (net.weights[0] * net.lessons + skip) / (net.lessons + 1)
        best = _fitted((skip, *net.weights[1:]), fit, check)
        return Net(tuple(found.from_first(w.clone()) for w in best), net.lessons + 1), {}

    def has_drifted(self, error: float, reference: float) -> bool:
        """Whether the error has doubled."""
        return error > 2 * reference

    def apply(self, gradient: Gradient, state: Net, ctx: Context, change: Tensor) -> tuple[Gradient, Metrics]:
        """Block after block of each layer."""
        if not state.lessons:
            return gradient, {}
        ratio = math.log(ctx.batch_size / self._small) if ctx.batch_size else 0.0
        gradient = gradient.edited()
        moved = torch.zeros((), dtype=torch.float64, device=change.device)
        for tensor in gradient.tensors:
            flat = tensor.view(-1)
            size = flat.square().mean().sqrt()
            features = self._features(size, change, ratio).unsqueeze(0)
            for part in flat.split(AT_ONCE * BLOCK):
                blocks = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
                found = (state(blocks / _not_zero(size), features) * size).view(-1)[: len(part)]
                moved += (found - part).square().sum()
                part.copy_(found)
        return gradient, {kind.NOISE: moved / gradient.measured.sq_norm}

    def _pairs(
        self, found: ClientGradients, client: int, total: int, chosen: NDArray[np.int64], change: Tensor
    ) -> Tensor:
        """[N, 2 BLOCK + FEATURES] of a client's blocks."""
        layout, size = self._layout, int(found.counts[client])
        own = [
            mean.new_zeros(mean.shape) if value is None else value
            for value, mean in zip(found.own[client], found.mean.tensors, strict=True)
        ]
        ratio = math.log((total - size) / size)
        others, roots = [], []
        for value, mean in zip(own, found.mean.tensors, strict=True):
            others.append(((total * mean - size * value) / (total - size)).reshape(-1))
            roots.append(others[-1].square().mean().sqrt())
        rows = self._zeros(len(chosen), 2 * BLOCK + FEATURES)
        for row, number in zip(rows, chosen, strict=True):
            layer = int(self._layers[number])
            begin = int(self._begins[number]) - layout.slices[layer].start
            root = roots[layer]
            for place, values in ((0, others[layer]), (BLOCK, own[layer].reshape(-1))):
                part = values[begin : begin + BLOCK]
                row[place : place + len(part)] = part / _not_zero(root)
            row[2 * BLOCK :] = self._features(root, change, ratio)
        return rows

    def _features(self, size: Tensor, change: Tensor, ratio: float) -> Tensor:
        """[FEATURES], of order 1."""
        parts = (_not_zero(size).log() / 10, change.nan_to_num(0.0).clamp(max=2.0), torch.full_like(change, ratio / 5))
        return torch.stack([part.to(self._layout.device, self._layout.dtype) for part in parts])

    def _identity(self, seed: int) -> Net:
        """The encoder is drawn, what the decoder adds is 0."""
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_INITIAL_STREAM,))))
        shapes = ((BLOCK + FEATURES, HIDDEN), (HIDDEN, CODE), (CODE + FEATURES, HIDDEN))
        drawn = [torch.from_numpy(draw.standard_normal(s) / math.sqrt(s[0])).to(self._zeros(0)) for s in shapes]
        return Net((self._zeros() + 1, *drawn, self._zeros(HIDDEN, BLOCK)))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._layout.dtype, device=self._layout.device)


def _fitted(start: tuple[Tensor, ...], fit: tuple[Tensor, ...], check: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Weights that predict best what is held out, among those at the start and on the way.

    Args:
        start: of a `Net`; s stays as it is.
        fit, check: inputs, targets and features.
    """

    def error(weights: tuple[Tensor, ...], pairs: tuple[Tensor, ...]) -> Tensor:
        inputs, targets, features = pairs
        return (Net(weights)(inputs, features) - targets).square().mean()

    moving = [w.detach().clone().requires_grad_() for w in start[1:]]
    optimizer = torch.optim.Adam(moving, lr=RATE)
    best, since = start, 0
    least = error(start, check) if len(check[0]) else None
    for iteration in range(1, ITERATIONS + 1):
        with torch.enable_grad():
            optimizer.zero_grad()
            error((start[0], *moving), fit).backward()
        optimizer.step()
        if least is None or iteration % LOOK_EVERY:
            continue
        now = (start[0], *(w.detach() for w in moving))
        reached = error(now, check)
        if reached < least:
            best, least = tuple(w.clone() for w in now), reached
            since = 0
        else:
            since += 1
            if since == PATIENCE:
                break
    return best


def taking_part(found: ClientGradients, ctx: Context) -> list[int]:
    """Clients of a training step, see `kind.taking_part`."""
    return kind.taking_part(found.counts, MOST_CLIENTS, (ctx.seed, _CHOICE_STREAM, ctx.step))


def _not_zero(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)
