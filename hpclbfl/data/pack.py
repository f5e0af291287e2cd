"""Packing: any image set or folder -> one packed file. `python -m hpclbfl.data.pack digits` remakes the shipped set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hpclbfl.core.text import say
from hpclbfl.data.datasets import DIGITS, load_dataset
from hpclbfl.data.packed import write_packed
from hpclbfl.data.splits import Split, encode_png
from hpclbfl.errors import DataError, HpclbflError
from hpclbfl.sections import DataConfig

_DIGITS_TEST_SHARE = 0.2


def pack(config: DataConfig, out: Path | str) -> None:
    """Write the set that a `data` section names as a packed file, cut by `limit` where that is set.

    Image files keep their bytes; sets that come as arrays become PNG, lossless. Every image is decoded once, so that
    a damaged one is found now and not in the middle of a run.

    Raises:
        ConfigError: an unknown name, or a path that is missing.
        DataError: the set cannot be read, or the file cannot be written.
    """
    dataset = load_dataset(config)
    write_packed(out, dataset.classes, {"train": _checked(dataset.train), "test": _checked(dataset.test)})


def _checked(split: Split) -> Iterator[tuple[bytes, int]]:
    for index, label in enumerate(split.labels.tolist()):
        split.image(index)
        yield split.encoded(index), label


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
        say("usage: python -m hpclbfl.data.pack digits [OUT]")
        return 2
    try:
        pack_digits(*arguments[1:])
    except HpclbflError as error:
        say(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
