"""The teacher that adds noise, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hpclbfl.gradients import Context, NoiseAverages
from hpclbfl.gradients.change import unknown
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.learning import ClientGradients
from tests.gradients.teacher.worked import applied, found_of, layout_of, taught

SIZES = [4, 8, 32, 84]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_residuals_have_the_covariance_of_one_sample_whatever_the_batch() -> None:
    """With g_c = e_c the residuals are the coefficients of all clients: their variance is sum a^2 Sigma / b."""
    layout = layout_of((4,))
    teacher, state, _ = taught(layout, found_of(layout, list(torch.eye(4, dtype=torch.float64)), SIZES), **RESIDUAL)
    coefficients = teacher.factors.decode(state.rows)[:4]
    for sigma in (1.0, 4.0):
        variance = (coefficients.square() * sigma / torch.tensor(SIZES)).sum(1)
        assert variance.tolist() == pytest.approx([sigma] * 4)


RESIDUAL = {"kind": "residual", "small_batch": 2}


def test_residuals_lead_back_to_the_clients_gradients() -> None:
    layout = layout_of((3, 2), (5,))
    flats = list(randn(4, 11))
    found = found_of(layout, flats, SIZES)
    teacher, state, told = taught(layout, found, **RESIDUAL)
    for client, residual in enumerate(teacher.factors.decode(state.rows)[:4]):
        again = found.mean.flat + math.sqrt(1 / SIZES[client] - 1 / 128) * residual
        torch.testing.assert_close(again, flats[client])
    # Nothing here is large enough to be factored.
    assert told["teacher energy"].item() == pytest.approx(1.0)


def test_the_trace_of_two_clients_of_one_sample() -> None:
    """g = (1, 0), (0, 1) with b = 1: tr Sigma = 1."""
    layout = layout_of((2,))
    _, state, _ = taught(layout, found_of(layout, list(torch.eye(2, dtype=torch.float64)), [1, 1]), **RESIDUAL)
    assert state.trace.item() == pytest.approx(1.0) and state.encoded_trace.item() == pytest.approx(1.0)


def test_equal_clients_give_no_noise() -> None:
    layout = layout_of((6, 8), (3,))
    flat = torch.full((51,), 0.5, dtype=torch.float64)
    teacher, state, _ = taught(layout, found_of(layout, [flat] * 4, [4] * 4), **RESIDUAL)
    gradient, told = applied(teacher, state, Gradient(flat, layout), 16)
    assert torch.equal(gradient.flat, flat) and told["teacher noise"].item() == 0


@pytest.mark.parametrize("draws", [4, 16])
def test_the_noise_has_the_covariance_of_the_residuals_for_any_number_of_draws(draws: int) -> None:
    """c^2 tr Sigma / tr_D D^T D / K, with tr Sigma three times that of the training."""
    layout = layout_of((3,))
    scale = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    found = found_of(layout, list(randn(16, 3) * scale), [4] * 16)
    teacher, state, _ = taught(layout, found, **RESIDUAL, draws=draws)
    residuals = teacher.factors.decode(state.rows)[:16]
    zero, trace = torch.zeros(3, dtype=torch.float64), 3 * residuals.square().sum() / 16
    noise = NoiseAverages(trace, trace)
    steps = 6000
    found_noise = torch.stack(
        [applied(teacher, state, Gradient(zero, layout), 64, step, noise=noise)[0].flat for step in range(steps)]
    )
    variance = 1 / 2 - 1 / 64
    expected = variance * 3 * residuals.T @ residuals / 16
    assert abs(found_noise.mean(0)).max() < 4 * (expected.diagonal() / steps).sqrt().max()
    torch.testing.assert_close(
        found_noise.T @ found_noise / steps, expected, rtol=0.08, atol=0.08 * expected.diagonal().max().item()
    )
    # E |noise|^2 = c^2 tr Sigma_t
    assert found_noise.square().sum(1).mean().item() == pytest.approx(variance * trace.item(), rel=0.05)


def test_the_noise_of_outer_products_is_exact() -> None:
    """Residuals p q^T, a factor pair each: the noise lies in their span, with one number for all layers."""
    layout = layout_of((6, 9), (8, 7))
    flats = [
        torch.cat(
            [
                torch.outer(randn(8, seed=10 + c), randn(7, seed=20 + c)).reshape(-1),
                randn(1)[0] * torch.outer(randn(6, seed=30 + c), randn(9, seed=40 + c)).reshape(-1),
            ]
        )
        for c in range(3)
    ]
    # Two clients: residuals +-(g_1 - g_2) / 2 ..., of rank 2, as rho is.
    teacher, state, told = taught(layout, found_of(layout, flats[:2], [4, 4]), **RESIDUAL, draws=1)
    assert told["teacher energy"].item() == pytest.approx(1.0)
    residual = (flats[0] - flats[1]) / 2 / math.sqrt(1 / 8)
    zero = torch.zeros(layout.size, dtype=torch.float64)
    gradient, _ = applied(teacher, state, Gradient(zero, layout), 8)
    ratio = gradient.flat / residual
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-8, atol=0)


def test_a_batch_no_larger_than_the_small_one_passes_bit_for_bit() -> None:
    layout = layout_of((6, 8), (3,))
    teacher, state, _ = taught(layout, found_of(layout, list(randn(4, 51)), [4] * 4), kind="residual", small_batch=16)
    gradient = Gradient(randn(51, seed=9), layout)
    for batch in (16, 12):
        same, told = applied(teacher, state, gradient, batch)
        assert same is gradient and told == {}
    assert not torch.equal(applied(teacher, state, gradient, 17)[0].flat, gradient.flat)


def test_noise_told_is_the_noise_added_also_under_a_factor() -> None:
    """Behind a clip that halves the gradient, twice the noise is added to its values."""
    layout = layout_of((6, 8), (3,))
    teacher, state, _ = taught(layout, found_of(layout, list(randn(4, 51)), [4] * 4), **RESIDUAL)
    flat = randn(51, seed=9)
    plain, told = applied(teacher, state, Gradient(flat, layout), 16)
    halved, told_halved = applied(teacher, state, Gradient(flat, layout).scaled(torch.tensor(0.5).double()), 16)
    torch.testing.assert_close(2 * (plain.flat - flat), halved.flat - flat)
    added = (plain.flat - flat).square().sum() / flat.square().sum()
    assert told["teacher noise"].item() == pytest.approx(added.item())
    assert told_halved["teacher noise"].item() == pytest.approx(4 * added.item())


def test_values_change_in_place_only_where_their_owner_allows() -> None:
    layout = layout_of((6, 8), (3,))
    teacher, state, _ = taught(layout, found_of(layout, list(randn(4, 51)), [4] * 4), **RESIDUAL)
    flat = randn(51, seed=9)
    kept = flat.clone()
    foreign, _ = applied(teacher, state, Gradient(flat, layout), 16)
    assert torch.equal(flat, kept) and foreign.is_replaced
    own, _ = applied(teacher, state, Gradient(flat, layout, is_owned=True), 16)
    assert own.flat is flat and not own.is_replaced and torch.equal(own.flat, foreign.flat)
    # A change is told from the norm before, a clip's from the norm after.
    assert own.measured.sq_norm.item() == pytest.approx(kept.square().sum().item())
    assert own.sq_norm.item() == pytest.approx(own.flat.square().sum().item())


def test_a_gradient_that_is_not_finite_is_not_collected() -> None:
    layout = layout_of((6, 8), (3,))
    teacher, _, _ = taught(layout, found_of(layout, list(randn(4, 51)), [4] * 4), **RESIDUAL)
    flats = randn(4, 51)
    flats[2, 7] = math.inf
    assert teacher.collect(found_of(layout, list(flats), [4] * 4), Context(0, 1), unknown()) is None


def test_one_client_with_samples_is_not_enough() -> None:
    layout = layout_of((6, 8), (3,))
    teacher, _, _ = taught(layout, found_of(layout, list(randn(4, 51)), [4] * 4), **RESIDUAL)
    found = found_of(layout, list(randn(1, 51)), [4])
    assert teacher.collect(found, Context(0, 1), unknown()) is None


def test_ranks_add_up_their_clients_residuals() -> None:
    """Each of two ranks encodes its own; the sum has the bits of one rank that holds all."""
    layout = layout_of((6, 8), (3,))
    whole = found_of(layout, list(randn(4, 51)), SIZES)
    teacher, _, _ = taught(layout, whole, **RESIDUAL)
    alone = teacher.collect(whole, Context(0, 3), unknown())
    sent: list[list[torch.Tensor]] = []
    for clients in ((0, 1), (2, 3)):
        parts: list[torch.Tensor] = []
        own = {client: whole.own[client] for client in clients}
        found = ClientGradients(own, whole.counts, whole.mean, lambda t, parts=parts: parts.append(t.clone()))
        teacher.collect(found, Context(0, 3), unknown())
        sent.append(parts)
    thin, rest, norms = (a + b for a, b in zip(sent[0][:3], sent[1][:3], strict=True))
    assert torch.equal(thin, alone.rows.thin) and torch.equal(rest, alone.rows.whole)
    assert torch.equal(norms, alone.sq_norms)


def test_of_many_clients_some_are_drawn_and_the_memory_holds_a_training() -> None:
    layout = layout_of((5,))
    found = [found_of(layout, list(randn(10, 5, seed=seed)), [2] * 10) for seed in range(2)]
    _, state, told = taught(layout, found, **RESIDUAL, memory=8, train_steps=2)
    assert state.count == 8 and len(state.sq_norms) == 8
    assert set(told) == {
        *("teacher error", "teacher cosine", "teacher norm ratio", "teacher variance", "teacher energy"),
    }
    # 8 residuals in 5 dimensions; those of the first step span 4 - 1 of them.
    assert 0 < told["teacher error"].item() < 1


def test_the_test_on_fresh_residuals_by_hand() -> None:
    """Learnt: the axes 1 and 2. Fresh: axis 1, four times as long, and axis 3, twice as long."""
    layout = layout_of((3,))
    eye = torch.eye(3, dtype=torch.float64)
    learnt = found_of(layout, [eye[0], -eye[0], eye[1], -eye[1]], [1] * 4)
    fresh = found_of(layout, [4 * eye[0], -4 * eye[0], 2 * eye[2], -2 * eye[2]], [1] * 4)
    _, _, told = taught(layout, [learnt, fresh], **RESIDUAL)
    # Squared norms 16, 16, 4 and 4 (times 4 / 3), of which those along axis 1 are predicted; learnt were four of 1.
    assert told["teacher error"].item() == pytest.approx(8 / 40)
    assert told["teacher cosine"].item() == pytest.approx(math.sqrt(32 / 40))
    assert told["teacher norm ratio"].item() == pytest.approx(math.sqrt(1 / 10))
    # Clients 0 and 2 tell axis 1 as the leading direction. The variance along it is (1 + 1) / 4 as learnt, and of the
    # fresh residuals of clients 1 and 3 it is 16 / 2.
    assert told["teacher variance"].item() == pytest.approx(1 / 16)
