"""Errors that a user sees: one line each, with the process's exit code."""

from __future__ import annotations

REQUEUE_CODE = 75
"""Exit code of a run that was asked to stop, saved its state, and waits to be started again."""


class HpclbflError(Exception):
    """Base of all errors that end a command with one line instead of a traceback."""

    exit_code = 1


class ConfigError(HpclbflError):
    """An invalid job file, override or option; names the file, the key and what is expected."""

    exit_code = 2


class DataError(HpclbflError):
    """A file that is missing, damaged or not what the job expects; names the file."""

    exit_code = 2


class EnvironmentFault(HpclbflError):
    """The machine lacks something: MPI, Horovod, a device, a writable folder."""


class RunFailed(HpclbflError):
    """Training that started and could not continue."""
