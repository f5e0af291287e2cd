"""Links of README and docs/ lead somewhere, a built site loads nothing from the network, and the README is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_layout import FOLDERS
from tools.docs.links import anchors, broken_links, network_loads
from tools.docs.pages import ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
FILES = [*sorted(ROOT.glob("*.md")), *PAGES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("## Some `code: x`\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# Top\n[1](b.md) [2](b.md#some-code-x) [3](#top) [4](https://x.org/y)\n"
        "[5](c.md) [6](b.md#none) ![7](d.png) `[8](e.md)`\n```\n[9](f.md)\n```\n"
    )
    assert broken_links(page) == ["a.md: c.md", "a.md: b.md#none", "a.md: d.png"]
    assert anchors(page) == {"top"}


def test_what_a_page_loads_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://fonts.org/a.css"><link rel="canonical" href="https://me.org">'
        '<script src="//cdn.org/b.js"></script><img src="c.png"><a href="https://elsewhere.org">x</a>'
    )
    assert network_loads(tmp_path) == ["a.html: https://fonts.org/a.css", "a.html: //cdn.org/b.js"]


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(page for entry in menu for page in entry.values()) == [path.name for path in PAGES]


def test_the_architecture_names_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [folder for folder in FOLDERS if f"`{folder}/`" not in page] == []


def test_the_site_is_built_strictly() -> None:
    # Under --quiet mkdocs counts no warnings, and so --strict lets broken links pass.
    build = re.search(r"mkdocs build.*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert build is not None
    assert "--strict" in build[0]
    assert "quiet" not in build[0]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180


def test_the_readme_shows_the_job_as_it_is() -> None:
    assert (ROOT / "jobs" / "quickstart.yaml").read_text(encoding="utf-8") in README.read_text(encoding="utf-8")


def console_blocks() -> list[str]:
    """Blocks of the README that are no file of any kind: commands and output."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for kind, block in blocks if not kind]


def shown_commands() -> list[tuple[str, str]]:
    """Commands of the README that stand with their output."""
    found = [block.removeprefix("$ ").split("\n", 1) for block in console_blocks() if block.startswith("$ ")]
    return [(command, output) for command, output in found]


@pytest.mark.parametrize(("command", "output"), shown_commands(), ids=("typo", "data info"))
def test_output_in_the_readme_is_real(command: str, output: str) -> None:
    assert command.startswith("hpclbfl ")
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", command)][1:]
    environment = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run(
        [sys.executable, "-m", "hpclbfl", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    assert ended.stdout.decode() == output


def test_every_command_of_the_readme_exists() -> None:
    from hpclbfl.cli.app import app
    from tools.docs.commands import all_commands

    known = {name for name, _ in all_commands(app)}
    used = re.findall(r"(?:^|\$ |-np \d )hpclbfl ((?:data )?[a-z]+)", "\n".join(console_blocks()), re.MULTILINE)
    assert len(used) >= 10
    assert set(used) <= known
