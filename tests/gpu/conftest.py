from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def any_kernels() -> Iterator[None]:
    """A deterministic job sets torch for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
