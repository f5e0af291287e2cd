import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpclbfl.data.packed import write_packed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def png(seed: int, width: int = 8, height: int = 8) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def packed_path(tmp_path: Path) -> Path:
    """40 training and 12 test images of 4 classes, 8x8."""
    path = tmp_path / "small.h5"
    splits = {
        "train": [(png(i), i % 4) for i in range(40)],
        "test": [(png(100 + i), i % 4) for i in range(12)],
    }
    write_packed(path, ["ant", "bee", "cat", "dog"], splits)
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes train/ and test/ with two classes of three and two images."""

    def make(test_name: str = "test", width: int = 12, height: int = 9) -> Path:
        root = tmp_path / "folder"
        for split, count, first in (("train", 3, 0), (test_name, 2, 50)):
            for label, name in enumerate(("cat", "dog")):
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    (folder / f"{i}.png").write_bytes(png(first + 10 * label + i, width, height))
        return root

    return make
