import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hpclbfl.config.components import DATASETS
from hpclbfl.config.job import JobConfig
from hpclbfl.core.errors import ConfigError, DataError, EnvironmentFault
from hpclbfl.data import info, pack
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.packed import PackedFile, write_packed
from hpclbfl.data.sets.digits import DIGITS
from hpclbfl.data.splits import ArrayImages, Split
from tests.components import config_of
from tests.data.conftest import png


def job(clients: int | None = 10, data: dict[str, Any] | None = None, **partition: Any) -> JobConfig:
    values = {"data": data or {"name": "digits"}, "model": {"name": "resnet18"}, "clients": clients}
    return JobConfig.model_validate({**values, "partition": partition})


def printed(function: Callable[..., None], *arguments: Any) -> str:
    text = StringIO()
    function(*arguments, console=Console(file=text, width=120))
    return text.getvalue()


def test_pack_a_folder_keeps_the_files(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = config_of(DATASETS, name="imagefolder", path=str(image_folder()))
    out = tmp_path / "out.h5"
    pack.pack(folder, out)
    before, after = load_dataset(folder), load_dataset(config_of(DATASETS, name="packed", path=str(out)))
    assert before.classes == after.classes and before.fingerprint == after.fingerprint
    for a, b in ((before.train, after.train), (before.test, after.test)):
        assert np.array_equal(a.labels, b.labels)
        assert [a.encoded(i) for i in range(len(a))] == [b.encoded(i) for i in range(len(b))]


def test_pack_refuses_a_damaged_image(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = image_folder()
    (root / "test" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test/dog/1.png: not a readable image"):
        pack.pack(config_of(DATASETS, name="imagefolder", path=str(root)), tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_arrays_become_lossless_png(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    split = Split.of(ArrayImages(pixels, "array"), [0, 1, 0, 1, 0])
    write_packed(tmp_path / "a.h5", ["a", "b"], {"train": pack._checked(split, [0]), "test": pack._checked(split, [0])})
    packed = load_dataset(config_of(DATASETS, name="packed", path=str(tmp_path / "a.h5")))
    assert all(np.array_equal(np.asarray(packed.train.image(i)), pixels[i]) for i in range(5))


def test_digits_can_be_made_again(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: the digits cannot be made again")
    assert pack.main(["digits", str(tmp_path / "digits.h5")]) == 0
    with PackedFile(tmp_path / "digits.h5") as again, PackedFile(DIGITS) as shipped:
        for name, split in shipped.splits.items():
            other = again.splits[name]
            assert np.array_equal(other.labels, split.labels)
        made, kept = (
            load_dataset(config_of(DATASETS, name="packed", path=str(file.path))) for file in (again, shipped)
        )
    assert all(made.test.image(i).tobytes() == kept.test.image(i).tobytes() for i in range(len(kept.test)))


def test_pack_module_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([]) == 2
    assert "usage:" in capsys.readouterr().err


def test_table_of_clients_and_labels() -> None:
    text = printed(info.print_info, job(kind="labels_per_client", labels=1))
    rows = [
        line.split() for line in text.splitlines() if line.split()[:1] in [[str(c)] for c in range(10)] + [["total"]]
    ]
    assert rows[0] == ["0", "142", *["."] * 9, "142"]
    assert rows[9] == ["9", *["."] * 9, "144", "144"]
    assert rows[10][0] == "total" and rows[10][-1] == "1438"
    assert "digits, labels_per_client: 1438 training samples over 10 clients" in text and "359 test samples" in text


def test_table_of_many_classes_is_a_summary(tmp_path: Path) -> None:
    images = [(png(0), label) for label in range(25) for _ in range(2)]
    write_packed(tmp_path / "many.h5", [f"class {i}" for i in range(25)], {"train": images, "test": images})
    many = job(5, {"name": "packed", "path": str(tmp_path / "many.h5")}, kind="labels_per_client", labels=5)
    rows = printed(info.print_info, many).splitlines()
    assert ["0", "10", "5", "class", "0", "20.0%"] in [line.split() for line in rows]


def test_json() -> None:
    values = json.loads(printed(info.print_info, job(4, kind="quantity", alpha=0.5), True))
    assert np.array(values["counts"]).shape == (4, 10) and np.sum(values["counts"]) == 1438
    assert values["partition"] == "quantity" and values["num_test"] == 359 and len(values["fingerprint"]) == 64


def test_clients_must_be_stated() -> None:
    with pytest.raises(ConfigError, match="clients: state how many"):
        info.print_info(job(None))


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    dirichlet = job(kind="dirichlet", alpha=0.2)
    info.plot(dirichlet, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert min(image.size) > 300
    info.plot(dirichlet, tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert all(f">{title}<" in text for title in ("client", "class", "images"))
    with pytest.raises(ConfigError, match=r"map.jpg: a plot is a .png or an .svg"):
        info.plot(dirichlet, tmp_path / "map.jpg")


def test_packed_info(packed_path: Path) -> None:
    values = json.loads(printed(info.print_packed_info, packed_path, True))
    assert values["splits"]["train"]["num_samples"] == 40
    assert values["splits"]["test"]["label_counts"] == [3, 3, 3, 3]
    text = printed(info.print_packed_info, packed_path)
    assert "8x8 px" in text and "10 to 10" in text and "4 classes: ant, bee, cat, dog" in text
    assert values["fingerprint"] in text


def run(*words: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hpclbfl", "data", *map(str, words)], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_pack_command_tells_what_is_left_out(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = image_folder()
    cat = root / "train" / "cat"
    (cat / "._0.png").write_bytes(b"")
    (cat / "a.gif").write_bytes(b"")
    frames = [Image.new("RGB", (12, 9), colour) for colour in ("red", "blue")]
    frames[0].save(cat / "moves.png", save_all=True, append_images=frames[1:])
    out = tmp_path / "new" / "folder" / "out.h5"
    code, told, said = run("pack", "imagefolder", "--path", root, "--out", out)
    assert (code, told) == (0, f"{out}\n")
    assert said == (
        f"{root}: left out, no images: 1 .gif, 1 hidden; "
        "1 image holds several pictures (animations, pages), the first is used\n"
    )
    assert list(out.parent.iterdir()) == [out]


def test_pack_never_writes_onto_its_input(image_folder: Callable[..., Path], tmp_path: Path, packed_path: Path) -> None:
    root = image_folder()
    hard, soft, other = tmp_path / "hard.h5", tmp_path / "soft.h5", tmp_path / "other.h5"
    hard.hardlink_to(packed_path)
    soft.symlink_to(packed_path)
    (tmp_path / "archive.tar.gz").write_bytes(b"archive")
    (tmp_path / "nowhere.h5").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe.h5")
    image = root / "train" / "cat" / "0.png"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused = "is there already and is no packed file: remove it, or give another name"
    packed, folder = (
        config_of(DATASETS, name="packed", path=str(packed_path)),
        config_of(DATASETS, name="imagefolder", path=str(root)),
    )
    for config, out, reason in (
        (packed, packed_path, "is the set that is to be packed: give another name"),
        (packed, hard, "is the set that is to be packed: give another name"),
        (packed, soft, "is the set that is to be packed: give another name"),
        (packed, image, refused),
        (packed, tmp_path / "archive.tar.gz", refused),
        (packed, tmp_path / "nowhere.h5", "is a link to nowhere: remove it, or give another name"),
        (packed, tmp_path / "pipe.h5", "is not a regular file"),
        (packed, tmp_path, "is a folder: give the name of a file in it"),
        (folder, image, "lies among the images that are to be packed: give another place"),
        (folder, root / "test" / "new.h5", "lies among the images that are to be packed: give another place"),
        (config_of(DATASETS, name="digits"), DIGITS, "is the set that is to be packed: give another name"),
    ):
        with pytest.raises(DataError) as caught:
            pack.pack(config, out)
        assert str(caught.value) == f"{out}: {reason}"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for _ in range(2):
        assert pack.pack(packed, other) == ""
    assert pack.pack(folder, root / "packed.h5") == ""
    assert run("pack", "packed", "--path", packed_path, "--out", soft)[0] == 2


def test_a_pack_that_fails_leaves_the_old_file(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root, out = image_folder(), tmp_path / "out.h5"
    config = config_of(DATASETS, name="imagefolder", path=str(root))
    pack.pack(config, out)
    before = out.read_bytes()
    (root / "test" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        pack.pack(config, out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.h5"]


def test_plot_makes_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    info.plot(job(), tmp_path / "a" / "b" / "map.svg")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"map.svg: cannot be written: file exists"):
        info.plot(job(), tmp_path / "file" / "map.svg")


def test_names_of_classes_are_no_markup(tmp_path: Path) -> None:
    images = [(png(0), label) for label in range(2)]
    write_packed(tmp_path / "a.h5", ["[red]x", "a\x1b[31m"], {"train": images, "test": images})
    text = printed(info.print_packed_info, tmp_path / "a.h5")
    assert "[red]x, a\\x1b[31m" in text and "\x1b[31m" not in text
    named = job(2, {"name": "packed", "path": str(tmp_path / "a.h5")})
    assert "[red]x" in printed(info.print_info, named)
