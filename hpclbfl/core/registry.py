"""Components by name: nets, optimizers, algorithms and all else that a job names, one registry for each kind.

A component has a config, which checks the keys that a job gives it, and a function or class that makes it. The file
that defines it registers it, and nothing else names it:

    @OPTIMIZERS.register("sgd", SgdConfig)
    def make_sgd(config: SgdConfig, ...) -> torch.optim.Optimizer: ...

A registry loads the files of its package when it is first used. A class of the user's own is entered under a name that
says where it comes from (`hpclbfl.config.own_parts`), if the kind says what such a class must be: its `Interface`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

Config = TypeVar("Config")
Maker = TypeVar("Maker", bound=Callable[..., Any])


class Component(NamedTuple, Generic[Config]):
    """One entry."""

    config: type[Config]
    """Class of its section in a job."""
    make: Callable[..., Any]
    """Called with the config first; what follows depends on the kind."""


@dataclass(frozen=True)
class Interface(Generic[Config]):
    """What a class of the user's own must be to join the components of a kind."""

    config: type[Config]
    """Base of its `Config`, and what it gets where it has none."""
    made_with: tuple[str, ...]
    """What it is made with, by position; the config comes first."""
    methods: tuple[str, ...] = ()
    """That it must have."""
    called_with: tuple[str, ...] = ()
    """What its instance is called with at once, where a component of this kind is what that returns."""

    def missing(self, kind: type[Any]) -> str:
        """What a class lacks, in words; empty: nothing."""
        lacking = [name for name in self.methods if not any(name in vars(base) for base in kind.__mro__)]
        if lacking:
            return f"has no {' and no '.join(lacking)}"
        try:
            inspect.signature(kind).bind(*self.made_with)
        except TypeError:
            return f"is not made with ({', '.join(self.made_with)}), but with {inspect.signature(kind)}"
        except ValueError:
            # One in C, which does not tell.
            return ""
        return ""

    def make(self, kind: type[Any], config: Any, *args: Any, **keys: Any) -> Any:
        """What a class of the user's own gives for its config."""
        return kind(config)(*args, **keys) if self.called_with else kind(config, *args, **keys)


class Registry(Generic[Config]):
    """The components of one kind.

    Args:
        what: they are called in messages: `optimizer`.
        key: in a job that names one: `name`, `kind` or `policy`.
        package: whose modules define them.
        default: name of the one that a job gets which names none; None: it must name one.
        interface: of the user's own; None: there can be none.
    """

    def __init__(
        self,
        what: str,
        key: str,
        package: str,
        default: str | None = None,
        interface: Interface[Config] | None = None,
    ) -> None:
        self.what, self.key, self.default, self.interface = what, key, default, interface
        self._package = package
        self._own: dict[str, Component[Config]] = {}
        self._found: dict[str, Component[Config]] = {}
        self._is_loaded = False

    def register(self, name: str, config: type[Config]) -> Callable[[Maker], Maker]:
        """Enter what makes the component of this name, a function or a class; a decorator."""

        def enter(make: Maker) -> Maker:
            if name in self._found:
                raise ValueError(f"there are two {self.what}s called {name!r}")
            self._found[name] = Component(config, make)
            return make

        return enter

    def add_own(self, name: str, component: Component[Config]) -> None:
        """Enter a component of the user's own; its name tells its source, so that the same name is the same one."""
        self._own[name] = component

    def names(self) -> list[str]:
        """All that come with the package, sorted."""
        self._load()
        return sorted(self._found)

    def find(self, name: str) -> Component[Config] | None:
        """The component of this name, if there is one."""
        self._load()
        return self._own.get(name) or self._found.get(name)

    def config(self, name: str) -> type[Config]:
        """Class of the config of a component that there is. Raises LookupError: there is none."""
        found = self.find(name)
        if found is None:
            raise LookupError(f"{self.what} {name!r} is not known")
        return found.config

    def holders(self, key: str) -> dict[str, type[Config]]:
        """Configs of the components that have this key, by name, sorted."""
        self._load()
        return {name: found.config for name, found in sorted(self._found.items()) if key in fields_of(found.config)}

    def keys(self) -> set[str]:
        """Keys of all components."""
        self._load()
        return {key for found in self._found.values() for key in fields_of(found.config)}

    def make(self, config: Any, *args: Any, **keys: Any) -> Any:
        """What a validated config stands for."""
        found = self.find(getattr(config, self.key))
        if found is None:
            raise LookupError(f"{self.what} {getattr(config, self.key)!r} is not known")
        return found.make(config, *args, **keys)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        package = importlib.import_module(self._package)
        for folder in package.__path__:
            # Files beside the components, which may need torch, wait until they are needed.
            for path in sorted(Path(folder).glob("*.py")):
                if ".register(" in path.read_text(encoding="utf-8"):
                    importlib.import_module(f"{self._package}.{path.stem}")


def fields_of(config: type[Any]) -> dict[str, Any]:
    """A config's fields, by the keys that a job writes."""
    return {field.alias or name: field for name, field in config.model_fields.items()}
