from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.config.components import DATASETS
from hpclbfl.core.errors import DataError
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.frames import Frames, statistics
from hpclbfl.data.loaders import Loaders, make_loaders
from tests.components import config_of
from tests.data.conftest import png

CPU = torch.device("cpu")


def loaders(path: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Loaders:
    name = "imagefolder" if path.is_dir() else "packed"
    data = config_of(DATASETS, name=name, path=str(path), **config)
    return make_loaders(load_dataset(data), data, seed, CPU, dtype)


def pixels(path: Path, split: str = "train") -> np.ndarray:
    dataset = load_dataset(config_of(DATASETS, name="packed", path=str(path)))
    images = getattr(dataset, split)
    return np.stack([np.asarray(images.image(i)) for i in range(len(images))]).transpose(0, 3, 1, 2)


def test_normalisation(packed_path: Path) -> None:
    train, test = loaders(packed_path, torch.float64)
    raw = pixels(packed_path) / 255
    mean, std = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3))
    assert np.allclose(train.statistics, [mean, std], rtol=1e-12)
    images, labels = train.batch(np.arange(40), np.zeros(40, np.int64))
    assert images.dtype == torch.float64 and labels.dtype == torch.int64 and train.input_shape == (3, 8, 8)
    assert labels.tolist() == [0, 1, 2, 3] * 10
    expected = (raw - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(images.numpy(), expected, atol=1e-12)
    images, _ = test.batch(np.array([5, 2]), np.zeros(2, np.int64))  # with the training split's statistics
    raw = pixels(packed_path, "test")[[5, 2]] / 255
    assert np.allclose(images.numpy(), (raw - mean[:, None, None]) / std[:, None, None], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(packed_path: Path, dtype: torch.dtype) -> None:
    exact, _ = loaders(packed_path, torch.float64)
    other, _ = loaders(packed_path, dtype)
    samples, passes = np.arange(9), np.zeros(9, np.int64)
    images = other.batch(samples, passes)[0]
    assert images.dtype == dtype
    error = (images.double() - exact.batch(samples, passes)[0]).abs().max().item()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("resize", [None, 12, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_changes_nothing(packed_path: Path, augment: str, resize: int | None, workers: int) -> None:
    memory = loaders(packed_path, augment=augment, resize=resize)
    fly = loaders(packed_path, augment=augment, resize=resize, in_memory=False, workers=workers)
    rng = np.random.default_rng(0)
    assert memory.train.in_memory and not fly.train.in_memory
    assert memory.train.statistics == fly.train.statistics and memory.train.input_shape == fly.train.input_shape
    for a, b in zip(memory, fly, strict=True):
        for size in (1, 7, 12, 3):
            samples, passes = rng.integers(0, 12, size), rng.integers(0, 3, size)
            for augmented in (True, False):
                x, y = (loader.batch(samples, passes, augment=augmented) for loader in (a, b))
                assert torch.equal(x[0], y[0]) and torch.equal(x[1], y[1])
    fly.train.close()


def test_batches_are_independent_tensors_and_keyed_by_sample(packed_path: Path) -> None:
    train, _ = loaders(packed_path, augment="crop_flip", seed=4)
    samples, passes = np.arange(20), np.full(20, 2)
    whole = train.batch(samples, passes)[0]
    kept = whole.clone()
    assert torch.equal(train.batch(samples[5:8], passes[5:8])[0], kept[5:8])
    for _ in range(3):
        train.batch(samples + 20, passes)
    assert torch.equal(whole, kept)
    assert not torch.equal(train.batch(samples, passes + 1)[0], kept)
    assert not torch.equal(train.batch(samples, passes, augment=False)[0], kept)
    assert not torch.equal(loaders(packed_path, augment="crop_flip", seed=5).train.batch(samples, passes)[0], kept)


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop_flip"])
def test_prefetch_changes_nothing(image_folder: Callable[..., Path], augment: str) -> None:
    root = image_folder()
    plain, ahead = (loaders(root, augment=augment, resize=70, workers=w).train for w in (0, 2))
    assert plain.input_shape == (3, 70, 70) and not plain.in_memory
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 6, size), rng.integers(0, 9, size)) for size in (4, 1, 6, 5, 3, 9)]
    ahead.prefetch(*batches[3])  # not what is asked for next: thrown away
    for i, batch in enumerate(batches):
        expected, got = plain.batch(*batch), ahead.batch(*batch)
        assert torch.equal(expected[0], got[0]) and torch.equal(expected[1], got[1])
        if i + 1 < len(batches):
            ahead.prefetch(*batches[i + 1])
            if i == 2:
                ahead.prefetch(*batches[0], augment=False)
    ahead.close()


def test_errors_in_threads_surface_in_batch(image_folder: Callable[..., Path]) -> None:
    root = image_folder()
    broken = root / "train" / "dog" / "0.png"
    broken.write_bytes(b"no image")
    data = config_of(DATASETS, name="imagefolder", path=str(root), resize=70, in_memory=False, workers=2)
    dataset = load_dataset(data)
    with pytest.raises(DataError, match=r"dog/0.png: not a readable image"):
        make_loaders(dataset, data, 0, CPU, torch.float32)
    broken.write_bytes(png(0))
    train, _ = make_loaders(dataset, data, 0, CPU, torch.float32)
    broken.write_bytes(b"no image")
    samples, passes = np.arange(6), np.zeros(6, np.int64)
    train.prefetch(samples, passes)
    with pytest.raises(DataError, match=r"dog/0.png: not a readable image"):
        train.batch(samples, passes)
    train.batch(samples[:3], passes[:3])
    train.close()


@pytest.mark.parametrize("in_memory", [None, False])
def test_images_of_other_sizes(image_folder: Callable[..., Path], in_memory: bool | None) -> None:
    root = image_folder()
    (root / "train" / "dog" / "1.png").write_bytes(png(1, 30, 20))
    message = r"dog/1.png: 30x20 px, but the first training image has 12x9: set data.resize"
    with pytest.raises(DataError, match=message):
        loaders(root, in_memory=in_memory)
    train, test = loaders(root, resize=16, in_memory=in_memory)
    assert train.input_shape == test.input_shape == (3, 16, 16)


def test_test_images_of_another_size(image_folder: Callable[..., Path]) -> None:
    root = image_folder()
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(png(1, 30, 20))
    with pytest.raises(DataError, match=r"test/cat/0.png: 30x20 px, but the first training image has 12x9"):
        loaders(root)


def test_resized_crops_are_cut_on_the_fly(packed_path: Path) -> None:
    train, test = loaders(packed_path, augment="resized_crop_flip", resize=8)
    assert not train.in_memory and test.in_memory
    samples, passes = np.arange(4), np.zeros(4, np.int64)
    plain = loaders(packed_path, resize=8).train
    assert torch.equal(train.batch(samples, passes, augment=False)[0], plain.batch(samples, passes)[0])
    assert not torch.equal(train.batch(samples, passes)[0], plain.batch(samples, passes)[0])
    train.close()


def test_statistics_without_contrast_divide_by_one(image_folder: Callable[..., Path]) -> None:
    root = image_folder()
    dataset = load_dataset(config_of(DATASETS, name="imagefolder", path=str(root)))
    frames = Frames(dataset.train)
    assert frames.store is not None
    frames.store[:, 0] = 51
    mean, std = statistics(frames)
    assert mean[0] == pytest.approx(0.2) and std[0] == 1.0


def test_empty_batch(packed_path: Path) -> None:
    none = np.zeros(0, np.int64)
    for in_memory in (True, False):
        images, labels = loaders(packed_path, in_memory=in_memory).train.batch(none, none)
        assert images.shape == (0, 3, 8, 8) and labels.shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: pinned staging cannot be tried")
def test_cuda_gives_what_the_cpu_gives(packed_path: Path) -> None:
    data = config_of(DATASETS, name="packed", path=str(packed_path), augment="crop_flip")
    dataset = load_dataset(data)
    cpu, gpu = (make_loaders(dataset, data, 0, device, torch.float32).train for device in (CPU, torch.device("cuda")))
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 40, size), rng.integers(0, 5, size)) for size in (4, 40, 7, 300, 1, 64) * 5]
    on_gpu = [gpu.batch(*batch) for batch in batches]
    for batch, got in zip(batches, on_gpu, strict=True):
        expected = cpu.batch(*batch)
        assert torch.allclose(got[0].cpu(), expected[0], atol=1e-6) and torch.equal(got[1].cpu(), expected[1])
