"""Components by name: models, optimizers, algorithms and all else that a job names, one registry for each kind.

A component has a config, which checks the keys that a job gives, and a function or class that creates it. The file that
defines it registers it, and nothing else names it:

    @OPTIMIZERS.register("sgd", SgdConfig)
    def make_sgd(config: SgdConfig, ...) -> torch.optim.Optimizer: ...

A registry imports the files of its package when it is first used. A class of the user's own is added under a name that
includes its source (`hpclbfl.config.own_parts`), if the kind has an `Interface` for such classes.
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
    """An entry of a registry."""

    config: type[Config]
    """Class of its section in a job."""
    make: Callable[..., Any]
    """Called with the config; further arguments depend on the kind."""


@dataclass(frozen=True)
class Interface(Generic[Config]):
    """Requirements on a class of the user's own that is used as a component of a kind."""

    config: type[Config]
    """Base of its `Config`, and its config if it has none."""
    made_with: tuple[str, ...]
    """Positional arguments of its constructor, the config first."""
    methods: tuple[str, ...] = ()
    """Methods that it must have."""
    called_with: tuple[str, ...] = ()
    """If not empty, the component is the result of calling the instance with these arguments."""

    def missing(self, kind: type[Any]) -> str:
        """Which requirement a class does not meet, as a message; empty if it meets all."""
        lacking = [name for name in self.methods if not any(name in vars(base) for base in kind.__mro__)]
        if lacking:
            return f"has no {' and no '.join(lacking)}"
        try:
            inspect.signature(kind).bind(*self.made_with)
        except TypeError:
            return f"is not made with ({', '.join(self.made_with)}), but with {inspect.signature(kind)}"
        except ValueError:
            # A class in C may have no signature.
            return ""
        return ""

    def make(self, kind: type[Any], config: Any, *args: Any, **keys: Any) -> Any:
        """Create a component from a class of the user's own."""
        return kind(config)(*args, **keys) if self.called_with else kind(config, *args, **keys)


class Registry(Generic[Config]):
    """The components of one kind.

    Args:
        what: the kind in messages: `optimizer`.
        key: the key by which a job names a component: `name`, `kind` or `policy`.
        package: whose modules define the components; or several.
        default: name of the component of a job that names none; None: a job must name one.
        interface: for classes of the user's own; None: there can be none.
    """

    def __init__(
        self,
        what: str,
        key: str,
        package: str | tuple[str, ...],
        default: str | None = None,
        interface: Interface[Config] | None = None,
    ) -> None:
        self.what, self.key, self.default, self.interface = what, key, default, interface
        self._packages = (package,) if isinstance(package, str) else package
        self._own: dict[str, Component[Config]] = {}
        self._found: dict[str, Component[Config]] = {}
        self._is_loaded = False

    def register(self, name: str, config: type[Config]) -> Callable[[Maker], Maker]:
        """Register the function or class that creates the component of this name; a decorator."""

        def enter(make: Maker) -> Maker:
            if name in self._found:
                raise ValueError(f"there are two {self.what}s called {name!r}")
            self._found[name] = Component(config, make)
            return make

        return enter

    def add_own(self, name: str, component: Component[Config]) -> None:
        """Add a component of the user's own; equal names mean the same source."""
        self._own[name] = component

    def names(self) -> list[str]:
        """Names of the components that come with the package, sorted."""
        return sorted(self._loaded())

    def find(self, name: str) -> Component[Config] | None:
        """The component of this name; None if it does not exist."""
        return self._own.get(name) or self._loaded().get(name)

    def config(self, name: str) -> type[Config]:
        """Config class of the component of this name. Raises LookupError."""
        return self._get(name).config

    def holders(self, key: str) -> dict[str, type[Config]]:
        """Configs of the components that have this key, by name, sorted."""
        return {name: found.config for name, found in sorted(self._loaded().items()) if key in fields_of(found.config)}

    def keys(self) -> set[str]:
        """Keys of all components."""
        return {key for found in self._loaded().values() for key in fields_of(found.config)}

    def make(self, config: Any, *args: Any, **keys: Any) -> Any:
        """Create the component of a validated config. Raises LookupError."""
        return self._get(getattr(config, self.key)).make(config, *args, **keys)

    def _get(self, name: str) -> Component[Config]:
        found = self.find(name)
        if found is None:
            raise LookupError(f"{self.what} {name!r} is not known")
        return found

    def _loaded(self) -> dict[str, Component[Config]]:
        if not self._is_loaded:
            self._is_loaded = True
            for package in self._packages:
                for folder in importlib.import_module(package).__path__:
                    # Only files with components: those beside them may need torch.
                    for path in sorted(Path(folder).glob("*.py")):
                        if ".register(" in path.read_text(encoding="utf-8"):
                            importlib.import_module(f"{package}.{path.stem}")
        return self._found


def fields_of(config: type[Any]) -> dict[str, Any]:
    """A config's fields, by the keys that a job uses."""
    return {field.alias or name: field for name, field in config.model_fields.items()}
