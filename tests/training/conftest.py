from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def diagnostics(terminal: None) -> None:
    """What is told goes to standard error here."""
