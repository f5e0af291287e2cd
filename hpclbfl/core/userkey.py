"""A secret key of this user, to sign files that only this user's processes should write."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.files import explained_writes, write_bytes

KEY_BYTES = 32


def key_path() -> Path:
    """Path of the key: $XDG_CACHE_HOME/hpclbfl/key, by default ~/.cache/hpclbfl/key.

    Raises:
        EnvironmentFault: this user has no home folder.
    """
    # The specification says to ignore a path that is not absolute.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "hpclbfl" / "key"
    try:
        return Path.home() / ".cache" / "hpclbfl" / "key"
    except RuntimeError as error:
        raise EnvironmentFault("this user has no home folder for a key; set XDG_CACHE_HOME") from error


def user_key() -> bytes:
    """32 random bytes that only this user can read, the same in every process; the first call creates them.

    Raises:
        EnvironmentFault: the key cannot be read or written, or others can read it; one line that names it.
    """
    path = key_path()
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    with explained_writes(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(path, secrets.token_bytes(KEY_BYTES), 0o600)
    # Read back: another process may have replaced it meanwhile.
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        is_private = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
        key = file.read(KEY_BYTES + 1) if is_private else b""
    if len(key) != KEY_BYTES:
        raise EnvironmentFault(f"{path}: is not a key that only this user can read; remove it, and a new one is made")
    return key
