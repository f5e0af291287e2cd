"""Large-batch federated and data-parallel training experiments on HPC clusters."""

from __future__ import annotations

# Not from typing: under `python -m hpclbfl` a module imported here would be looked for in the working folder first.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from hpclbfl.api.jobs import load_job as load_job
    from hpclbfl.api.jobs import make_job as make_job
    from hpclbfl.api.plot import plot as plot
    from hpclbfl.api.runs import Frames as Frames
    from hpclbfl.api.runs import Result as Result
    from hpclbfl.api.runs import load_runs as load_runs
    from hpclbfl.api.runs import read_run as read_run
    from hpclbfl.api.runs import run as run
    from hpclbfl.api.runs import summarise as summarise
    from hpclbfl.config.job import JobConfig as JobConfig
    from hpclbfl.core.errors import ConfigError as ConfigError
    from hpclbfl.core.errors import DataError as DataError
    from hpclbfl.core.errors import EnvironmentFault as EnvironmentFault
    from hpclbfl.core.errors import HpclbflError as HpclbflError
    from hpclbfl.core.errors import RunFailed as RunFailed
    from hpclbfl.gradients.attach import GradientScaler as GradientScaler
    from hpclbfl.gradients.attach_teacher import Teacher as Teacher

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DataError",
    "EnvironmentFault",
    "Frames",
    "GradientScaler",
    "HpclbflError",
    "JobConfig",
    "Result",
    "RunFailed",
    "Teacher",
    "__version__",
    "load_job",
    "load_runs",
    "make_job",
    "plot",
    "read_run",
    "run",
    "summarise",
]

_PLACES = {
    **dict.fromkeys(("ConfigError", "DataError", "EnvironmentFault", "HpclbflError", "RunFailed"), "core.errors"),
    **dict.fromkeys(("load_job", "make_job"), "api.jobs"),
    **dict.fromkeys(("Frames", "Result", "load_runs", "read_run", "run", "summarise"), "api.runs"),
    "GradientScaler": "gradients.attach",
    "JobConfig": "config.job",
    "Teacher": "gradients.attach_teacher",
    "plot": "api.plot",
}
"""Which module each public name comes from."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # torch and polars take seconds to load, and most commands do without them.
        if name in _PLACES:
            import importlib

            return getattr(importlib.import_module(f"hpclbfl.{_PLACES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
