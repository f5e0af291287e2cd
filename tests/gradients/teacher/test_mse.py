"""The teacher of the paper's text: what it learns from, and that it learns to shrink the gradient."""

from __future__ import annotations

import math

import pytest
import torch

from hpclbfl.gradients import Context
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.teacher.net import BLOCK
from tests.gradients.teacher.worked import applied, found_of, layout_of, taught

CONTEXT = Context(0, 3)
MSE = {"kind": "mse", "small_batch": 1}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_pairs_by_hand() -> None:
    """Of each client: the mean gradient of all others' samples, and its own, both in units of the former's size."""
    sizes, layout = [1, 3, 4], layout_of((2, 3), (4,), (5,), (7,))
    flats = list(randn(3, 22))
    found = found_of(layout, flats, sizes)
    teacher, state, _ = taught(layout, found, **MSE)
    rows = teacher.collect(found, CONTEXT, torch.tensor(0.25).double())
    # Four blocks, of which each of three clients has one.
    assert rows.shape == (3, 2 * BLOCK + 3) and state.lessons == 1
    for client in range(3):
        others = sum(sizes[c] * flats[c] for c in range(3) if c != client) / (8 - sizes[client])
        for row in rows[client : client + 1]:
            layer = next(
                i for i, shape in enumerate(layout.shapes) if math.prod(shape) == int((row[:BLOCK] != 0).sum())
            )
            at = layout.slices[layer]
            size = others[at].square().mean().sqrt()
            count = at.stop - at.start
            torch.testing.assert_close(row[:count], others[at] / size)
            torch.testing.assert_close(row[BLOCK : BLOCK + count], flats[client][at] / size)
            ratio = math.log((8 - sizes[client]) / sizes[client])
            torch.testing.assert_close(row[-3:], torch.tensor([size.log() / 10, 0.25, ratio / 5]).double())
        # g_c - (the others' mean) = B / (B - b_c) (g_c - G); for n equal batches n / (n - 1).
        torch.testing.assert_close(flats[client] - others, 8 / (8 - sizes[client]) * (flats[client] - found.mean.flat))


def test_it_learns_to_shrink_where_the_batches_are_independent() -> None:
    """|g|^2 = 1, tr Sigma = 31 and 31 samples on the large side: E<x, y> / E|x|^2 = 1 / (1 + 31 / 31) = 1 / 2."""
    layout = layout_of((512, 256))
    size = layout.size
    truth = randn(size)
    truth /= truth.norm()

    def found(seed: int):  # type: ignore[no-untyped-def]
        flats = truth + randn(32, size, seed=seed) * math.sqrt(31 / size)
        return found_of(layout, list(flats), [1] * 32)

    teacher, state, told = taught(layout, [found(1), found(2)], **MSE)
    fresh = truth + randn(size, seed=3) * math.sqrt(31 / 31 / size)
    gradient, _ = applied(teacher, state, Gradient(fresh, layout), 31)
    # What a linear teacher would multiply by; its small net may do a little else.
    shrunk = (gradient.flat @ fresh / (fresh @ fresh)).item()
    assert shrunk == pytest.approx(0.5, abs=0.06)
    # And nothing can be predicted of the noise: |y|^2 = 32, of which 1 / 2 is explained.
    assert told["teacher error"].item() == pytest.approx(1 - 0.5 / 32, abs=0.03)


def test_it_learns_the_identity_where_clients_agree() -> None:
    layout = layout_of((16, 20), (7,))
    flat = randn(layout.size)
    teacher, state, told = taught(layout, [found_of(layout, [flat] * 4, [4] * 4)] * 2, **MSE)
    assert told["teacher error"].item() < 1e-3 and told["teacher cosine"].item() == pytest.approx(1, abs=1e-3)
    gradient, metrics = applied(teacher, state, Gradient(flat, layout), 16)
    torch.testing.assert_close(gradient.flat, flat, rtol=0.1, atol=0.1)
    changed = (gradient.flat - flat).square().sum() / flat.square().sum()
    assert metrics["teacher noise"].item() == pytest.approx(changed.item())


def test_training_gives_the_same_bits_again() -> None:
    layout = layout_of((16, 20), (7,))
    found = found_of(layout, list(randn(4, layout.size)), [4] * 4)
    nets = [taught(layout, found, **MSE)[1] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].weights, nets[1].weights, strict=True))


def test_before_its_training_it_changes_nothing() -> None:
    layout = layout_of((16, 20))
    teacher, _, _ = taught(layout, found_of(layout, list(randn(4, 320)), [4] * 4), **MSE)
    gradient = Gradient(randn(320), layout)
    assert applied(teacher, teacher.init(layout, 4), gradient, 16) == (gradient, {})
