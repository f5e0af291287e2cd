"""Errors that a user sees: one line each, with the process's exit code."""

from __future__ import annotations

REQUEUE_CODE = 75
"""Exit code of a run that was asked to stop, has saved its state, and is to be started again."""


class HpclbflError(Exception):
    """Base of all errors that end a command with one line instead of a traceback."""

    exit_code = 1


class ConfigError(HpclbflError):
    """A job file, an override or an option that cannot be used (file, key, what would be right)."""

    exit_code = 2


class DataError(HpclbflError):
    """A data set that is missing, damaged or not what the job says (names the file)."""

    exit_code = 2


class EnvironmentFault(HpclbflError):
    """Something that the machine lacks: MPI, Horovod, a device, a writable folder."""


class RunFailed(HpclbflError):
    """Training that started and could not continue."""
