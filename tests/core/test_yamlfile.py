"""YAML: the supported subset, its bounds, and files with a checksum."""

from __future__ import annotations

import math
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclbfl.core.errors import ConfigError
from hpclbfl.core.yamlfile import (
    MAX_BYTES,
    parse_mapping,
    parse_value,
    read_mapping,
    refuse_undone,
    set_value,
    write_sealed,
)
from hpclbfl.core.yamltext import dump


def parsed(text: str) -> Any:
    return parse_mapping(f"key: {text}\n".encode(), "f.yaml", "no mapping")["key"]


def refused(content: str | bytes) -> str:
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    begin = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        parse_mapping(content, "f.yaml", "no mapping")
    assert time.perf_counter() - begin < 5
    message = str(caught.value)
    assert message.isprintable() and message.startswith("f.yaml:") and len(message) < 500
    return message.removeprefix("f.yaml:").strip().replace("not valid YAML: ", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("012", 12),
        ("0777", 777),
        ("+5", 5),
        ("-0", 0),
        ("0o17", 15),
        ("0x1f", 31),
        ("0b11", "0b11"),
        ("1:30", "1:30"),
        ("1:30:00", "1:30:00"),
        ("1_000", "1_000"),
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        ("1.e-3", 1e-3),
        (".5", 0.5),
        ("+.INF", math.inf),
        ("yes", "yes"),
        ("On", "On"),
        ("off", "off"),
        ("n", "n"),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("'012'", "012"),
        ('"1e5"', "1e5"),
        ("! 012", "012"),
        ("!!str 012", "012"),
        ("!!int '12'", 12),
        ("!!float 3", 3.0),
        ("!<tag:yaml.org,2002:bool> 'true'", True),
        ("!!seq [1]", [1]),
        ("!!map {a: 1}", {"a": 1}),
        ("&a [1, 2]", [1, 2]),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = parsed(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!timestamp x", "1: the tag !!timestamp is not supported; leave it out"),
        ("!!bool foo", "1: 'foo' is not of type bool"),
        ("!!int 1.5", "1: '1.5' is not of type int"),
        ("!!float 1:30", "1: '1:30' is not of type float"),
        ("!!null x", "1: 'x' is not of type null"),
        ("!!str [a]", "1: the tag !!str is not supported for a list; leave it out"),
        (
            "!!python/object/apply:os.system [id]",
            "1: the tag !!python/object/apply:os.system is not supported for a list",
        ),
        ("!!set {a}", "1: the tag !!set is not supported for a mapping; leave it out"),
        ("!!binary aGk=", "1: the tag !!binary is not supported; leave it out"),
        ("!own x", "1: the tag !own is not supported; leave it out"),
        ("9" * 5000, "1: a number of more than 300 digits"),
        ("0x" + "f" * 5000, "1: a number of more than 300 digits"),
        ("[" * 500, "1: more than 50 levels of lists and mappings"),
        ("{a: " * 500, "1: more than 50 levels of lists and mappings"),
        ("{? [a] : b}", "1: a list or a mapping cannot be a key"),
        ("{1: a}", "1: the key 1 is not a string; put it in quotes"),
        ("{true: a}", "1: the key true is not a string; put it in quotes"),
        ("{~: a}", "1: the key ~ is not a string; put it in quotes"),
        ("{a: 1, 'a': 2}", "1: key 'a' is given twice"),
        ("{<<: {a: 1}}", "1: merge keys (<<) are not supported; write the values out"),
        ("&a [*a]", "1: the value 'a' contains itself"),
        ("*a", "1: no anchor 'a' before this alias"),
        ('"\\0"', "1: the character '\\x00' is not allowed"),
        ("x\0", "1: the character '\\x00' is not allowed"),
        ("\ud800", "1: cannot be read: not a text file (UTF-8)"),
        ("\x1b[31m", "1: the character '\\x1b' is not allowed"),
        ("b: c", "1: mapping values are not allowed in this context"),
        ("1\n\tb: 2", "2: found a tab character that violates indentation"),
        ("1\n---\nb: 2", "2: a second document begins here; only one is allowed"),
        ("1\nkey: 2", "2: key 'key' is given twice"),
        ("[1,\n  2", "3: did not find expected ',' or ']'"),
    ],
)
def test_errors_are_one_line_with_the_place(text: str, message: str) -> None:
    assert refused(f"key: {text}\n").startswith(message)


@pytest.mark.parametrize("content", ["", "# nothing\n", "- 1\n", "12\n", "---\n"])
def test_no_mapping(content: str) -> None:
    assert refused(content) == "no mapping"


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_mapping("\ufeffa: 1\r\nb: é\r\n".encode(), "f.yaml", "") == {"a": 1, "b": "é"}


def test_an_alias_is_a_copy_of_its_own() -> None:
    values = parse_mapping(b"a: &x {k: 1}\nb: *x\n", "f.yaml", "")
    set_value(values, "a.k", 2, "test")
    assert values == {"a": {"k": 2}, "b": {"k": 1}}


@pytest.mark.parametrize("width", [10, 1000])
def test_an_alias_bomb_is_refused_at_once(width: int) -> None:
    names = [f"n{i}" for i in range(12)]
    lines = ["n0: &n0 [x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * width)}]" for a, b in pairwise(names)]
    assert refused("\n".join(lines)).endswith("the aliases expand to too much; write the values out")


def test_aliases_do_not_exceed_the_depth() -> None:
    text = "n0: &n0 [x]\n" + "".join(f"n{i}: &n{i} [*n{i - 1}]\n" for i in range(1, 60))
    assert refused(text) == "50: the aliases expand to too much; write the values out"


def test_files_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a: " + b"x" * (MAX_BYTES - 4) + b"\n")
    assert len(read_mapping(file, "")["a"]) == MAX_BYTES - 4
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=rf"^{file}: is larger than 1,000,000 bytes$"):
        read_mapping(file, "")


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    fifo, folder, latin = tmp_path / "fifo", tmp_path / "folder", tmp_path / "latin"
    os.mkfifo(fifo)
    folder.mkdir()
    latin.write_bytes(b"a: 1\nb: \xe9\n")
    for path, reason in (
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (fifo, "is not a regular file"),
        (folder, "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / ("x" * 5000), "cannot be read: File name too long"),
        (tmp_path / "a\0b", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_mapping(path, "")
        assert str(caught.value).endswith(f": {reason}") and str(caught.value).isprintable()
    with pytest.raises(ConfigError, match=rf"^{latin}:2: cannot be read: not a text file \(UTF-8\)$"):
        read_mapping(latin, "")


TEXTS = [
    *("1e5", "012", "yes", "1:30", "0o17", "0x1f", "", "~", "null", "1_000", "0b11", "<<", "=", "a\nb", "é", "x: y"),
    *("- a", "#c", " lead", "tail ", "1.", ".5", "+.inf", "\x85", "\u2028", "true", "12", "1e-05", "2026-01-01", "y"),
    *("*a", "&a", "!a", "%", "@", "`", "{", "\ufeffx", "a" * 300 + " b", "\U0001f600", "\n", "---", "...", "a\tb"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_as_they_were(text: str) -> None:
    value = {"k": text, "l": [text], f"key {text}": {"m": text}}
    for flow in (False, True):
        written = dump(value, flow=flow)
        assert parse_value(written, "test") == value
        # Other programs may still read YAML 1.1.
        assert yaml.safe_load(written) == value
        assert parse_value(dump(text, flow=flow), "test") == text
    assert dump(text, flow=True).isprintable()


@pytest.mark.parametrize("number", [0, -5, 10**40, 1e16, 1e-5, 0.1, 5e-324, 1.7976931348623157e308, math.inf, 3.0])
def test_numbers_come_back_as_they_were(number: float) -> None:
    found = parse_value(dump({"a": number}), "test")["a"]
    assert found == number and type(found) is type(number)


def test_shared_values_are_written_out() -> None:
    shared = [1]
    assert dump({"a": shared, "b": shared}) == "a:\n- 1\nb:\n- 1\n"


def test_a_checksum_detects_a_change(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    write_sealed(file, "a: 1\nb: 2\n")
    sealed = file.read_text()
    first, second, seal = sealed.splitlines()
    assert (first, second) == ("a: 1", "b: 2") and seal.startswith("# sha256 of the text above: ")
    assert read_mapping(file, "") == {"a": 1, "b": 2}
    changed = (
        sealed.replace("b: 2", "b: 3"),
        sealed + "c: 3\n",
        sealed.replace("a: 1\n", ""),
        sealed[:-5],
        sealed.replace(seal, seal.upper()).replace("# SHA256 OF THE TEXT ABOVE", "# sha256 of the text above"),
    )
    for text in changed:
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_mapping(file, "")
        assert str(caught.value) == (
            f"{file}: was changed after it was written: it does not match its checksum, the last line; "
            "remove that line to accept the change"
        )
    # Without the line the change is accepted.
    file.write_text("a: 1\nb: 3\n")
    assert read_mapping(file, "") == {"a": 1, "b": 3}


def test_invalid_keys() -> None:
    for key in ("", ".a", "a.", "a..b", ".".join("a" * 51)):
        with pytest.raises(ConfigError, match=r"^override: '.*' is not a valid key: write section.key$"):
            set_value({}, key, 1, "override")
    with pytest.raises(ConfigError, match=r"^override: 'b' is a value, it has no keys$"):
        set_value({"a": {"b": 1}}, "a.b.c", 1, "override")


def test_a_key_that_overwrites_another() -> None:
    refuse_undone(["a", "a.b", "c.d", "c.e"], "x")
    for keys, message in (
        (["a.b", "c", "a.b"], "x: 'a.b' is given twice"),
        (["a.b", "a"], "x: 'a' would overwrite 'a.b'; give it first"),
        (["a.b.c", "a.b"], "x: 'a.b' would overwrite 'a.b.c'; give it first"),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse_undone(keys, "x")
        assert str(caught.value) == message
