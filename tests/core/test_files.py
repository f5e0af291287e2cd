"""Files are written whole, and never through a link."""

import os
from pathlib import Path

import pytest

from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.files import create, make_folder, prepare_output, read_begin, read_end, write_output, write_text


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a").symlink_to("precious")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a").is_symlink()


def test_a_new_file_is_not_made_through_a_link(tmp_path):
    (tmp_path / "a").symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        create(tmp_path / "a")
    assert not (tmp_path / "elsewhere").exists()


def test_a_linked_folder_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to("there")
    with pytest.raises(EnvironmentFault, match="is a link"):
        make_folder(tmp_path / "here")


def test_an_output_is_written_into_a_folder_that_is_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "plan.yaml"
    write_output(path, b"x")
    write_output(path, b"y")
    assert path.read_bytes() == b"y" and [p.name for p in path.parent.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize("name", ["folder", "file/x", "file/y/x"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"^.*: cannot be written: .*; choose a writable place$"):
        prepare_output(tmp_path / name)


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(EnvironmentFault, match="exists and is not a file"):
            write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_begin_and_end_of_a_file(tmp_path):
    (tmp_path / "log").write_bytes(b"0123456789")
    assert read_end(tmp_path / "log", 4) == b"6789"
    assert read_end(tmp_path / "log", 4, begin=8) == b"89"
    assert read_end(tmp_path / "log", 40) == b"0123456789" and read_end(tmp_path / "log", 4, begin=20) == b""
    assert read_begin(tmp_path / "log", 3) == b"012"
    for read in (read_begin, read_end):
        with pytest.raises(DataError, match="is not a regular file"):
            read(tmp_path, 4)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none", 4)
