import stat
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.data.packed import PackedFile, evenly_spaced, write_packed
from hpclbfl.data.sets.packed import open_packed
from tests.data.conftest import png


def test_round_trip_keeps_every_byte(tmp_path: Path) -> None:
    images = {"train": [(png(i, 5, 7), i % 2) for i in range(9)], "test": [(b"any bytes", 1)]}
    path = tmp_path / "set.h5"
    write_packed(path, ["näht", "zwei"], {name: iter(split) for name, split in images.items()})
    with PackedFile(path) as file:
        assert file.classes == ("näht", "zwei")
        assert set(file.splits) == {"train", "test"}
        for name, expected in images.items():
            split = file.splits[name]
            assert [(split.encoded(i), int(split.labels[i])) for i in range(len(split))] == expected
            assert [(split.encoded(i)) for i in reversed(range(len(split)))] == [data for data, _ in expected[::-1]]
            assert split.sizes().tolist() == [len(data) for data, _ in expected]


def test_images_larger_than_the_read_ahead(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [(rng.bytes(size), 0) for size in (700_000, 600_000, 5, 3_000_000, 1, 400_000)]
    path = tmp_path / "large.h5"
    write_packed(path, ["a"], {"train": images})
    with PackedFile(path) as file:
        for order in (range(6), reversed(range(6)), (3, 0, 4, 5, 1)):
            for i in order:
                assert file.splits["train"].encoded(i) == images[i][0]


def test_written_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    path.write_bytes(b"before")
    with pytest.raises(DataError, match=r"train image 1: label 2, but there are 2 classes"):
        write_packed(path, ["a", "b"], {"train": [(b"x", 0), (b"x", 2)]})
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    write_packed(path, ["a"], {"train": [(b"x", 0)]})
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(EnvironmentFault, match=r"absent/set.h5: cannot be written: no such file"):
        write_packed(tmp_path / "absent" / "set.h5", ["a"], {})


def test_fingerprint_names_the_content(tmp_path: Path) -> None:
    images = [(png(i), i % 2) for i in range(100)]

    def fingerprint(name: str, classes: list[str], train: list[tuple[bytes, int]]) -> str:
        write_packed(tmp_path / name, classes, {"train": train, "test": images[:2]})
        with PackedFile(tmp_path / name) as file:
            return file.fingerprint()

    first = fingerprint("a.h5", ["a", "b"], images)
    assert fingerprint("elsewhere.h5", ["a", "b"], images) == first
    changed = [
        fingerprint("b.h5", ["a", "c"], images),
        fingerprint("c.h5", ["a", "b"], [(images[0][0], 1), *images[1:]]),
        fingerprint("d.h5", ["a", "b"], images[:-1]),
        fingerprint("e.h5", ["a", "b"], [(png(7777), 0), *images[1:]]),
    ]
    assert len({first, *changed}) == 5


def test_evenly_spaced() -> None:
    assert evenly_spaced(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(100, 4).tolist() == [0, 25, 50, 75]
    assert evenly_spaced(0, 4).tolist() == []


def test_missing_file() -> None:
    with pytest.raises(DataError, match=r"^/nowhere/a.h5: no such file: give data.path a packed file"):
        PackedFile("/nowhere/a.h5")


def test_no_hdf5_file_and_a_truncated_one(tmp_path: Path, packed_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"text.h5: is torn, HDF5 cannot open it \(.*signature not found"):
        PackedFile(text)
    whole = packed_path.read_bytes()
    packed_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"small.h5: is torn, HDF5 cannot open it \(.*truncated.*\): pack it again"):
        PackedFile(packed_path)


def test_other_hdf5_files(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with pytest.raises(DataError, match=r"other.h5: not a packed file: it has no attribute 'classes'"):
        PackedFile(path)
    with h5py.File(path, "a") as file:
        file.attrs["classes"] = ["a"]
    with pytest.raises(DataError, match=r"other.h5: not a packed file: it has no splits"):
        PackedFile(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("offsets", [0, 2, 4], r"split 'train' is torn: 3 offsets for 3 labels, one more is right"),
        ("offsets", [0, 4, 2, 6], r"split 'train' is torn: its offsets do not rise from 0"),
        ("offsets", [1, 2, 4, 6], r"split 'train' is torn: its offsets do not rise from 0"),
        ("offsets", [0, 2, 4, 9], r"split 'train' is torn: offsets end at 9, but it holds 6 bytes"),
        ("labels", [0, 1, 2], r"split 'train' has labels from 0 to 2, but the file names 2 classes"),
        ("labels", [0, -1, 1], r"split 'train' has labels from -1 to 1, but the file names 2 classes"),
        ("labels", None, r"has no 'train/labels': pack it again"),
    ],
)
def test_torn_files(tmp_path: Path, name: str, values: list[int] | None, message: str) -> None:
    path = tmp_path / "torn.h5"
    write_packed(path, ["a", "b"], {"train": [(b"ab", 0), (b"cd", 1), (b"ef", 0)]})
    with h5py.File(path, "a") as file:
        del file["train"][name]
        if values is not None:
            file["train"][name] = np.array(values, dtype=np.int64)
    with pytest.raises(DataError, match=rf"^{path}: {message}"):
        PackedFile(path)


def test_damaged_anywhere_is_reported_or_read_right(packed_path: Path) -> None:
    whole = packed_path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        data = bytearray(whole)
        begin = int(rng.integers(0, 12_000))
        data[begin : begin + 8] = rng.bytes(8)
        packed_path.write_bytes(data)
        try:
            with PackedFile(packed_path) as file:
                for split in file.splits.values():
                    assert [len(split.encoded(i)) for i in range(len(split))] == split.sizes().tolist()
            outcomes.add("read")
        except DataError as error:
            assert str(error).startswith(str(packed_path)) and "\n" not in str(error)
            outcomes.add("reported")
    assert outcomes == {"read", "reported"}


def damage(path: Path, edit: Callable[[h5py.File], None]) -> str:
    """What is said about a packed file once it was edited."""
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(DataError) as caught:
        open_packed("packed", path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_another_label_is_not_taken_for_the_set(packed_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["train/labels"][3] = 0

    assert damage(packed_path, edit) == "is damaged: its content does not have its fingerprint: pack it again"
    with h5py.File(packed_path, "r+") as file:
        del file.attrs["fingerprint"]
    assert open_packed("packed", packed_path).train.labels[3] == 0


def test_a_flipped_bit_in_an_image_is_found(packed_path: Path) -> None:
    content = bytearray(packed_path.read_bytes())
    content[content.index(png(21)) + 70] ^= 1
    packed_path.write_bytes(content)
    with PackedFile(packed_path) as file, pytest.raises(DataError) as caught:
        file.splits["train"].encoded(21)
    assert str(caught.value).startswith(f"{packed_path}: train image 21: is torn, HDF5 cannot read it (")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("train/encoded", np.zeros(4), "'train/encoded' holds 64-bit floats; expected unsigned 8-bit integers"),
        ("train/labels", np.zeros((4, 1), np.int64), "'train/labels' has shape (4, 1); expected (any)"),
        (
            "train/offsets",
            np.zeros(4, np.uint64),
            "'train/offsets' holds unsigned 64-bit integers; ",
        ),
        ("test", h5py.ExternalLink("other.h5", "test"), "'test' is a link to another place, and such links are not"),
        ("extra", h5py.SoftLink("/train"), "'extra' is a link to another place, and such links are not followed"),
    ],
)
def test_parts_that_are_not_ours(packed_path: Path, place: str, value: object, reason: str) -> None:
    def edit(file: h5py.File) -> None:
        if place in file:
            del file[place]
        file[place] = value

    assert damage(packed_path, edit).startswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "attribute 'classes' is not a list of texts: pack it again"),
        ([1, 2], "attribute 'classes' is not a list of texts: pack it again"),
        (np.zeros(0, "S1"), "attribute 'classes' has shape (0,); expected 1 to 100,000 texts: pack it again"),
    ],
)
def test_classes_that_are_not_ours(packed_path: Path, value: object, reason: str) -> None:
    assert damage(packed_path, lambda file: file.attrs.__setitem__("classes", value)) == reason


@pytest.mark.parametrize("name", ["encoded", "offsets", "labels"])
def test_sizes_that_are_only_declared(packed_path: Path, name: str) -> None:
    def edit(file: h5py.File) -> None:
        kind = file[f"train/{name}"].dtype
        del file[f"train/{name}"]
        file.create_dataset(f"train/{name}", (10**12,), kind, chunks=(4096,))

    reason = damage(packed_path, edit)
    assert "declares" in reason if name != "encoded" else "offsets end at" in reason


def test_many_classes_with_long_names(tmp_path: Path) -> None:
    names = [f"{'class ' * 20}{number}" for number in range(9000)]
    write_packed(tmp_path / "a.h5", names, {"train": [(b"x", 8999)], "test": [(b"y", 0)]})
    assert open_packed("packed", tmp_path / "a.h5").classes == tuple(names)
