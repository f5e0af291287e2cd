"""JSON files of any origin: damage is reported in one line that names the file, and nothing is converted."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclbfl.core.errors import DataError
from hpclbfl.core.jsonfile import parse_json, read_json, write_json


@dataclass(frozen=True)
class Example:
    step: int
    name: str = "x"
    top1: float | None = None


def test_nan_becomes_null_and_the_content_has_a_checksum(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"loss": float("nan"), "all": [1.5, (float("inf"), "x")]})
    assert read_json(path, dict) == {"loss": None, "all": [1.5, [None, "x"]]}
    assert len(json.loads(path.read_text())["checksum"]) == 64


def test_any_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"step": 120, "name": "bsp", "top1": 0.75})
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            found = read_json(path, Example)
        except DataError:
            continue
        # Only what JSON does not count: white space, and the name of the checksum itself.
        assert found == Example(120, "bsp", 0.75)


def test_an_object_without_checksum_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"step": 3}')
    assert read_json(tmp_path / "a.json", Example) == Example(3)
    assert read_json(tmp_path / "b.json", Example) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"step": "3"}', "step: input should be a valid integer"),
        ('{"step": true}', "step: input should be a valid integer"),
        ('{"step": 3.5}', "step: input should be a valid integer"),
        ('{"name": "x"}', "step: field required"),
        ('{"step": 3, "name": null}', "name: input should be a valid string"),
        ("[1]", "holds no JSON object"),
        ("", "not JSON"),
        ('{"step": NaN}', "not JSON"),
        ('{"name": "\\ud800"}', "not JSON"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "not JSON"),
        ('{"step": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_errors_are_one_line(text, reason):
    with pytest.raises(DataError) as error:
        parse_json(text, Example, "here.json")
    assert str(error.value).startswith("here.json: is damaged: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pipe_a_folder_and_a_huge_file_are_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "large.json").write_text('{"step": 3}' + " " * 100)
    with pytest.raises(DataError, match=r"pipe\.json: is not a regular file"):
        read_json(tmp_path / "pipe.json", Example)
    with pytest.raises(DataError, match=r"folder\.json: is not a regular file"):
        read_json(tmp_path / "folder.json", Example)
    with pytest.raises(DataError, match=r"large\.json: is larger than 100 bytes"):
        read_json(tmp_path / "large.json", Example, limit=100)


@given(st.binary(max_size=200))
def test_no_content_raises_another_error(content):
    try:
        parse_json(content, dict, "x")
    except DataError as error:
        assert "\n" not in str(error)
