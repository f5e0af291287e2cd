from __future__ import annotations

import io
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import hpclbfl
from hpclbfl import GradientScaler
from hpclbfl.gradients.scaler import When

STEPS = 12
MakeOptimizer = Callable[[nn.Module], Optimizer]


def make_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def sgd(**options: Any) -> MakeOptimizer:
    return lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, **options)


def backward(model: nn.Module, step: int, times: float | torch.Tensor = 1.0) -> None:
    """Leave the gradients of a step's loss, multiplied by `times`."""
    draw = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(16, 5, generator=draw).to(dtype)
    targets = torch.randn(16, 2, generator=draw).to(dtype) * (1 + step % 3)
    model.zero_grad()
    (nn.functional.mse_loss(model(inputs), targets) * times).backward()


def train(
    scaler: GradientScaler, make: MakeOptimizer, dtype: torch.dtype = torch.float64, steps: range = range(STEPS)
) -> tuple[torch.Tensor, list[tuple[float, float, float]]]:
    """Parameters at the end; squared norm, change and scale of each step."""
    model = make_model(dtype)
    optimizer = make(model)
    scaler.attach(optimizer)
    rows = []
    for step in steps:
        backward(model, step)
        optimizer.step()
        assert not hasattr(optimizer, "grad_scale")
        rows.append(read(scaler))
    return flat(model), rows


def read(scaler: GradientScaler) -> tuple[float, float, float]:
    assert scaler.grad_sq_norm is not None and scaler.change is not None and scaler.scale is not None
    assert {t.dtype for t in (scaler.grad_sq_norm, scaler.change, scaler.scale)} == {torch.float64}
    return scaler.grad_sq_norm.item(), scaler.change.item(), scaler.scale.item()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def reference(factor: float, fires: Callable[[float], bool], max_norm: float = math.inf) -> tuple[torch.Tensor, Any]:
    """Eq. 8, the clipping and Eq. 6 by hand, in float64, before plain SGD."""
    model = make_model()
    optimizer = sgd()(model)
    rows: list[tuple[float, float, float]] = []
    for step in range(STEPS):
        backward(model, step)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        sq_norm = sum(g.square().sum().item() for g in gradients)
        change = abs(sq_norm - rows[-1][0]) / rows[-1][0] if rows else math.nan
        scale = factor if fires(change) else 1.0
        for gradient in gradients:
            gradient *= scale * min(1.0, max_norm / math.sqrt(sq_norm))
        optimizer.step()
        rows.append((sq_norm, change, scale))
    return flat(model), rows


GATES: dict[When, Callable[[float], bool]] = {
    "delta_ge": lambda change: change >= 0.5,
    "delta_lt": lambda change: change < 0.5,
    "always": lambda change: True,
    "never": lambda change: False,
}


@pytest.mark.parametrize("max_norm", [None, 0.9])
@pytest.mark.parametrize("when", GATES)
def test_steps_equal_those_by_hand(when: When, max_norm: float | None) -> None:
    expected, rows = reference(3.0, GATES[when], max_norm or math.inf)
    for make in (sgd(foreach=False), sgd(foreach=True), sgd(fused=True)):
        found, own_rows = train(GradientScaler(3.0, 0.5, when, max_norm=max_norm), make)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(torch.tensor(own_rows), torch.tensor(rows), rtol=1e-12, atol=0, equal_nan=True)
    if when in ("delta_ge", "delta_lt"):
        assert {row[2] for row in rows} == {1.0, 3.0}


@pytest.mark.parametrize("fused", [False, True])
def test_constant_factor_is_bitwise_a_larger_rate_with_a_smaller_decay(fused: bool) -> None:
    def make(lr: float, decay: float) -> MakeOptimizer:
        return lambda m: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, weight_decay=decay, fused=fused)

    scaled, _ = train(GradientScaler(4.0, when="always"), make(0.05, 0.5**7), torch.float32)
    faster, _ = train(GradientScaler(4.0, when="never"), make(4 * 0.05, 0.5**9), torch.float32)
    # lr * 4 rounds as lr does; the kernels then differ by powers of two alone.
    assert torch.equal(scaled, faster)


def test_float32_norms_and_factors() -> None:
    wide, rows = train(GradientScaler(3.0), sgd())
    for make in (sgd(foreach=False), sgd(fused=True)):
        narrow, own_rows = train(GradientScaler(3.0), make, torch.float32)
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-6)
        assert [row[2] for row in own_rows] == [row[2] for row in rows]


def test_half_precision_and_mixed_types() -> None:
    model = nn.ModuleList([nn.Linear(300, 300).to(t) for t in (torch.bfloat16, torch.float16, torch.float32)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradientScaler(3.3, when="always").attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    # In half precision the sum would overflow.
    assert read(scaler)[0] == 3 * 4 * (300 * 300 + 300)

    gradients = [torch.rand_like(parameter) + 1 for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    # Elements are rounded up and down; a factor rounded to bfloat16 would be wrong by 1e-3 in all of them.
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad.double() / gradient.double()).mean().item() == pytest.approx(3.3, rel=3e-4)


def test_complex_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = GradientScaler(2.0, when="always").attach(optimizer)
    parameter.grad = torch.tensor([3 + 4j, 1j])
    optimizer.step()
    assert read(scaler)[0] == 26.0
    assert torch.equal(parameter.detach(), torch.tensor([-6 - 8j, -2j]))


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd(),
    "sgd_fused": sgd(fused=True),
    "adamw_fused": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
}


@pytest.mark.filterwarnings("ignore:.*hardly acts")
@pytest.mark.parametrize("way", ["implicit", "unscale_", "measure"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_amp(name: str, way: str) -> None:
    """Like a run without it that leaves out the step whose gradient overflows."""
    left_out = 5
    plain = GradientScaler(4.0, max_norm=2.0)
    model = make_model(torch.float32)
    optimizer = OPTIMIZERS[name](model)
    plain.attach(optimizer)
    rows = []
    for step in range(STEPS):
        if step != left_out:
            backward(model, step)
            optimizer.step()
            rows.append(read(plain))
    expected = flat(model)

    scaler = GradientScaler(4.0, max_norm=2.0)
    model = make_model(torch.float32)
    optimizer = OPTIMIZERS[name](model)
    scaler.attach(optimizer)
    amp = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    own_rows = []
    for step in range(STEPS):
        backward(model, step, amp.scale(torch.ones(())) * (math.inf if step == left_out else 1.0))
        if way != "implicit":
            amp.unscale_(optimizer)
        if way == "measure":
            scaler.measure()
        amp.step(optimizer)
        amp.update()
        assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
        if step != left_out:
            own_rows.append(read(scaler))
    assert amp.get_scale() == 2.0**14  # Doubled three times, halved once.
    torch.testing.assert_close(torch.tensor(own_rows), torch.tensor(rows), rtol=1e-5, atol=0, equal_nan=True)
    assert [row[2] for row in own_rows] == [row[2] for row in rows] and len({row[2] for row in rows}) == 2
    torch.testing.assert_close(flat(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_state_after_a_step_that_amp_leaves_out(fused: bool) -> None:
    model = make_model(torch.float32)
    optimizer = sgd(fused=fused)(model)
    scaler = GradientScaler(4.0, when="delta_ge").attach(optimizer)
    amp = torch.amp.GradScaler("cpu")
    for step in range(3):
        backward(model, step, amp.scale(torch.ones(())) * (math.nan if step == 2 else 1.0))
        before = flat(model)
        amp.step(optimizer)
        amp.update()
    assert torch.equal(flat(model), before)
    assert scaler.steps == (3 if fused else 2)
    if fused:
        assert math.isnan(read(scaler)[1]) and read(scaler)[2] == 1.0
    assert math.isfinite(scaler.state_dict()["previous"])


def test_own_clipping_after_measure_equals_max_norm() -> None:
    inside, rows = train(GradientScaler(3.0, max_norm=0.9), sgd())
    model = make_model()
    optimizer = sgd()(model)
    scaler = GradientScaler(3.0).attach(optimizer)
    own_rows = []
    for step in range(STEPS):
        backward(model, step)
        sq_norm = scaler.measure()
        nn.utils.clip_grad_norm_(model.parameters(), 0.9)
        optimizer.step()
        own_rows.append(read(scaler))
        assert own_rows[-1][0] == sq_norm
    # torch divides by the norm plus 1e-6.
    torch.testing.assert_close(flat(model), inside, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(own_rows), torch.tensor(rows), rtol=1e-4, atol=0, equal_nan=True)


def test_a_measurement_is_used_once() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = GradientScaler(2.0).attach(optimizer)
    norms = []
    for gradient, measures in ((3.0, True), (5.0, False), (1.0, True)):
        parameter.grad = torch.tensor([gradient])
        if measures:
            scaler.measure()
            parameter.grad /= 10
        optimizer.step()
        norms.append(read(scaler)[0])
    assert norms == [9.0, 25.0, 1.0]


def test_a_grad_scale_of_the_users_own_is_heeded_and_kept() -> None:
    model = make_model(torch.float32)
    optimizer: Any = sgd(fused=True)(model)
    scaler = GradientScaler(4.0, when="always").attach(optimizer)
    expected, rows = train(GradientScaler(4.0, when="always"), sgd(fused=True), torch.float32)
    optimizer.grad_scale = own = torch.tensor(8.0)
    for step in range(STEPS):
        backward(model, step, 8.0)
        optimizer.step()
        assert optimizer.grad_scale is own
        assert read(scaler)[0] == rows[step][0]
    assert torch.equal(flat(model), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_an_exception_in_a_step_does_not_change_the_next(fused: bool) -> None:
    model = make_model(torch.float32)
    optimizer = sgd(fused=fused)(model)
    scaler = GradientScaler(4.0, when="always").attach(optimizer)

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    backward(model, 0)
    hook = optimizer.register_step_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    hook.remove()
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        assert not hasattr(optimizer, "grad_scale")
    assert scaler.steps == STEPS + 1
    assert torch.equal(flat(model), train(GradientScaler(4.0, when="always"), sgd(fused=fused), torch.float32)[0])


CASES: list[dict[str, Any]] = [
    {"factor": 3.0},
    {"factor": 3.0, "change": "selsync", "threshold": 0.03, "max_norm": 0.9},
    {"factor": 3.0, "when": "random", "duty": 0.5, "seed": 3},
]


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_bit_identical(case: dict[str, Any]) -> None:
    model = make_model()
    optimizer = sgd()(model)
    scaler = GradientScaler(**case).attach(optimizer)

    def go_on(scaler: GradientScaler, optimizer: Optimizer, model: nn.Module, steps: range) -> Iterator[Any]:
        for step in steps:
            backward(model, step)
            optimizer.step()
            yield read(scaler)

    # The window is not full when the run is cut.
    list(go_on(scaler, optimizer, model, range(STEPS)))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), scaler.state_dict()), file)
    expected = list(go_on(scaler, optimizer, model, range(STEPS, 4 * STEPS)))
    file.seek(0)
    states = torch.load(file, weights_only=True)

    again = make_model()
    second = sgd()(again)
    resumed = GradientScaler(**case).attach(second)
    for part, state in zip((again, second, resumed), states, strict=True):
        part.load_state_dict(state)
    assert resumed.steps == STEPS and resumed.scale is not None and resumed.grad_sq_norm is not None
    # A change that is not known is NaN, which equals nothing.
    assert repr(list(go_on(resumed, second, again, range(STEPS, 4 * STEPS)))) == repr(expected)
    assert torch.equal(flat(again), flat(model))
    assert {row[2] for row in expected} == {1.0, 3.0}


def test_selsync_sees_every_parameter() -> None:
    """Sums of the layers' norms: 3 + 4 for as long as the window takes to fill, then 6 + 8."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scaler = GradientScaler(2.0, change="selsync").attach(optimizer)
    for times in (1.0,) * 25 + (2.0,):
        if times == 2.0:
            assert math.isnan(read(scaler)[1]) and read(scaler)[2] == 1.0, "not known, not scaled"
        for parameter, norm in zip(parameters, (3.0, 4.0), strict=True):
            parameter.grad = torch.tensor([norm * times])
        optimizer.step()
    # From 7 to (14 + 7 (0.99 + ... + 0.99^24)) / (1 + ... + 0.99^24), which is above the threshold of 0.02.
    assert read(scaler) == pytest.approx((100.0, 0.01 / (1 - 0.99**25), 2.0))


def test_a_state_with_another_window_is_refused() -> None:
    plain, smooth = GradientScaler(2.0), GradientScaler(2.0, change="selsync")
    longer = smooth.state_dict() | {"window": torch.zeros(2, 25)}
    for scaler, state in ((plain, smooth.state_dict()), (smooth, plain.state_dict()), (smooth, longer)):
        with pytest.raises(ValueError, match="not the state of a GradientScaler with this `change`"):
            scaler.load_state_dict(state)


def test_the_norm_is_what_the_ranks_agree_on() -> None:
    def halved(norms: torch.Tensor) -> torch.Tensor:
        return norms / 2

    def halve(norms: torch.Tensor) -> None:
        norms /= 2

    for change in ("squared_norm", "selsync"):
        for agree in (halved, halve):
            parameter = nn.Parameter(torch.zeros(1))
            optimizer = torch.optim.SGD([parameter], lr=1.0)
            scaler = GradientScaler(2.0, change=change, max_norm=1.0, agree=agree).attach(optimizer)
            parameter.grad = torch.tensor([math.sqrt(8.0)])
            optimizer.step()
            assert read(scaler)[0] == pytest.approx(4.0)
            assert parameter.item() == pytest.approx(-math.sqrt(8.0) / 2)


def test_nothing_happens_without_a_gradient() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
    scaler = GradientScaler(2.0, when="always").attach(optimizer)
    optimizer.step()
    assert parameter.item() == 1.0
    assert scaler.steps == 0 and scaler.change is scaler.scale is scaler.grad_sq_norm is None
    with pytest.raises(RuntimeError, match="no gradient"):
        scaler.measure()


def test_parameters_without_a_gradient_are_left_out() -> None:
    used, unused = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [unused]}, {"params": [used], "lr": 0.5}], lr=1.0)
    GradientScaler(2.0, when="always").attach(optimizer)
    used.grad = torch.tensor([3.0])
    optimizer.step()
    assert (used.item(), unused.item()) == (-3.0, 0.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"factor": 0.0}, "factor=0.0: expected a number above 0"),
        ({"factor": math.inf}, "factor=inf: "),
        ({"factor": True}, "factor=True: "),
        ({"factor": "4"}, "factor='4': "),
        ({"threshold": -0.1}, "threshold=-0.1: expected a number of at least 0"),
        ({"threshold": math.nan}, "threshold=nan: "),
        ({"when": "sometimes"}, "when='sometimes': expected one of delta_ge, delta_lt, always, never, random"),
        ({"change": "norm"}, "change='norm': expected one of log_ratio, selsync, squared_norm"),
        # They need more than norms: the epoch, and the noise scale.
        ({"change": "accordion"}, "change='accordion': expected one of log_ratio, selsync, squared_norm"),
        ({"change": "noise_scale"}, "change='noise_scale': expected one of log_ratio, selsync, squared_norm"),
        ({"when": "random"}, "duty=None: expected a share from 0 to 1 with when='random'"),
        ({"when": "random", "duty": 1.5}, "duty=1.5: "),
        ({"duty": 0.5}, "duty=0.5: expected none without when='random'"),
        ({"max_norm": 0}, "max_norm=0: expected a number above 0, or None"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"seed": 0.5}, "seed=0.5: "),
        ({"agree": 1}, "agree=1: expected a function of a tensor, or None"),
    ],
)
def test_wrong_values(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        GradientScaler(**{"factor": 4.0, **values})
    assert f"GradientScaler: {text}" in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_uses() -> None:
    model = make_model()
    optimizer = sgd()(model)
    scaler = GradientScaler(4.0)
    with pytest.raises(RuntimeError, match="attach\\(\\) comes first"):
        scaler.measure()
    with pytest.raises(ValueError, match="takes a torch optimizer, not Sequential"):
        scaler.attach(model)  # type: ignore[arg-type]
    scaler.attach(optimizer)
    with pytest.raises(RuntimeError, match="attached already"):
        scaler.attach(sgd()(model))
    with pytest.raises(RuntimeError, match="has a GradientScaler already"):
        GradientScaler(4.0).attach(optimizer)
    with pytest.raises(ValueError, match="not the state of a GradientScaler"):
        scaler.load_state_dict({"steps": 1})
    for call in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(RuntimeError, match="step\\(closure\\)"):
            call()
    assert scaler.steps == 0


def test_sparse_gradient() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    GradientScaler(4.0).attach(optimizer)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"dense gradients; one of shape \(4, 2\) is torch\.sparse_coo"):
        optimizer.step()


def test_detached() -> None:
    model = make_model()
    optimizer = sgd()(model)
    scaler = GradientScaler(4.0, when="always").attach(optimizer)
    backward(model, 0)
    optimizer.step()
    scaler.detach()
    scaler.detach()
    backward(model, 1)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert scaler.steps == 1
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    scaler.attach(optimizer)
    optimizer.step()
    assert scaler.steps == 2


def test_warns_where_the_factor_hardly_acts() -> None:
    # timm needs torchvision, which may need help.
    from hpclbfl.core.vision import torchvision  # noqa: F401, I001
    from timm.optim import Lamb, Lars

    mine = type("Mine", (torch.optim.Adam,), {})
    makers: list[tuple[Any, str | None]] = [(torch.optim.Adam, "Adam"), (torch.optim.AdamW, "AdamW"), (mine, "Adam")]
    for make, name in [*makers, (Lamb, "Lamb"), (Lars, "Lars"), (torch.optim.SGD, None)]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            GradientScaler(4.0).attach(make(make_model().parameters(), lr=0.1))
        assert [str(w.message).split()[0] for w in caught] == ([] if name is None else [name])
        assert all(w.filename == __file__ for w in caught)


def test_random_gate_is_the_seeds() -> None:
    def scales(seed: int) -> list[float]:
        return [row[2] for row in train(GradientScaler(2.0, when="random", duty=0.5, seed=seed), sgd())[1]]

    assert scales(0) == scales(0) != scales(1)


def test_import_loads_only_what_is_needed() -> None:
    program = (
        "import sys, hpclbfl; first = 'torch' in sys.modules; hpclbfl.GradientScaler(4.0)\n"
        "own = sorted({n.split('.')[1] for n in sys.modules if n.startswith('hpclbfl.')})\n"
        "others = [n for n in ('pydantic', 'h5py', 'typer', 'horovod', 'torchvision', 'timm') if n in sys.modules]\n"
        "print(first, own, others)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False ['config', 'core', 'gradients'] ['pydantic']"
    with pytest.raises(AttributeError, match="no attribute 'GradientScalar'"):
        hpclbfl.GradientScalar  # type: ignore[attr-defined] # noqa: B018
