from __future__ import annotations

import numpy as np
import pytest
import torch

from hpclbfl.data.augment import crop_flip
from hpclbfl.data.on_device import DeviceImages, has_room

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (9, 17), (1, 1)])
def test_a_device_gives_the_pixels_of_the_host(height: int, width: int) -> None:
    rng = np.random.default_rng(3)
    store = rng.integers(0, 256, (40, 3, height, width), dtype=np.uint8)
    labels = rng.integers(0, 10, 40).astype(np.int32)
    images = DeviceImages(store, labels, CPU)
    # Enough draws for every offset, with and without a flip.
    samples, passes = rng.integers(0, 40, 2000), rng.integers(0, 50, 2000)
    expected = np.empty((2000, 3, height, width), np.uint8)
    crop_flip(store, samples, passes, 11, expected)
    found, named = images.pick_crop_flip(samples, passes, 11)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), expected)
    assert named.dtype == torch.int64 and np.array_equal(named.numpy(), labels[samples])
    plain, named = images.pick(samples)
    assert np.array_equal(plain.numpy(), store[samples]) and np.array_equal(named.numpy(), labels[samples])


def test_images_stay_on_the_host_where_the_device_has_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 10_000))
    gpu = torch.device("cuda", 0)
    assert has_room(100, gpu) and not has_room(101, gpu) and not has_room(1, CPU)
