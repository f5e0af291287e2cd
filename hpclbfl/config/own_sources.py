"""Sources of own parts: read, hashed and executed once in a process, whatever name leads to them.

A file is executed from its content, never again from its path, so that what runs is what was hashed. It may lie where a
person named it, or as a copy, `parts/<hash>/nets.py`, in the folder of a run or of a sweep.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from hpclbfl.config.part_names import HASH_DIGITS, PartName, digits
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.files import read_bytes
from hpclbfl.core.text import MAX_SHOWN, printable

PARTS = "parts"
"""Folder of the copies, in a run's folder and beside a sweep's job files."""
MAX_BYTES = 1_000_000
"""Of a file."""


@dataclass(frozen=True)
class Source:
    """Of an own part."""

    name: str
    """Of the file, or of the module."""
    place: str
    """Where it was read."""
    sha256: str
    """Of the file's content; of a module: of its package's version and its file's content."""
    content: bytes
    version: str | None = None
    """Of the installed package."""
    is_file: bool = True

    @property
    def digits(self) -> str:
        """Of its hash, as they stand in a name."""
        return self.sha256[:HASH_DIGITS]

    @property
    def copy(self) -> Path:
        """Where a run's folder holds its copy."""
        return copy_of(self.digits, self.name)


_files: dict[tuple[str, str], Source] = {}
"""All that this process has read, by hash and name of the file."""
_executed: dict[str, str] = {}
"""Of a file's hash, the place under which tracebacks name it: where it was first read."""


def copy_of(sha256: str, name: str) -> Path:
    """Path of a copy in a run's folder, from the digits of its hash and the name of its file."""
    return Path(PARTS) / sha256 / name


def known_file(sha256: str, name: str) -> Source | None:
    """A file that this process has read, from the digits of its hash and its name."""
    return _files.get((sha256, name))


def remember(content: bytes, place: Path) -> Source:
    """Take a file's content up, read from this place."""
    found = Source(place.name, str(place), hashlib.sha256(content).hexdigest(), content)
    _files[found.digits, found.name] = found
    return found


def read_file(path: Path, where: str, advice: str) -> Source:
    """Read a file that a person named.

    Args:
        where: begins the line of an error.
        advice: ends the line where there is no such file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return remember(read_bytes(path, MAX_BYTES), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: {printable(path)}: no such file; {advice}") from error
    except DataError as error:
        raise ConfigError(f"{where}: {printable(error)}") from error


def read_copy(part: PartName, folders: Sequence[Path], where: str) -> Source:
    """Return the file that a name with a hash stands for: known to this process, or a copy in one of these folders.

    Raises:
        ConfigError: there is no copy, or only damaged ones.
    """
    name, sha256 = part.source, part.sha256 or ""
    if "/" in name:
        raise ConfigError(f"{where}: '{printable(part, MAX_SHOWN)}': a copy's name has no folders")
    known = known_file(sha256, name)
    if known is not None:
        return known
    problems = []
    for folder in folders:
        path = folder / copy_of(sha256, name)
        try:
            content = read_bytes(path, MAX_BYTES)
        except FileNotFoundError:
            problems.append(f"{printable(path)}: no such file")
            continue
        except DataError as error:
            problems.append(printable(error))
            continue
        if digits(content) == sha256:
            return remember(content, path)
        problems.append(f"{printable(path)}: is damaged: its content does not match its checksum")
    told = problems[0] if problems else f"there is no folder with a copy of {printable(name)}"
    raise ConfigError(f"{where}: {told}; bring back the copy, or name the file itself")


def execute(source: Source, where: str) -> ModuleType:
    """Return the module that a file is, executed at most once.

    Its `__file__` names no file: what lies beside a part is not copied with it, and must not seem to be there.

    Raises:
        ConfigError: it is not valid Python, or fails; one line that names file and line.
    """
    name = f"hpclbfl_part_{source.digits}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = f"hpclbfl:/{source.copy}"
    sys.modules[name] = module
    text = source.content.decode("utf-8", "replace")
    # Tracebacks show what was executed, whatever the file holds by then.
    _executed[source.digits] = source.place
    linecache.cache[source.place] = (len(text), None, text.splitlines(keepends=True), source.place)
    try:
        exec(_compiled(source), vars(module))
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:
        del sys.modules[name]
        raise ConfigError(f"{where}: {_explain(error, source)}") from error
    return module


def _compiled(source: Source) -> CodeType:
    try:
        return compile(source.content, source.place, "exec", dont_inherit=True)
    except ValueError as error:
        # So Pythons up to 3.11.3 refuse null bytes.
        raise SyntaxError(str(error)) from error


def import_module(name: str, where: str) -> tuple[Source, ModuleType]:
    """Import a module of an installed package, and hash it.

    Raises:
        ConfigError: there is none, it fails, or has no file.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        told = printable(f"{type(error).__name__}: {error}", MAX_SHOWN)
        advice = "give an installed module, as package.module:Class, or a file, as nets.py:Class"
        raise ConfigError(f"{where}: {printable(name)} cannot be imported: {told}; {advice}") from error
    if spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"{where}: {printable(name)} has no source file; give a module that has one")
    try:
        content = read_bytes(Path(spec.origin), MAX_BYTES)
    except (FileNotFoundError, DataError) as error:
        raise ConfigError(f"{where}: {printable(error)}") from error
    version = _version(name.partition(".")[0])
    sha256 = hashlib.sha256(f"{version}\n".encode() + content).hexdigest()
    return Source(name, spec.origin, sha256, content, version, is_file=False), module


def described(error: BaseException, source: Source, what: str) -> str:
    """`nets.py:12: what: ValueError: reason`, with the innermost line of the source that an error passed through."""
    path = _executed.get(source.digits, source.place)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = f":{lines[-1]}" if lines else ""
    return f"{printable(source.place)}{line}: {what}: {printable(f'{type(error).__name__}: {error}', MAX_SHOWN)}"


def _explain(error: BaseException, source: Source) -> str:
    if isinstance(error, SyntaxError) and error.filename in (source.place, None):
        line = f":{error.lineno}" if error.lineno else ""
        return f"{printable(source.place)}{line}: is not valid Python: {printable(error.msg, MAX_SHOWN)}"
    found = described(error, source, "cannot be imported")
    if isinstance(error, ModuleNotFoundError):
        return f"{found}; a part is one file: put what it needs into it, or install that as a package"
    return found


def _version(package: str) -> str | None:
    for distribution in importlib.metadata.packages_distributions().get(package, ()):
        return importlib.metadata.version(distribution)
    return None
