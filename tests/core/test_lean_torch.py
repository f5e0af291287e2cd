"""torch without its compiler, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAD = """
import sys
from hpclbfl.core.lean_torch import defer_compiler
defer_compiler()
import torch
COMPILER = "torch._dynamo.symbolic_convert"
net = torch.nn.Linear(3, 2)
"""
STEPS = """
optimizer = torch.optim.{name}(net.parameters(), lr=0.1)
before = net.weight.detach().clone()
for _ in range(2):
    optimizer.zero_grad()
    net(torch.ones(4, 3)).sum().backward()
    optimizer.step()
assert not torch.equal(net.weight, before)
torch.optim.{name}(net.parameters(), lr=0.1).load_state_dict(optimizer.state_dict())
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_optimizers_do_without_the_compiler(name: str) -> None:
    run(STEPS.format(name=name) + "assert COMPILER not in sys.modules")


@pytest.mark.slow
def test_a_compiled_net_is_compiled() -> None:
    run(
        STEPS.format(name="SGD")
        + """
compiled = torch.compile(net, backend="eager")
assert torch.equal(compiled(torch.ones(4, 3)), net(torch.ones(4, 3)))
assert COMPILER in sys.modules
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""
        + STEPS.format(name="Adam")
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", ["import torch._dynamo.config as found", "from torch._dynamo import config as found"])
def test_its_modules_can_be_imported(line: str) -> None:
    run(f"{line}\nassert found.__name__ == 'torch._dynamo.config' and COMPILER in sys.modules")


@pytest.mark.slow
def test_a_function_of_the_users_is_kept_from_the_compiler() -> None:
    run(
        """
@torch._dynamo.disable
def kept(x):
    return x + 1

@torch.compile(backend="eager")
def compiled(x):
    return kept(x) * 2

assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 4.0))
assert COMPILER in sys.modules and kept(torch.ones(1)).item() == 2
"""
    )


def test_a_compiler_that_is_there_stays() -> None:
    run(
        "import torch._dynamo\nreal = sys.modules['torch._dynamo']\ndefer_compiler()\n"
        "assert sys.modules['torch._dynamo'] is real"
    )


@pytest.mark.slow
def test_torchvisions_nets_do_without_the_compiler() -> None:
    run(
        """
from hpclbfl.core.vision import torchvision
net = torchvision.models.resnet18(num_classes=3)
torch.optim.SGD(net.parameters(), lr=0.1)
assert COMPILER not in sys.modules
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False)
assert COMPILER in sys.modules
import torch._dynamo.utils as utils
assert utils.is_compile_supported is not is_compile_supported and utils.__file__
"""
    )
