"""Sums of compressed contributions: what is sent and what is kept, over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclbfl.comm.compression.build import Compression
from hpclbfl.comm.compression.low_rank import LowRank
from hpclbfl.comm.compression.payloads import PayloadReduction
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.errors import ConfigError
from tests.comm.compression.reductions import ALL, FEEDBACK, SHAPES, Run, draws, size_of

SIZE = size_of(SHAPES)
shapes = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)


@pytest.mark.parametrize("name", FEEDBACK)
@settings(deadline=None)
@given(shapes=shapes, num_clients=st.integers(1, 3), per_piece=st.integers(1, 3))
def test_what_was_sent_and_what_is_left_are_what_there_was(
    name: str, shapes: list[tuple[int, ...]], num_clients: int, per_piece: int
) -> None:
    """Error feedback telescopes: sum_t C(p_t) + e_T = sum_t x_t, to rounding."""
    run = Run(FEEDBACK[name], shapes, num_clients, per_piece=per_piece)
    sent, given_in = torch.zeros_like(run.flat), torch.zeros_like(run.flat)
    for step in range(4):
        own = draws(step, num_clients, len(run.flat))
        sent += run.step(step, own)
        given_in += torch.stack(own).sum(0)
    torch.testing.assert_close(sent + run.residual(), given_in, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_buckets_do_not_change_the_sum(name: str) -> None:
    small, large = (Run(ALL[name], per_piece=per_piece) for per_piece in (1, 3))
    for step in range(3):
        own = draws(step, 2, SIZE)
        assert torch.equal(small.step(step, own), large.step(step, own))


@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zeros_and_what_follows_is_compressed_as_ever(name: str) -> None:
    run, zeros = Run(ALL[name]), [torch.zeros(SIZE, dtype=torch.float64)] * 2
    for step in range(3):
        assert not run.step(step, zeros).any()
    own = draws(0, 2, SIZE)
    later = run.step(3, own)
    assert later.isfinite().all() and later.any()
    # A layer of zeros leaves PowerSGD no direction to start from.
    assert torch.dot(later, torch.stack(own).sum(0)) > 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("name", ALL)
def test_a_gradient_that_is_not_finite_is_seen_and_not_kept(name: str, broken: float) -> None:
    run = Run(ALL[name])
    run.step(0, draws(0, 2, SIZE))
    for place in (3, 31):
        own = draws(1, 2, SIZE)
        own[1][place] = broken
        assert not run.step(1, own).isfinite().all()
    for step in (2, 3):
        assert run.step(step, draws(step, 2, SIZE)).isfinite().all()
    assert run.residual().isfinite().all()


def test_rounding_at_random_is_unbiased() -> None:
    own = draws(2, 2, SIZE)
    run = Run(ALL["qsgd"])
    mean = torch.stack([run.step(step, own) for step in range(3000)]).mean(0)
    # A rounding error is at most one step of 1 / 7 of the largest magnitude, its deviation at most half of that.
    scale = torch.stack(own).abs().max().item()
    assert (mean - torch.stack(own).sum(0)).abs().max() <= 5 * 2**0.5 * scale / 14 / 3000**0.5


def test_half_precision_by_hand() -> None:
    """1 + 2^-12 is rounded to 1 for each client; the sum of 2049 to 2048, as halves are even there."""
    run = Run({"kind": "fp16"}, [(2,)])
    own = [torch.tensor([1 + 2.0**-12, 2048.0]), torch.tensor([1.0, 1.0])]
    assert run.step(0, [one.double() for one in own]).tolist() == [2.0, 2048.0]
    assert run.step(1, [torch.tensor([1e6, 0.0]).double()] * 2).tolist() == [math.inf, 0.0]


def test_low_rank_is_exact_where_the_gradient_is() -> None:
    """A matrix of rank 1 is its own approximation after the first power step; vectors are sent whole."""
    run = Run({"kind": "powersgd", "rank": 1}, [(6, 5), (4,)], num_clients=1)
    left, right, vector = draws(5, 1, 6)[0], draws(6, 1, 5)[0], draws(7, 1, 4)[0]
    whole = torch.cat([torch.outer(left, right).view(-1), vector])
    torch.testing.assert_close(run.step(0, [whole]), whole, rtol=1e-12, atol=1e-12)
    assert run.residual().abs().max() < 1e-12


@pytest.mark.parametrize("name", ["topk", "signsgd", "qsgd", "fp16", "randomk-own"])
def test_the_error_is_what_the_clients_did_not_send(name: str) -> None:
    run, own = Run({**ALL[name]}), draws(3, 2, SIZE)
    total = run.step(0, own)
    assert run.norms is not None
    assert run.norms[0].item() == pytest.approx(sum(one.square().sum().item() for one in own))
    if name in FEEDBACK:
        kept = [run.reduction.residual(client) for client in range(2)]
        assert run.norms[1].item() == pytest.approx(sum(one.square().sum().item() for one in kept if one is not None))
        torch.testing.assert_close(total, torch.stack(own).sum(0) - run.residual())


def test_ranks_that_round_differently_take_the_firsts_products() -> None:
    class Counting(LocalCommunicator):
        calls: ClassVar[list[int]] = []

        def broadcast_(self, tensors: Sequence[torch.Tensor], root: int = 0) -> None:
            self.calls.extend(tensor.numel() for tensor in tensors)

    run = Run(FEEDBACK["powersgd"])
    setup = replace(run.setup, comm=Counting(), is_alike=False)
    run.reduction = run.compression.reduction = LowRank(1, True, setup)
    run.step(0, draws(0, 2, SIZE))
    # P of both matrices, then the whole sum.
    assert Counting.calls == [6, 3, SIZE]


@pytest.mark.parametrize("name", FEEDBACK)
def test_residuals_go_on_with_any_number_of_ranks(name: str) -> None:
    """Two ranks of a client each, and one of both: what they keep is the same sum."""
    together, own = Run(FEEDBACK[name]), draws(4, 2, SIZE)
    together.step(0, own)
    saved = {client: together.compression.client_state(client).state_dict() for client in range(2)}
    apart = [Run(FEEDBACK[name], num_clients=2) for _ in range(2)]
    for client, run in enumerate(apart):
        run.compression.load_state_dict(together.compression.state_dict())
        part = run.compression.client_state(client)
        part.check_state(saved[client])
        part.load_state_dict(saved[client])
    torch.testing.assert_close(apart[0].residual() + apart[1].residual(), together.residual())


@pytest.mark.parametrize(
    ("rule", "levels"),
    [
        # Changes of |x|^2 by 0, then by 3.
        ({"by": "phase", "to": 0.1}, [0.4, 0.4, 0.1, 0.4]),
        ({"by": "phase", "to": 0.1, "change": {"name": "squared_norm"}, "threshold": 5.0}, [0.4, 0.4, 0.1, 0.1]),
        ({"by": "gain", "to": 0.1, "threshold": 0.0, "window": 1}, [0.4, 0.2, 0.1, 0.1]),
        ({"by": "gain", "to": 0.1, "threshold": 1.0, "window": 1}, [0.4, 0.4, 0.4, 0.4]),
        ({"by": "gain", "to": 0.1, "threshold": 0.0, "window": 3}, [0.4, 0.4, 0.4, 0.2]),
        # B is 64, 128, 128, 1024.
        ({"by": "batch", "to": 0.1, "reference": 64}, [0.4, 0.4, 0.2, 0.2]),
    ],
)
def test_levels_follow_a_rule(rule: dict[str, Any], levels: list[float]) -> None:
    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient

    run = Run({"kind": "topk", "ratio": 0.4, "feedback": False, "adapt": rule}, [(10,)], num_clients=1)
    seen = []
    for step, (norm, batch) in enumerate(zip((1.0, 1.0, 4.0, 4.0), (64, 128, 128, 1024), strict=True)):
        sent = run.step(step, [torch.arange(1.0, 11.0).double()])
        seen.append(int((sent != 0).sum()) / 10)
        gradient = Gradient([], None, torch.tensor(norm, dtype=torch.float64))
        metrics = run.compression.observe(gradient, Context(0, step, batch_size=batch), run.norms)
        assert metrics["compression_level"].item() == seen[-1]
    assert seen == levels


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (torch.zeros(3, dtype=torch.uint8), "torch.uint8 [3] for 10 values"),
        (torch.zeros(8), "torch.float32 [8] for 10 values"),
        (b"12345678", "b'12345678' for 10 values"),
    ],
)
def test_a_payload_of_another_size_is_refused(payload: Any, told: str) -> None:
    class Codec:
        def size(self, num_values: int, itemsize: int) -> int:
            return 8

        def encode(self, values: torch.Tensor, key: Any) -> Any:
            return payload

        def decode_(self, payload: torch.Tensor, out: torch.Tensor, key: Any, alpha: float = 1.0) -> None: ...

    run = Run({"kind": "topk", "ratio": 0.5}, [(10,)], num_clients=1)
    run.compression.reduction = run.reduction = PayloadReduction(Codec(), False, run.setup)
    with pytest.raises(ConfigError) as refused:
        run.step(0, draws(0, 1, 10))
    assert (
        str(refused.value)
        == f"compression.kind: Codec.encode gives {told}, not the 8 bytes (torch.uint8) that size tells"
    )


def test_a_state_of_another_compressor_is_refused() -> None:
    from hpclbfl.core.errors import DataError

    one, other = Run(FEEDBACK["powersgd"]), Run({"kind": "powersgd", "rank": 2})
    with pytest.raises(DataError, match=r"compression\.reduction\.right"):
        other.compression.check_state(one.compression.state_dict())
    with pytest.raises(DataError, match="residual"):
        one.compression.client_state(0).check_state({})
    with pytest.raises(DataError, match="residual has shape"):
        one.compression.client_state(0).check_state({"residual": torch.zeros(3, dtype=torch.float64)})
    assert isinstance(one.compression, Compression)
