"""YAML texts: from a text to plain values and back, in one dialect.

Values are those of YAML 1.2's core schema: `012` is 12, `1e-4` a number, and `yes`, `1:30`, `1_000` and `2026-01-01`
are texts. Tags other than the core schema's are refused, as are merge keys (`<<`), keys that are no texts, and a key
that is given twice. An alias stands for a copy of its value. Sizes are bounded, so that no text takes long to refuse.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

from hpclbfl.core.text import MAX_SHOWN, printable, shown

MAX_DEPTH = 50
"""Of lists and mappings inside each other."""
MAX_DIGITS = 300
"""Of a whole number; the largest floats have as many."""
MAX_ALIASED = 100_000
"""Characters that all aliases of a text stand for together."""

_TAG = "tag:yaml.org,2002:"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNFIT = re.compile("[\0\ud800-\udfff]")
"""Characters that no path and no file can contain."""
# Only PyYAML's parser is used, libyaml's if available; what scalars mean is decided here.
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(Exception):
    """A text that is not YAML as it is read here; says why, at most one line."""

    def __init__(self, mark: Any, reason: str) -> None:
        super().__init__(reason)
        self.line: int = mark if isinstance(mark, int) else mark.line + 1


class _Node(NamedTuple):
    """A value that an alias may stand for."""

    value: Any
    size: int
    """Characters of it, about."""
    height: int
    """Lists and mappings in it inside each other."""


def parse(text: str) -> Any:
    """The value of a text that holds one document; None where it holds nothing."""
    found = _FORBIDDEN.search(text)
    if found is not None:
        raise NotYaml(text.count("\n", 0, found.start()) + 1, f"the character {shown(found[0])} has no place in a text")
    try:
        return _Composer(yaml.parse(text, _PARSER)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = printable(error.problem or error.context or "cannot be parsed", MAX_SHOWN)
        raise NotYaml(mark or 1, reason) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise NotYaml(1, printable(error, MAX_SHOWN)) from error


class _Composer:
    """Builds plain values from a parser's events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, _Node | None] = {}
        """None: a value whose end has not come yet."""
        self._aliased = 0

    def document(self) -> Any:
        next(self._events)
        begin = next(self._events)
        if isinstance(begin, yaml.StreamEndEvent):
            return None
        value = self._node(next(self._events), 0).value
        next(self._events)
        end = next(self._events)
        if not isinstance(end, yaml.StreamEndEvent):
            raise NotYaml(end.start_mark, "a second document begins here; give one alone")
        return value

    def _node(self, event: Any, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(_scalar(event), 1 + len(event.value), 0)
        elif depth == MAX_DEPTH:
            raise NotYaml(event.start_mark, f"more than {MAX_DEPTH} lists and mappings inside each other")
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth + 1)
        else:
            node = self._mapping(event, depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, depth: int) -> _Node:
        name = shown(event.anchor)
        if event.anchor not in self._anchors:
            raise NotYaml(event.start_mark, f"no anchor {name} before this alias")
        node = self._anchors[event.anchor]
        if node is None:
            raise NotYaml(event.start_mark, f"the value {name} would hold itself")
        self._aliased += node.size
        if self._aliased > MAX_ALIASED or depth + node.height > MAX_DEPTH:
            raise NotYaml(event.start_mark, "aliases that stand for too much; write the values out")
        return node._replace(value=copy.deepcopy(node.value))

    def _sequence(self, event: Any, depth: int) -> _Node:
        _check_tag(event, "seq", "a list")
        values, size, height = [], 1, 0
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            node = self._node(item, depth)
            values.append(node.value)
            size, height = size + node.size, max(height, node.height)
        return _Node(values, size, height + 1)

    def _mapping(self, event: Any, depth: int) -> _Node:
        _check_tag(event, "map", "a mapping")
        values: dict[str, Any] = {}
        size, height = 1, 0
        while not isinstance(item := next(self._events), yaml.MappingEndEvent):
            key = self._key(item, depth)
            if key.value in values:
                raise NotYaml(item.start_mark, f"key {shown(key.value)} is given twice")
            node = self._node(next(self._events), depth)
            values[key.value] = node.value
            size, height = size + key.size + node.size, max(height, node.height)
        return _Node(values, size, height + 1)

    def _key(self, event: Any, depth: int) -> _Node:
        if isinstance(event, yaml.CollectionStartEvent):
            raise NotYaml(event.start_mark, "a list or a mapping cannot be a key")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise NotYaml(event.start_mark, "merge keys (<<) are not read; write the values out")
        node = self._node(event, depth)
        if not isinstance(node.value, str):
            written = printable(getattr(event, "value", node.value), MAX_SHOWN)
            raise NotYaml(event.start_mark, f"the key {written} is no text; put it in quotes")
        return node


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
"""Of YAML 1.2's core schema (10.3.2): what a plain scalar must look like, in the order in which they are tried."""


def _scalar(event: Any) -> Any:
    """The value of a scalar: as its tag says, else as it looks where it is plain, else a text."""
    text: str = event.value
    name = "str"
    if event.tag is None and event.implicit[0]:
        name = next((name for name, (pattern, _) in _SCHEMA.items() if pattern.fullmatch(text)), "str")
    elif event.tag not in (None, "!"):
        name = event.tag.removeprefix(_TAG)
        if name != "str" and (name not in _SCHEMA or not event.tag.startswith(_TAG)):
            raise NotYaml(event.start_mark, f"the tag {_short(event.tag)} is not read; leave it out")
    if name == "str":
        # Escapes can write what the text itself may not hold.
        found = _UNFIT.search(text)
        if found is not None:
            raise NotYaml(event.start_mark, f"the character {shown(found[0])} has no place in a text")
        return text
    pattern, make = _SCHEMA[name]
    if not pattern.fullmatch(text):
        raise NotYaml(event.start_mark, f"{shown(text)} is no {name}")
    try:
        return make(text)
    except ValueError as error:
        raise NotYaml(event.start_mark, str(error)) from error


def _check_tag(event: Any, name: str, what: str) -> None:
    if event.tag not in (None, "!", _TAG + name):
        raise NotYaml(event.start_mark, f"the tag {_short(event.tag)} is not read for {what}; leave it out")


def _short(tag: str) -> str:
    return printable(tag.replace(_TAG, "!!", 1), MAX_SHOWN)


def dump(value: Any, width: int = 80, flow: bool = False) -> str:
    """Return plain values as YAML that reads back as the same values, here and under YAML 1.1.

    Args:
        value: mappings, lists, texts, numbers, truth values and None.
        width: where long lines break.
        flow: on one line, whatever its length.
    """
    if flow:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=1 << 30)
        return text.removesuffix("...\n").strip("\n")
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=width)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.1 or 1.2 would read as something else than a text; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out each value in place, without aliases."""
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # In other styles a line end would break the line, and some signs come back as others.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _represent_text)
for _name, (_pattern, _) in _SCHEMA.items():
    # SafeDumper has the patterns of YAML 1.1; these come after them.
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern.pattern})$"), list("-+.0123456789~nNtTfF"))
