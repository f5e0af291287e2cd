"""What a layer's values become: by hand, and what each compressor promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclbfl.comm.compression import Key, kept
from hpclbfl.comm.compression.draws import dither, places
from hpclbfl.comm.compression.quantised import holding, levels
from hpclbfl.comm.compression.quantised import pack as pack_numbers
from hpclbfl.comm.compression.quantised import unpack as unpack_numbers
from hpclbfl.comm.compression.randomk import RandomK
from hpclbfl.comm.compression.signsgd import Signs, pack, unpack
from hpclbfl.comm.compression.topk import _SAMPLE, TopK, largest
from tests.comm.compression.reductions import draws

KEY = Key(seed=0, step=0, client=0, layer=0)


def decoded(codec, values: torch.Tensor, key: Key = KEY) -> torch.Tensor:  # type: ignore[no-untyped-def]
    payload = codec.encode(values, key)
    assert payload.dtype == torch.uint8
    assert payload.numel() == codec.size(values.numel(), values.element_size())
    out = torch.zeros_like(values)
    codec.decode_(payload, out, key)
    return out


def test_topk_by_hand() -> None:
    values = torch.tensor([3.0, -5.0, 1.0, 4.0, -4.0])
    assert decoded(TopK(0.4), values).tolist() == [0, -5, 0, 4, 0], "of equal magnitudes the first"
    assert decoded(TopK(0.6), values).tolist() == [0, -5, 0, 4, -4]
    assert decoded(TopK(1.0), values).tolist() == values.tolist()
    assert decoded(TopK(1e-9), values).tolist() == [0, -5, 0, 0, 0], "at least one"


@pytest.mark.parametrize(
    ("size", "count"), [(1, 1), (100, 7), (6 * _SAMPLE, 300), (6 * _SAMPLE, 1), (5 * _SAMPLE, 9000)]
)
@pytest.mark.parametrize("kind", ["normal", "ties", "few", "zeros", "sorted"])
def test_the_largest_are_those_of_a_full_sort(size: int, count: int, kind: str) -> None:
    values = draws(size, 1, size)[0].float()
    if kind == "ties":
        values = values.round(decimals=1)
    elif kind == "few":
        # A sample that sees next to nothing of what counts.
        values = torch.where(torch.arange(size) % 997 == 5, values, 0.0)
    elif kind == "zeros":
        # A kernel's centre alone, as of a convolution of one pixel.
        values = torch.where(torch.arange(size) % 9 == 4, values, 0.0)
    elif kind == "sorted":
        values = values.sort().values
    order = np.lexsort((np.arange(size), -np.abs(values.numpy())))
    assert sorted(largest(values, count).tolist()) == sorted(order[:count].tolist())


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(1e-6, 1.0), st.integers(0, 5))
def test_topk_is_a_contraction(size: int, ratio: float, seed: int) -> None:
    """|v - C(v)|^2 <= (1 - k / n) |v|^2; Stich et al., 2018."""
    values = draws(seed, 1, size)[0]
    left = (values - decoded(TopK(ratio), values)).square().sum()
    assert left <= (1 - kept(size, ratio) / size) * values.square().sum() + 1e-12
    assert 1 <= kept(size, ratio) <= size


def test_signs_by_hand() -> None:
    values = torch.tensor([1.0, -2.0, 0.0, -5.0])
    assert decoded(Signs(), values).tolist() == [2, -2, 2, -2]


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(0, 5))
def test_signs_are_a_contraction(size: int, seed: int) -> None:
    """|v - C(v)|^2 = |v|^2 - |v|_1^2 / n; Karimireddy et al., 2019."""
    values = draws(seed, 1, size)[0]
    left = (values - decoded(Signs(), values)).square().sum().item()
    expected = (values.square().sum() - values.abs().sum() ** 2 / size).item()
    assert left == pytest.approx(expected, abs=1e-9)


def test_random_values_without_feedback_are_unbiased() -> None:
    values, codec = draws(1, 1, 40)[0], RandomK(0.25, feedback=False)
    mean = torch.stack([decoded(codec, values, Key(0, step, 0, 0)) for step in range(4000)]).mean(0)
    # A value's standard error: |v| sqrt(n / k - 1) / sqrt(4000).
    assert ((mean - values).abs() <= 5 * values.abs() * (3 / 4000) ** 0.5).all()
    with_feedback = decoded(RandomK(0.25, feedback=True), values)
    assert set(with_feedback[with_feedback != 0].tolist()) <= set(values.tolist())


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 9))
def test_places_are_drawn_once_each(size: int, step: int) -> None:
    count = kept(size, 0.3)
    drawn = places(size, count, Key(1, step, 2, 3), torch.device("cpu"))
    assert len(set(drawn.tolist())) == count and drawn.min() >= 0 and drawn.max() < size
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, places(size, count, Key(1, step, 2, 3), torch.device("cpu")))


def test_dither_is_even_and_keyed() -> None:
    drawn = dither(200_000, KEY, torch.device("cpu")).double()
    assert drawn.min() > 0 and drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=5 / 12**0.5 / 200_000**0.5)
    for other in (KEY._replace(step=1), KEY._replace(client=1), KEY._replace(layer=1), KEY._replace(seed=1)):
        assert not torch.equal(drawn[:10], dither(10, other, torch.device("cpu")).double())


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_pack(bits: list[bool]) -> None:
    packed = pack(torch.tensor(bits))
    assert packed.numel() == -(-len(bits) // 8)
    assert unpack(packed, len(bits)).tolist() == bits


@settings(deadline=None)
@given(st.sampled_from([2, 4, 8]), st.data())
def test_whole_numbers_pack(bits: int, data: st.DataObject) -> None:
    most = levels(bits)
    values = data.draw(st.lists(st.integers(-most, most), max_size=30))
    packed = pack_numbers(torch.tensor(values, dtype=torch.int8), bits)
    assert packed.nbytes == -(-len(values) * bits // 8)
    assert unpack_numbers(packed, bits, len(values)).tolist() == values


def test_the_smallest_type_that_holds_a_sum() -> None:
    assert [holding(n) for n in (127, 128, 32767, 32768)] == [torch.int8, torch.int16, torch.int16, torch.int32]
