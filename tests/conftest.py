from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.core.diagnostics import on_terminal
from hpclbfl.data.packed import write_packed

# What a shell starts in the background ignores Ctrl-C and hands that on to its children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is as wide as it needs, also where those who start the tests say how wide their terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Diagnostics go to standard error, as under the command line."""
    with on_terminal():
        yield


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_toy_set(path: Path, num_train: int = 96, num_test: int = 41, side: int = 8, num_classes: int = 4) -> Path:
    """A packed set of noisy images whose brightness in one quarter tells the class; labels take turns."""
    rng = np.random.default_rng(7)

    def images(count: int) -> list[tuple[bytes, int]]:
        made = []
        for i in range(count):
            label = i % num_classes
            pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
            half = side // 2
            row, column = half * (label // 2 % 2), half * (label % 2)
            pixels[row : row + half, column : column + half] += 100
            made.append((_png(pixels), label))
        return made

    write_packed(
        path, [f"quarter{k}" for k in range(num_classes)], {"train": images(num_train), "test": images(num_test)}
    )
    return path


@pytest.fixture(scope="session")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 41 test images of 8 x 8 px in 4 classes."""
    return write_toy_set(tmp_path_factory.mktemp("toy") / "toy.h5")


def make_job(toy_set: Path, **sections: Any) -> JobConfig:
    """A four-client job on the toy set; sections replace its own."""
    values: dict[str, Any] = {
        "name": "toy",
        "clients": 4,
        "precision": "float64",
        # A GPU's fastest kernels give other bits each time.
        "deterministic": torch.cuda.is_available(),
        "data": {"name": "packed", "path": str(toy_set), "augment": "crop_flip"},
        "model": {"name": "resnet8"},
        "optimizer": {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4},
        "batching": {"local_batch_size": 4},
        "stop": {"steps": 20},
        "evaluate": {"every_steps": 10},
    }
    values.update(sections)
    return parse_job(values, "toy.yaml")
