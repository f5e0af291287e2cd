"""The generated parts of docs/ are what the source says, and say something about every key."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field

from hpclbfl.cli.app import app
from hpclbfl.config.sections import Section
from hpclbfl.config.sections.base import Fraction, PathText, PositiveInt
from tools.docs.commands import all_commands, words_of
from tools.docs.docstrings import key_docstring
from tools.docs.job_file import all_keys
from tools.docs.keys import keys_of, keys_table
from tools.docs.markdown import BEGIN, END, with_generated
from tools.docs.pages import ROOT, stale


def test_no_page_is_stale() -> None:
    assert [path.name for path in stale()] == [], "make docs-pages writes them anew"


def test_every_key_of_a_job_is_described() -> None:
    # What chooses a component is described by the section.
    assert sorted({key.path for key in all_keys() if not key.meaning}) == []


def test_every_option_is_described() -> None:
    silent = [f"{name} {word.shown}" for name, run in all_commands(app) for word in words_of(run) if not word.text]
    assert silent == []


class Inner(Section):
    """A section within."""

    size: PositiveInt = 3
    """Pixels."""


class Example(Section):
    """A section."""

    must: PositiveInt
    """Has no default."""
    choice: Literal["a", "b"] = "a"
    share: Fraction | None = None
    """Two lines,
    one cell | of a table."""
    sizes: tuple[PositiveInt, ...] | Literal["all"] = (1, 2)
    path: Annotated[PathText | None, Field(alias="from")] = None
    inner: Inner = Inner()


def test_a_section_as_a_table() -> None:
    assert keys_table(keys_of(Example)) == "\n".join(
        [
            "| key | values | default | meaning |",
            "|---|---|---|---|",
            "| `must` | whole number > 0 | required | Has no default. |",
            "| `choice` | `a`, `b` | `a` |  |",
            "| `share` | number ≥ 0 and < 1 | `null` | Two lines, one cell \\| of a table. |",
            "| `sizes` | list of whole numbers > 0, or `all` | `[1, 2]` |  |",
            "| `from` | path | `null` |  |",
            "| `inner` | mapping | `{}` | A section within. |",
        ]
    )


def test_a_default_that_a_validator_fills_in() -> None:
    from hpclbfl.config.sections import EvaluateConfig

    assert {key.name: key.default for key in keys_of(EvaluateConfig)}["every_epochs"] == "`1`"


def test_an_inherited_key_keeps_its_docstring() -> None:
    from hpclbfl.optim.optimizers.lamb import LambConfig

    assert key_docstring(LambConfig, "eps") == "Added to the root of the averaged square."


def test_a_command_as_rows() -> None:
    one = typer.Typer()

    @one.command()
    def run(
        file: Annotated[str, typer.Argument(metavar="FILE", help="To read.")],
        many: Annotated[int | None, typer.Option("--many", "-m", help="How many.")] = None,
        seed: Annotated[int, typer.Option("--seed", help="Of it.")] = 0,
        form: Annotated[Literal["a", "b"], typer.Option("--format", help="Of the output.")] = "a",
        quick: Annotated[bool, typer.Option("--quick", help="At once.")] = False,
    ) -> None:
        """Do it."""

    ((name, found),) = all_commands(one)
    assert name == "run"
    assert [(word.shown, word.text, word.default) for word in words_of(found)] == [
        ("FILE", "To read.", "required"),
        ("--many, -m N", "How many.", ""),
        ("--seed N", "Of it.", "`0`"),
        ("--format a|b", "Of the output.", "`a`"),
        ("--quick", "At once.", ""),
    ]


def test_the_generated_part_is_replaced() -> None:
    assert with_generated(f"before\n{BEGIN}\nold\n{END}\nafter", "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter"
    with pytest.raises(ValueError, match="stands between"):
        with_generated("a page without a mark", "new")


def test_a_page_that_differs_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.docs.pages.GENERATED", {"runs.md": lambda: "another schema"})
    assert {path.relative_to(ROOT).as_posix() for path in stale()} == {"docs/runs.md"}
