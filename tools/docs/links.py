"""Checks the links of Markdown files, and that a built site asks the network for nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_ELSEWHERE = ("http://", "https://", "mailto:")
_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
"""Attributes by which a page loads something; what a link loads depends on its rel."""
_LINK_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload"}


def broken_links(path: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere: `file: target`, one line each."""
    source = _FENCE.sub("", path.read_text(encoding="utf-8"))
    found = []
    for target in _LINK.findall(_CODE.sub("code", source)):
        if target.startswith(_ELSEWHERE):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file) if file else path
        if not other.exists() or (anchor and anchor not in anchors(other)):
            found.append(f"{path.name}: {target}")
    return found


def anchors(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub and mkdocs make them."""
    source = _FENCE.sub("", path.read_text(encoding="utf-8"))
    return {_slug(heading) for heading in _HEADING.findall(source)}


def network_loads(site: Path) -> list[str]:
    """What pages of a site would load from the network: `page: address`, one line each."""
    return [
        f"{page.relative_to(site)}: {address}"
        for page in sorted(site.rglob("*.html"))
        for address in _loads(page.read_text(encoding="utf-8"))
        if re.match(r"(https?:)?//", address)
    ]


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


class _Loads(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        named = dict(attrs)
        loads = tag == "link" and _LINK_RELATIONS & set((named.get("rel") or "").split())
        address = named.get("href") if loads else named.get(_LOADING.get(tag, ""))
        if address:
            self.found.append(address)


def _loads(page: str) -> list[str]:
    parser = _Loads()
    parser.feed(page)
    return parser.found
