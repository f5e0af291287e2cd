"""What a batch takes of memory, told before it is taken."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.training import footprint
from hpclbfl.training.evaluate import evaluate
from hpclbfl.training.footprint import PRODUCT, Footprint, measure, size_text
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from tests.conftest import make_job


class Pixels:
    """What is asked of a loader of images."""

    def __init__(self, *shape: int) -> None:
        self.input_shape, self.staged_bytes = shape, 2 * math.prod(shape)

    def example(self, count: int) -> torch.Tensor:
        return torch.zeros(count, *self.input_shape)


def test_what_a_forward_pass_keeps_is_counted() -> None:
    # Keeps its input and, of ReLU, the output; the image is 2 bytes a pixel in buffers and 4 in the batch.
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 100), nn.ReLU(), nn.Linear(100, 10))
    found = measure(net, Pixels(3, 2, 2), nullcontext)
    assert found.fixed == 4 * (12 * 100 + 100 + 100 * 10 + 10)
    # The largest layer: ReLU, 100 numbers in and out.
    assert found.per_sample == 6 * 12 + int(1.2 * 4 * 100) + 4 * 200
    assert found.per_evaluated == 6 * 12 + 4 * 200


def test_measuring_changes_neither_the_net_nor_random_numbers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    measure(net, Pixels(3, 8, 8), nullcontext)
    assert torch.equal(torch.get_rng_state(), state) and not net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_step_that_does_not_fit_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "free_memory", lambda: 10**9)
    found = Footprint(fixed=20 * 10**6, per_sample=10**6, per_evaluated=10**6)
    found.check_step(900)
    with pytest.raises(EnvironmentFault) as error:
        found.check_step(901)
    assert str(error.value) == (
        "batching: a step of 901 samples needs about 921 MB of memory, 920 MB are free: the largest batch that fits is "
        "about 900"
    )
    with pytest.raises(EnvironmentFault, match=r"460 MB are free for each of 2 ranks: the largest .* is about 440$"):
        replace(found, local_size=2).check_step(901)
    with pytest.raises(EnvironmentFault, match=r"not even one sample fits$"):
        replace(found, fixed=10**12).check_step(1)
    assert (found.evaluation_batch(256), found.evaluation_batch(10**6)) == (256, 460)
    assert (found.product_batch(100), found.product_batch(10**6)) == (100, 210)
    # What something else will hold is left to it.
    assert found.product_batch(10**6, reserved=10**12) == 1
    assert found.product_batch(10**6, reserved=PRODUCT * found.per_sample * 10 * found.local_size) == 200


def test_a_run_whose_first_step_does_not_fit_ends_before_it(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(footprint, "free_memory", lambda: 4 * 10**6)
    with pytest.raises(SystemExit) as end:
        run_job(make_job(toy_set, batching={"local_batch_size": 90}, clients=1), tmp_path / "run")
    assert end.value.code == 1 and not (tmp_path / "run").exists()
    told = capsys.readouterr().err
    assert "hpclbfl: error: batching: a step of 90 samples needs about" in told
    assert "of memory, 3.68 MB are free: the largest batch that fits is about" in told
    make_state(make_job(toy_set, batching={"local_batch_size": 4}, clients=1), LocalCommunicator())


def test_a_batch_that_grows_beyond_memory_is_refused(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(footprint, "free_memory", lambda: 10**6)
    batching = {"global_batch_size": 8, "policy": "noise_scale", "max_global_batch_size": 24}
    job = make_job(toy_set, batching=batching, gradients={"noise_scale": {}}, stop={"epochs": 3})
    with pytest.raises(SystemExit):
        run_job(job, tmp_path)
    told = capsys.readouterr().err
    assert re.search(r"hpclbfl: error: step \d+: batching: a step of 6 samples needs about", told)
    assert "of memory, 920 kB are free: the largest batch that fits is about" in told


def test_a_batch_of_an_evaluation_is_capped_silently(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(module: Any, images: Any, comm: Any, batch_size: int, *others: Any) -> Any:
        seen.append(batch_size)
        return evaluate(module, images, comm, batch_size, *others)

    monkeypatch.setattr("hpclbfl.training.loop.evaluate", watched)
    monkeypatch.setattr(footprint, "free_memory", lambda: 4 * 10**6)
    job = make_job(toy_set, clients=1, stop={"steps": 1}, evaluate={"every_steps": 1, "batch_size": 10**6})
    run_job(job, tmp_path)
    assert len(seen) == 1 and 1 <= seen[0] < 200


@pytest.mark.parametrize(("num_bytes", "text"), [(0, "0 kB"), (1500, "1.5 kB"), (2e7, "20 MB"), (1.24e12, "1.24 TB")])
def test_sizes_as_people_read_them(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text
