from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hpclbfl.comm.engines import communicator
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.launched import launched_rank, launched_size


class Doubling(LocalCommunicator):
    """Stands for two ranks with equal gradients, and remembers the order of the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def reduce_(self, flat: Tensor, name: str, on_chunk: Callable[[Tensor], None] | None = None):  # type: ignore[no-untyped-def]
        self.calls.append(name)
        flat.mul_(2)
        return super().reduce_(flat, name, on_chunk)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def reference(module: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    loss = sum(module(x).square().sum() for x in batches)
    return list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("bucket_mb", [25.0, 1e-4, 1e-9])
def test_gradients_of_all_passes_are_summed_in_buckets(bucket_mb: float) -> None:
    module, comm = net(), Doubling()
    batches = [torch.randn(3, 4), torch.randn(5, 4)]
    expected = reference(module, batches)
    reducer = GradientReducer(list(module.parameters()), comm, bucket_mb)
    for _ in range(2):
        reducer.begin_step()
        for batch in batches:
            reducer.begin_pass(batch is batches[-1])
            module(batch).square().sum().backward()
            assert reducer.end_pass() is None
        reducer.finish()
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, 2 * gradient)
        assert reducer.flat.numel() == sum(p.numel() for p in module.parameters())
        torch.testing.assert_close(reducer.flat.square().sum(), sum(4 * g.square().sum() for g in expected))
        reducer.zero_grad()
    buckets = {25.0: 1, 1e-4: 3, 1e-9: 6}[bucket_mb]
    assert comm.calls == [f"gradients.{k}" for k in range(buckets)] * 2


def test_a_rank_without_samples_makes_the_same_calls() -> None:
    module, comm = net(), Doubling()
    reducer = GradientReducer(list(module.parameters()), comm, 1e-9)
    reducer.begin_step()
    reducer.begin_pass(is_last=True)
    reducer.end_pass()
    reducer.finish()
    assert len(comm.calls) == 6
    assert all((p.grad == 0).all() for p in module.parameters())


def test_an_unused_parameter_gets_a_zero_gradient() -> None:
    module, comm = net(), Doubling()
    reducer = GradientReducer(list(module.parameters()), comm, 25.0)
    reducer.flat.fill_(9)
    reducer.begin_step()
    reducer.begin_pass(is_last=True)
    module[2:](torch.ones(1, 8)).sum().backward()
    reducer.finish()
    assert (module[0].weight.grad == 0).all()
    assert (module[4].weight.grad != 0).any()


def test_ranks_are_learnt_from_the_launchers_environment() -> None:
    assert (launched_size({}), launched_rank({})) == (1, 0)
    open_mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "SLURM_NTASKS": "1"}
    assert (launched_size(open_mpi), launched_rank(open_mpi)) == (4, 3)
    assert (launched_size({"PMI_SIZE": "2", "PMI_RANK": "1"}), launched_rank({"PMI_RANK": "1"})) == (2, 1)
    assert launched_size({"PMIX_RANK": "1", "SLURM_NTASKS": "8"}) == 8
    # A lone process in an allocation is alone; tasks of one srun that do not know of each other are a mistake.
    assert launched_size({"SLURM_NTASKS": "8"}) == 1
    with pytest.raises(ConfigError, match="srun --mpi=pmix"):
        communicator(CommConfig(), {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(ConfigError, match=r"comm.engine: local is for one process, this job has 4 ranks"):
        communicator(CommConfig(engine="local"), open_mpi)


def test_norms_of_the_sum_and_of_each_pass_are_taken_on_the_way() -> None:
    module, comm = net(), Doubling()
    batches = [torch.randn(3, 4), torch.randn(5, 4)]
    own = [sum(g.square().sum() for g in reference(module, [batch])) for batch in batches]
    total = sum(4 * g.square().sum() for g in reference(module, batches))
    reducer = GradientReducer(list(module.parameters()), comm, 1e-4, measure=True, measure_clients=True)
    for _ in range(2):
        reducer.begin_step()
        for batch, weight, norm in zip(batches, (3.0, 0.5), own, strict=True):
            kept: dict[nn.Parameter, Tensor] = {}
            reducer.begin_pass(batch is batches[-1], weight, kept)
            module(batch).square().sum().backward()
            found = reducer.end_pass()
            assert found is not None and found.item() == pytest.approx(norm.item(), rel=1e-5)
            for parameter, gradient in zip(module.parameters(), reference(module, [batch]), strict=True):
                torch.testing.assert_close(kept[parameter], gradient)
        reducer.finish()
        assert reducer.sq_norm is not None and reducer.sq_norm.item() == pytest.approx(total.item(), rel=1e-5)
        assert reducer.noise.item() == pytest.approx(2 * (3 * own[0] + 0.5 * own[1]).item(), rel=1e-5)
        assert [g.shape for g in reducer.by_layer()] == [p.shape for p in module.parameters()]
        reducer.zero_grad()


def test_after_close_gradients_stay_with_their_parameters() -> None:
    module = net()
    reducer = GradientReducer(list(module.parameters()), Doubling(), 25.0)
    reducer.close()
    module(torch.ones(1, 4)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("bucket_mb", [25.0, 1e-4, 1e-9])
def test_gradients_copied_by_the_bucket_are_the_same(bucket_mb: float) -> None:
    module = net()
    batches = [torch.randn(3, 4), torch.randn(5, 4)]
    found = []
    for gathers in (False, True):
        comm = Doubling()
        reducer = GradientReducer(list(module.parameters()), comm, bucket_mb, measure=True, measure_clients=True)
        reducer._gathers = gathers
        reducer.begin_step()
        for number, batch in enumerate((*batches, batches[0])):
            # The middle pass reaches the last layers alone.
            reducer.begin_pass(is_last=number == 2)
            (
                module[2:](torch.tanh(module[0](batch)).detach()) if number == 1 else module(batch)
            ).square().sum().backward()
            reducer.end_pass()
        reducer.finish()
        assert reducer.sq_norm is not None
        found.append(([p.grad.clone() for p in module.parameters()], reducer.sq_norm.item(), comm.calls))
        reducer.zero_grad()
        reducer.close()
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1:] == found[1][1:]
