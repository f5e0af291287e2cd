"""A folder of images: train/CLASS/ and test/CLASS/, with files at any depth below."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hpclbfl.core.errors import DataError
from hpclbfl.data.images import SUFFIXES

_KINDS_TOLD = 5
_HIDDEN, _HIDDEN_FOLDER = "hidden", "hidden folder"


class Scan(NamedTuple):
    """Contents of one of the two folders."""

    classes: tuple[str, ...]
    """Names of its folders, sorted."""
    files: list[Path]
    """Image files, by class and then by name."""
    labels: list[int]
    left_out: Counter[str]
    """Files that are no images, by their ending; hidden ones (`._photo.jpg`) whatever theirs, and hidden folders."""


def scan_both(root: Path) -> tuple[Scan, Scan]:
    """Scan train/ and test/ (or val/).

    Raises:
        DataError: one is missing, a class has no images or a name that is no UTF-8, or their classes differ.
    """
    train_folder, test_folder = _existing(root, "train"), _existing(root, "test", "val")
    train, test = scan(train_folder), scan(test_folder)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{root}: {train_folder.name}/ has {len(train.classes)} classes and {test_folder.name}/ "
            f"{len(test.classes)}, they must be the same; in one alone: {', '.join(odd[:5])}"
        )
    return train, test


def scan(folder: Path) -> Scan:
    """Find the classes of a folder and their images. Hidden files and folders are left out, links are not entered."""
    with os.scandir(folder) as entries:
        inside = sorted((entry.name, entry.is_dir()) for entry in entries)
    classes = tuple(name for name, is_folder in inside if is_folder and not name.startswith("."))
    left_out = Counter(_kind(name) for name, is_folder in inside if not is_folder)
    left_out[_HIDDEN_FOLDER] += sum(is_folder and name.startswith(".") for name, is_folder in inside)
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not _is_utf8(name):
            raise DataError(f"{folder / name}: the name of a class is no UTF-8: rename the folder")
        found = []
        for parent, folders, names in os.walk(folder / name):
            left_out[_HIDDEN_FOLDER] += sum(inner.startswith(".") for inner in folders)
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            for file in names:
                kind = _kind(file)
                if kind in SUFFIXES:
                    found.append(Path(parent, file))
                else:
                    left_out[kind] += 1
        if not found:
            raise DataError(f"{folder / name}: no images in it ({', '.join(sorted(SUFFIXES))})")
        files += sorted(found)
        labels += [label] * len(found)
    return Scan(classes, files, labels, left_out)


def left_out_line(root: Path, left_out: Counter[str]) -> str:
    """A line that says how many files are left out; empty if none are."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count} {kind}" for kind, count in ordered if count]
    if not kinds:
        return ""
    more = [f"{len(kinds) - _KINDS_TOLD} more kinds"] if len(kinds) > _KINDS_TOLD else []
    return f"{root}: left out, no images: {', '.join(kinds[:_KINDS_TOLD] + more)}"


def _existing(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"{root}: no folder {'/ or '.join(names)}/ in it: an image folder holds train/CLASS/ and test/CLASS/"
    )


def _kind(name: str) -> str:
    return _HIDDEN if name.startswith(".") else Path(name).suffix.lower() or "without ending"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
