import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from hpclbfl.config.components import DATASETS
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.vision import torchvision
from hpclbfl.data.datasets import Dataset, limited, load_dataset
from hpclbfl.data.packed import PackedFile, write_packed
from hpclbfl.data.sets.digits import DIGITS
from hpclbfl.data.splits import ArrayImages, Split
from tests.components import config_of
from tests.data.conftest import png

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10.h5"


def test_digits_need_no_path() -> None:
    dataset = load_dataset(config_of(DATASETS, name="digits"))
    assert dataset.classes == tuple("0123456789")
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    train, test = (np.bincount(split.labels, minlength=10) for split in (dataset.train, dataset.test))
    assert np.abs(test / (train + test) - 0.2).max() < 0.003
    image = np.asarray(dataset.train.image(0))
    assert image.shape == (8, 8, 3) and image.max() > 200 and np.array_equal(image[..., 0], image[..., 2])
    assert DIGITS.stat().st_size < 1e6


@pytest.mark.skipif(not CIFAR10.is_file(), reason=f"{CIFAR10} is not there: CIFAR-10 is not part of the repository")
def test_cifar10_as_a_packed_file() -> None:
    dataset = load_dataset(config_of(DATASETS, name="packed", path=str(CIFAR10)))
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (50_000, 10_000, 10)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert dataset.classes[0] == "airplane"
    assert dataset.train.image(49_999).size == (32, 32)
    part = load_dataset(config_of(DATASETS, name="packed", path=str(CIFAR10), limit=1000))
    assert np.bincount(part.train.labels).tolist() == [100] * 10
    assert np.bincount(part.test.labels).tolist() == [20] * 10
    assert part.fingerprint == dataset.fingerprint


def test_packed(packed_path: Path) -> None:
    dataset = load_dataset(config_of(DATASETS, name="packed", path=str(packed_path)))
    assert dataset.classes == ("ant", "bee", "cat", "dog")
    assert dataset.train.encoded(3) == png(3) and dataset.test.labels.tolist() == [0, 1, 2, 3] * 3
    with PackedFile(packed_path) as file:
        assert dataset.fingerprint == file.fingerprint()


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError) as error:
        config_of(DATASETS, name="cifra10")
    assert str(error.value) == (
        "a test: data set.name: 'cifra10' is not known: did you mean 'cifar10'? known are caltech101, cifar10, "
        "cifar100, digits, food101, imagefolder, packed"
    )


@pytest.mark.parametrize("name", ["packed", "imagefolder", "cifar10", "caltech101"])
def test_path_is_needed(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.path: missing: '{name}' needs "):
        load_dataset(config_of(DATASETS, name=name))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "caltech101", "food101"])
def test_missing_sets_say_how_to_fetch_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}: {name} is missing .*set data.download: true to fetch it"):
        load_dataset(config_of(DATASETS, name=name, path=str(tmp_path)))
    with pytest.raises(DataError, match=r"absent: no such folder: set data.download: true to fetch"):
        load_dataset(config_of(DATASETS, name=name, path=str(tmp_path / "absent")))


def test_packed_file_without_a_test_split(tmp_path: Path) -> None:
    path = tmp_path / "half.h5"
    write_packed(path, ["a"], {"train": [(png(0), 0)]})
    with pytest.raises(DataError, match=r"half.h5: has no split test: a packed set needs train and test"):
        load_dataset(config_of(DATASETS, name="packed", path=str(path)))
    write_packed(path, ["a"], {"train": [(png(0), 0)], "test": []})
    with pytest.raises(DataError, match=r"half.h5: the test split is empty"):
        load_dataset(config_of(DATASETS, name="packed", path=str(path)))


def test_unreadable_image_in_a_packed_file(packed_path: Path) -> None:
    with h5py.File(packed_path, "a") as file:
        begin, end = file["train/offsets"][5:7]
        file["train/encoded"][begin:end] = 0
        begin, end = file["train/offsets"][7:9]
        file["train/encoded"][begin + 60 : end] = 0
        del file.attrs["fingerprint"]
    dataset = load_dataset(config_of(DATASETS, name="packed", path=str(packed_path)))
    for index in (5, 7):
        with pytest.raises(DataError, match=rf"^{packed_path}: train image {index}: not a readable image: "):
            dataset.train.image(index)
    dataset.train.image(6)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_imagefolder(image_folder: Callable[..., Path], test_name: str) -> None:
    root = image_folder(test_name)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    dataset = load_dataset(config_of(DATASETS, name="imagefolder", path=str(root)))
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert dataset.train.image(0).size == (12, 9)


def test_imagefolder_faults(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = image_folder()
    config = config_of(DATASETS, name="imagefolder", path=str(root))
    (root / "test" / "emu").mkdir()
    with pytest.raises(DataError, match=r"test/emu: no images in it"):
        load_dataset(config)
    (root / "test" / "emu" / "0.png").write_bytes(png(0))
    with pytest.raises(DataError, match=r"train/ has 2 classes and test/ 3, .*in one alone: emu"):
        load_dataset(config)
    with pytest.raises(DataError, match=r"no folder train/ in it"):
        load_dataset(config_of(DATASETS, name="imagefolder", path=str(tmp_path)))


def test_unreadable_and_vanished_image_files(image_folder: Callable[..., Path]) -> None:
    root = image_folder()
    broken = root / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:80])
    dataset = load_dataset(config_of(DATASETS, name="imagefolder", path=str(root)))
    with pytest.raises(DataError, match=rf"^{broken}: not a readable image: .*: replace the file"):
        dataset.train.image(1)
    broken.unlink()
    with pytest.raises(DataError, match=rf"^{broken}: cannot be read: No such file"):
        dataset.train.image(1)


def test_grey_and_palette_images_become_rgb(image_folder: Callable[..., Path]) -> None:
    root = image_folder()
    for index, mode in enumerate(("L", "P", "RGBA")):
        Image.new(mode, (4, 4)).save(root / "train" / "cat" / f"{index}.png")
    dataset = load_dataset(config_of(DATASETS, name="imagefolder", path=str(root)))
    assert [dataset.train.image(i).mode for i in range(3)] == ["RGB"] * 3


def dataset_of(train: list[int], test: list[int]) -> Dataset:
    def split(labels: list[int]) -> Split:
        return Split.of(ArrayImages(np.zeros((len(labels), 2, 2, 3), np.uint8), "zeros"), labels)

    return Dataset("x", ("a", "b", "c"), split(train), split(test))


def test_limit_is_even_over_classes_and_keeps_the_order() -> None:
    part = limited(dataset_of([0, 0, 0, 0, 1, 2, 2, 0, 2, 2], [0, 1, 2, 0, 1]), 6)
    assert part.train.indices.tolist() == [0, 1, 2, 4, 5, 6]  # class 1 has no more than one
    assert part.test.indices.tolist() == [0, 1, 2]
    assert limited(dataset_of([0, 1], [0]), 5).whole is None
    assert len(limited(dataset_of([0] * 100, [0, 0]), 1).test) == 1


def test_downloads_once_and_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []

    class CIFAR10:
        def __init__(self, root: Path, train: bool, download: bool = False) -> None:
            calls.append("download" if download else "open")
            self.classes = ["a", "b"]
            self.data, self.targets = np.zeros((4, 32, 32, 3), np.uint8), [0, 1, 0, 1]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR10)
    config = config_of(DATASETS, name="cifar10", path=str(tmp_path), download=True)
    dataset = load_dataset(config, wait=lambda: calls.append("wait"))
    assert calls == ["download", "download", "wait", "open", "open"]
    assert dataset.classes == ("a", "b") and dataset.train.image(3).size == (32, 32)
    assert dataset.fingerprint == load_dataset(config).fingerprint
    calls.clear()
    load_dataset(config, is_downloader=False, wait=lambda: calls.append("wait"))
    assert calls == ["wait", "open", "open"]


def test_failed_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(DataError, match=rf"^{tmp_path}: cifar100 cannot be downloaded: no route to host"):
        load_dataset(config_of(DATASETS, name="cifar100", path=str(tmp_path), download=True))


def test_caltech101_splits_every_class_80_to_20(tmp_path: Path) -> None:
    for name, count in (("BACKGROUND_Google", 3), ("Faces", 10), ("ant", 5)):
        folder = tmp_path / "caltech101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("L", (20, 10)).save(folder / f"image_{number:04d}.jpg")
    config = config_of(DATASETS, name="caltech101", path=str(tmp_path))
    dataset = load_dataset(config)
    assert dataset.classes == ("Faces", "ant")
    assert np.bincount(dataset.train.labels).tolist() == [8, 4] and np.bincount(dataset.test.labels).tolist() == [2, 1]
    assert not set(dataset.train.indices) & set(dataset.test.indices)
    assert np.array_equal(dataset.test.indices, load_dataset(config).test.indices)
    assert dataset.train.image(0).mode == "RGB"


def test_food101(tmp_path: Path) -> None:
    root = tmp_path / "food-101"
    (root / "meta").mkdir(parents=True)
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        names = {name: [f"{name}/{number}" for number in numbers] for name in ("pie", "ramen")}
        (root / "meta" / f"{split}.json").write_text(json.dumps(names))
        for paths in names.values():
            for path in paths:
                (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 10)).save(root / "images" / f"{path}.jpg")
    dataset = load_dataset(config_of(DATASETS, name="food101", path=str(tmp_path)))
    assert dataset.classes == ("pie", "ramen")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1] and dataset.test.labels.tolist() == [0, 1]
    assert dataset.test.image(1).size == (20, 10)
