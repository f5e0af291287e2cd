"""Packing: any image set or folder -> one packed file. `python -m hpclbfl.data.pack digits` remakes the shipped set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hpclbfl.config.sections import DataConfig, ImageDataConfig
from hpclbfl.core.errors import ConfigError, DataError, HpclbflError
from hpclbfl.core.files import make_folder, read_begin
from hpclbfl.core.h5library import HDF5_SIGNATURE
from hpclbfl.core.text import say_error
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.images import encode_png, holds_several
from hpclbfl.data.packed import write_packed
from hpclbfl.data.sets.digits import DIGITS
from hpclbfl.data.splits import Split

_DIGITS_TEST_SHARE = 0.2


def pack(config: DataConfig, out: Path) -> str:
    """Write the set that a `data` section names as a packed file, cut by `limit` where that is set.

    Image files keep their bytes; sets that come as arrays become PNG, lossless. Every image is decoded once, so that
    a damaged one is found now and not in the middle of a run.

    Args:
        config: the section.
        out: the file; its folder is made. A packed file of that name is replaced once the new one is whole.

    Returns:
        A remark about the set to print, one line: files left out, and files of several pictures; or empty.

    Raises:
        ConfigError: a path that is missing, or a set that is not one of images.
        DataError: the set cannot be read, or `out` is one of its files, or something that is no packed file.
        EnvironmentFault: the file cannot be written.
    """
    dataset = load_dataset(config)
    train, test = dataset.train, dataset.test
    if not (isinstance(config, ImageDataConfig) and isinstance(train, Split) and isinstance(test, Split)):
        raise ConfigError(f"data pack: {config.title} is no set of images: a packed file holds nothing else")
    _check_target(out, config)
    if not out.parent.is_dir():
        make_folder(out.parent)
    several = [0]
    splits = {"train": _checked(train, several), "test": _checked(test, several)}
    write_packed(out, dataset.classes, splits)
    notes = [dataset.note] if dataset.note else []
    if several[0]:
        one = several[0] == 1
        notes.append(
            f"{several[0]} {'image holds' if one else 'images hold'} several pictures (animations, pages), "
            f"the first {'' if one else 'of each '}is used"
        )
    return "; ".join(notes)


def _check_target(out: Path, config: ImageDataConfig) -> None:
    """Refuse to write to `out` if that would destroy a file of the set, or anything that is not a packed file."""
    if config.holds(out):
        raise DataError(f"{out}: lies among the images that are to be packed: give another place")
    if not os.path.lexists(out):
        return
    if out.exists() and config.source is not None and out.samefile(config.source):
        raise DataError(f"{out}: is the set that is to be packed: give another name")
    if out.is_dir():
        raise DataError(f"{out}: is a folder: give the name of a file in it")
    try:
        begin = read_begin(out, len(HDF5_SIGNATURE))
    except FileNotFoundError:
        raise DataError(f"{out}: is a link to nowhere: remove it, or give another name") from None
    if begin and begin != HDF5_SIGNATURE:
        raise DataError(f"{out}: is there already and is no packed file: remove it, or give another name")


def _checked(split: Split, several: list[int]) -> Iterator[tuple[bytes, int]]:
    """Bytes and label of every image; those that hold several pictures are counted in `several[0]`."""
    for index, label in enumerate(split.labels.tolist()):
        split.image(index)
        data = split.encoded(index)
        several[0] += holds_several(data)
        yield data, label


def pack_digits(out: Path | str = DIGITS) -> None:
    """Write scikit-learn's handwritten digits (8x8, grey 0 to 16) as RGB PNGs, 80/20 per class; always the same file.

    Raises:
        DataError: scikit-learn is not installed, or the file cannot be written.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError("digits: made from scikit-learn's, which is not installed: pip install scikit-learn") from error

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    rng = np.random.Generator(np.random.Philox(0))
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        in_test[members[: round(_DIGITS_TEST_SHARE * len(members))]] = True

    def images(indices: np.ndarray) -> Iterator[tuple[bytes, int]]:
        for index in indices:
            yield encode_png(Image.fromarray(np.repeat(grey[index][:, :, None], 3, axis=2))), int(labels[index])

    splits = {"train": images(np.flatnonzero(~in_test)), "test": images(np.flatnonzero(in_test))}
    write_packed(out, [str(digit) for digit in range(10)], splits)


def main(arguments: list[str]) -> int:
    """`digits [OUT]`: remake the digits."""
    if not arguments or arguments[0] != "digits" or len(arguments) > 2:
        say_error("usage: python -m hpclbfl.data.pack digits [OUT]")
        return 2
    try:
        pack_digits(*arguments[1:])
    except HpclbflError as error:
        say_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
