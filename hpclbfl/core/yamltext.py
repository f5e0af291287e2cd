"""Reading and writing YAML texts, as plain values.

Scalars follow the core schema of YAML 1.2: `012` is 12, `1e-4` is a number, and `yes`, `1:30`, `1_000` and `2026-01-01`
are strings. Other tags, merge keys (`<<`), keys that are not strings and duplicate keys are refused. An alias gives a
copy of its value. Depth, digits and aliases are bounded, so that every text is parsed or refused quickly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from hpclbfl.core.text import MAX_SHOWN, printable, shown

MAX_DEPTH = 50
"""Levels of nested lists and mappings."""
MAX_DIGITS = 300
"""Digits of a whole number; the largest floats have about as many."""
MAX_ALIASED = 100_000
"""Total characters to which all aliases of a text expand."""

_TAG = "tag:yaml.org,2002:"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNFIT = re.compile("[\0\ud800-\udfff]")
"""Characters that neither a path nor a file can contain."""
# Of PyYAML only the parser is used (libyaml's, if available): its constructors implement YAML 1.1.
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(Exception):
    """A text that is not YAML, or not in the supported subset; the message is one line."""

    def __init__(self, mark: Any, reason: str) -> None:
        super().__init__(reason)
        self.line: int = mark if isinstance(mark, int) else mark.line + 1


def parse(text: str) -> Any:
    """The value of a text with one document; None if it is empty. Raises NotYaml."""
    found = _FORBIDDEN.search(text)
    if found is not None:
        raise NotYaml(text.count("\n", 0, found.start()) + 1, f"the character {shown(found[0])} is not allowed")
    try:
        return _Composer(yaml.parse(text, _PARSER)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = printable(error.problem or error.context or "cannot be parsed", MAX_SHOWN)
        raise NotYaml(mark or 1, reason) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise NotYaml(1, printable(error, MAX_SHOWN)) from error


_INCOMPLETE = object()


class _Composer:
    """Builds plain values from a parser's events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, Any] = {}
        self._aliased = 0

    def document(self) -> Any:
        next(self._events)
        begin = next(self._events)
        if isinstance(begin, yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)
        end = next(self._events)
        if not isinstance(end, yaml.StreamEndEvent):
            raise NotYaml(end.start_mark, "a second document begins here; only one is allowed")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            name = shown(event.anchor)
            if event.anchor not in self._anchors:
                raise NotYaml(event.start_mark, f"no anchor {name} before this alias")
            if (value := self._anchors[event.anchor]) is _INCOMPLETE:
                raise NotYaml(event.start_mark, f"the value {name} contains itself")
            return self._copy(value, depth, event.start_mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = _INCOMPLETE
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif depth == MAX_DEPTH:
            raise NotYaml(event.start_mark, f"more than {MAX_DEPTH} levels of lists and mappings")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(event, depth + 1)
        else:
            value = self._mapping(event, depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _copy(self, value: Any, depth: int, mark: Any) -> Any:
        """A copy of the value of an alias; all copies together are bounded."""
        is_nested = isinstance(value, list | dict)
        self._aliased += 1 + (0 if is_nested else len(str(value)))
        if self._aliased > MAX_ALIASED or depth + is_nested > MAX_DEPTH:
            raise NotYaml(mark, "the aliases expand to too much; write the values out")
        if isinstance(value, dict):
            return {self._copy(key, depth + 1, mark): self._copy(item, depth + 1, mark) for key, item in value.items()}
        return [self._copy(item, depth + 1, mark) for item in value] if is_nested else value

    def _sequence(self, event: Any, depth: int) -> list[Any]:
        _check_tag(event, "seq", "a list")
        values = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(item, depth))
        return values

    def _mapping(self, event: Any, depth: int) -> dict[str, Any]:
        _check_tag(event, "map", "a mapping")
        values: dict[str, Any] = {}
        while not isinstance(item := next(self._events), yaml.MappingEndEvent):
            key = self._key(item, depth)
            if key in values:
                raise NotYaml(item.start_mark, f"key {shown(key)} is given twice")
            values[key] = self._value(next(self._events), depth)
        return values

    def _key(self, event: Any, depth: int) -> str:
        if isinstance(event, yaml.CollectionStartEvent):
            raise NotYaml(event.start_mark, "a list or a mapping cannot be a key")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise NotYaml(event.start_mark, "merge keys (<<) are not supported; write the values out")
        key = self._value(event, depth)
        if not isinstance(key, str):
            written = printable(getattr(event, "value", key), MAX_SHOWN)
            raise NotYaml(event.start_mark, f"the key {written} is not a string; put it in quotes")
        return key


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_DECIMAL = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCHEMA: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT"),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _integer),
    "float": (re.compile(_DECIMAL), _float),
}
"""The core schema of YAML 1.2 (10.3.2): pattern and constructor of each type, in the order in which they are tried."""


def _scalar(event: Any) -> Any:
    """The value of a scalar: of the type of its tag; without a tag, by its pattern if it is plain, else a string."""
    text: str = event.value
    name = "str"
    if event.tag is None and event.implicit[0]:
        name = next((name for name, (pattern, _) in _SCHEMA.items() if pattern.fullmatch(text)), "str")
    elif event.tag not in (None, "!"):
        name = event.tag.removeprefix(_TAG)
        if name != "str" and (name not in _SCHEMA or not event.tag.startswith(_TAG)):
            raise NotYaml(event.start_mark, f"the tag {_short(event.tag)} is not supported; leave it out")
    if name == "str":
        # Escape sequences can produce characters that are not allowed in the text itself.
        found = _UNFIT.search(text)
        if found is not None:
            raise NotYaml(event.start_mark, f"the character {shown(found[0])} is not allowed")
        return text
    pattern, make = _SCHEMA[name]
    if not pattern.fullmatch(text):
        raise NotYaml(event.start_mark, f"{shown(text)} is not of type {name}")
    try:
        return make(text)
    except ValueError as error:
        raise NotYaml(event.start_mark, str(error)) from error


def _check_tag(event: Any, name: str, what: str) -> None:
    if event.tag not in (None, "!", _TAG + name):
        raise NotYaml(event.start_mark, f"the tag {_short(event.tag)} is not supported for {what}; leave it out")


def _short(tag: str) -> str:
    return printable(tag.replace(_TAG, "!!", 1), MAX_SHOWN)


def dump(value: Any, width: int = 80, flow: bool = False) -> str:
    """Plain values as YAML that reads back as the same values, also under YAML 1.1.

    Args:
        value: mappings, lists, strings, numbers, booleans and None.
        width: where long lines are broken.
        flow: write everything on one line.
    """
    if flow:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=1 << 30)
        return text.removesuffix("...\n").strip("\n")
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=width)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as another type; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out each value in place, without aliases."""
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # In other styles a line end would break the line, and some characters would change.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _represent_text)
for _name, (_pattern, _) in _SCHEMA.items():
    # SafeDumper has the patterns of YAML 1.1; these come after them.
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern.pattern})$"), list("-+.0123456789~nNtTfF"))
