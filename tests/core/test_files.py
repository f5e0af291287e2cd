"""Files are written whole, and never through a link."""

import pytest

from hpclbfl.core.files import create, make_folder, write_text
from hpclbfl.errors import EnvironmentFault


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
