"""Tables of Markdown, and the generated part of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

BEGIN, END = "<!-- generated from here: `make docs-pages` -->", "<!-- to here -->"
_CODE = re.compile(r"(`[^`]*`)")
_TAG = re.compile(r"<(?=[A-Za-z/!])")
_TAG = re.compile(r"<(?=[A-Za-z/!])")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold code, and signs that mean something to Markdown or HTML."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def text(source: str) -> str:
    """A docstring as Markdown: what stands in <> is no tag."""
    return "\n".join(line if line.startswith("    ") else _without_tags(line) for line in source.splitlines())


def with_generated(page: str, part: str) -> str:
    """A page with its generated part replaced; ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a generated part stands between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def _cell(words: str) -> str:
    return _without_tags(" ".join(words.split())).replace("|", "\\|")


def _without_tags(words: str) -> str:
    parts = _CODE.split(words)
    return "".join(part if part.startswith("`") else _TAG.sub("&lt;", part) for part in parts)
