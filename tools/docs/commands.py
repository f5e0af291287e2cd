"""The reference of the command line: arguments and options of every command, from their own help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from hpclbfl.cli.app import app
from tools.docs.markdown import table, text

WORDS = {"Path": "FILE", "str": "TEXT", "int": "N", "float": "X"}
"""Values of an option, by their type, where it has no word of its own."""


class Word(NamedTuple):
    """An argument or an option."""

    shown: str
    """As it is typed."""
    flags: tuple[str, ...]
    """Names of an option."""
    text: str
    default: str


def commands() -> str:
    """The reference, as Markdown."""
    return "\n\n".join(part for name, run in all_commands(app) for part in _command(name, run))


def all_commands(within: typer.Typer, prefix: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command by what is typed, `data pack`, with the function that runs it."""
    for command in within.registered_commands:
        assert command.callback is not None
        yield f"{prefix}{command.name or command.callback.__name__}", command.callback
    for group in within.registered_groups:
        assert group.typer_instance is not None
        yield from all_commands(group.typer_instance, f"{prefix}{group.name} ")


def words_of(run: Callable[..., Any]) -> Iterator[Word]:
    """Arguments and options of a command."""
    hints = get_type_hints(run, include_extras=True)
    for name, parameter in inspect.signature(run).parameters.items():
        yield _word(name, hints[name], parameter.default)


def _command(name: str, run: Callable[..., Any]) -> Iterator[str]:
    yield f"### `hpclbfl {name}`"
    yield text(inspect.cleandoc(run.__doc__ or ""))
    rows = [(f"`{word.shown}`", word.text, word.default) for word in words_of(run)]
    if rows:
        yield table(("argument or option", "meaning", "default"), rows)


def _word(name: str, hint: Any, default: Any) -> Word:
    # Written `Annotated[X | None, ...]`, which a default of None may wrap once more.
    while get_origin(hint) is not Annotated:
        hint = next(inner for inner in get_args(hint) if inner is not NoneType)
    value, info = get_args(hint)[:2]
    assert isinstance(info, ArgumentInfo | OptionInfo)
    if default is inspect.Parameter.empty:
        told = "required"
    else:
        told = "" if default is None or default is False else f"`{default}`"
    if isinstance(info, ArgumentInfo):
        return Word(info.metavar or name.upper(), (), info.help or "", told)
    # The first flag that `typer.Option` is given is its default as long as it stands outside Annotated.
    given = (info.default, *(info.param_decls or ()))
    flags = tuple(one for one in given if isinstance(one, str) and one.startswith("-"))
    return Word(f"{', '.join(flags)} {info.metavar or _value_word(value)}".strip(), flags, info.help or "", told)


def _value_word(value: Any) -> str:
    """What is typed after an option: nothing for a flag."""
    if value is bool:
        return ""
    if get_origin(value) is Literal:
        return "|".join(map(str, get_args(value)))
    inner = [_value_word(one) for one in get_args(value) if one is not NoneType]
    return inner[0] if inner else WORDS[value.__name__]
