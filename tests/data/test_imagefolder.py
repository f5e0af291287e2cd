"""What a folder of images holds, and what is left out of it."""

import os
from collections import Counter

import pytest

from hpclbfl.config.components import DATASETS
from hpclbfl.core.errors import DataError
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.imagefolder import left_out_line, scan
from tests.components import config_of
from tests.data.conftest import png


def load(root):
    return load_dataset(config_of(DATASETS, name="imagefolder", path=str(root)))


def test_dot_files_are_no_images_and_all_that_is_left_out_is_counted(image_folder):
    root = image_folder()
    plain = load(root)
    assert plain.note == ""
    cat = root / "train" / "cat"
    for name in ("._0.png", ".DS_Store", ".hidden.jpg", "Thumbs.db", "a.gif", "b.GIF", "notes.txt", "README"):
        (cat / name).write_bytes(b"")
    (cat / ".cache").mkdir()
    (cat / ".cache" / "0.png").write_bytes(png(1))
    (root / "train" / ".git").mkdir()
    (root / "train" / "labels.csv").write_text("")
    (cat / "folder.png").mkdir()
    (cat / "folder.png" / "deep.PNG").write_bytes(png(9))
    found = load(root)
    assert [path.name for path in found.train.source._files] == ["0.png", "1.png", "2.png", "deep.PNG"] + [
        f"{number}.png" for number in range(3)
    ]
    assert found.note == (
        f"{root}: left out, no images: 3 hidden, 2 .gif, 2 hidden folder, 1 .csv, 1 .db, 2 more kinds"
    )
    (cat / "folder.png" / "deep.PNG").unlink()
    assert load(root).fingerprint == plain.fingerprint


def test_line():
    assert left_out_line("d", Counter({".txt": 1, "hidden folder": 0})) == "d: left out, no images: 1 .txt"
    assert left_out_line("d", Counter({"hidden": 0})) == ""


def test_links(image_folder, tmp_path):
    root = image_folder()
    cat = root / "train" / "cat"
    (cat / "linked.png").symlink_to(root / "train" / "dog" / "0.png")
    (cat / "loop").symlink_to(cat, target_is_directory=True)
    assert [path.name for path in scan(root / "train").files][:4] == ["0.png", "1.png", "2.png", "linked.png"]
    load(root).train.image(3)
    (cat / "round.png").symlink_to(cat / "round.png")
    os.mkfifo(cat / "waits.png")
    found = load(root)
    with pytest.raises(DataError) as caught:
        found.train.image(4)
    assert str(caught.value) == f"{cat / 'round.png'}: cannot be read: Too many levels of symbolic links"
    with pytest.raises(DataError) as caught:
        found.train.image(5)
    assert str(caught.value) == f"{cat / 'waits.png'}: is not a regular file"


def test_names_that_are_no_utf8(image_folder):
    root = image_folder()
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / os.fsdecode(b"\xff.png"))
    load(root).train.image(2)
    (root / "train" / "dog").rename(root / "train" / os.fsdecode(b"d\xff"))
    with pytest.raises(DataError, match="the name of a class is no UTF-8: rename the folder"):
        load(root)
