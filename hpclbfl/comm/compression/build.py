"""A job's compressor at work: its reduction, the level that an adapter sets, what it logs, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm.compression import Reduction, Setup
from hpclbfl.comm.compression.adapt import Adapter, Seen
from hpclbfl.comm.compression.payloads import PayloadReduction
from hpclbfl.config.components import ADAPTERS, COMPRESSORS
from hpclbfl.config.sections.compression import CompressionConfig
from hpclbfl.core.errors import DataError
from hpclbfl.core.fitting import check_like, placed_like
from hpclbfl.core.state import Stateful
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.gradient import Gradient, Layout

_MB = 1e6


class Compression:
    """See the module; a `hpclbfl.core.state.Stateful`, of what is equal on all ranks.

    Args:
        config: of the job.
        setup: what is reduced.
        layout: of the parameters.
    """

    def __init__(self, config: CompressionConfig, setup: Setup, layout: Layout) -> None:
        self._config, self._setup, self._layout = config, setup, layout
        made = COMPRESSORS.make(config)
        make = getattr(made, "reduction", None)
        self.reduction: Reduction = (
            PayloadReduction(made, config.keeps_residual, setup) if make is None else make(setup)
        )
        self._adapter: Adapter | None = None if config.adapter is None else ADAPTERS.make(config.adapter)
        self._adapter_state: Any = None if self._adapter is None else self._adapter.init(layout)
        self._level = config.level

    def begin(self, step: int) -> None:
        """Call before the clients' contributions to a step's reduction."""
        if self._adapter is not None:
            self._level = float(self._adapter.level(self._config.level, self._adapter_state))
        self.reduction.begin(step, self._level)

    def observe(self, gradient: Gradient, context: Context, norms: Tensor | None) -> Metrics:
        """Take what has arrived, and return numbers for the log.

        Args:
            norms: what the reduction's `finish` returned.
        """
        error = None if norms is None else norms[1] / norms[0]
        if self._adapter is not None:
            seen = Seen(gradient, context, error)
            self._adapter_state = self._adapter.update(seen, self._config.level, self._adapter_state)
        metrics = {"sent_mb": torch.tensor(self.reduction.sent_bytes / _MB, dtype=torch.float64)}
        if error is not None:
            metrics["compression_error"] = error
        if self._adapter is not None:
            metrics["compression_level"] = torch.tensor(self._level, dtype=torch.float64)
        device = gradient.sq_norm.device
        return {name: value.to(device) for name, value in metrics.items()}

    def client_state(self, client: int) -> Stateful:
        """What a client of this rank keeps."""
        return _Residual(self.reduction, client, self._setup.flat)

    def state_dict(self) -> dict[str, Any]:
        """See `Stateful`."""
        return {"compression": {"reduction": self.reduction.shared_state(), "adapter": self._adapter_state}}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `Stateful`."""
        fresh = {
            "reduction": self.reduction.shared_state(),
            "adapter": None if self._adapter is None else self._adapter.init(self._layout),
        }
        check_like(fresh, found.get("compression"), "compression")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `Stateful`."""
        saved = found["compression"]
        self.reduction.load_shared_state(saved["reduction"])
        if self._adapter is not None:
            self._adapter_state = placed_like(self._adapter.init(self._layout), saved["adapter"])


class _Residual:
    """A client's residual; a `Stateful`."""

    def __init__(self, reduction: Reduction, client: int, like: Tensor) -> None:
        self._reduction, self._client, self._like = reduction, client, like

    def state_dict(self) -> dict[str, Any]:
        return {"residual": self._reduction.residual(self._client)}

    def check_state(self, found: Mapping[str, Any]) -> None:
        if "residual" not in found:
            raise DataError("residual is missing")
        # A linear compressor's lies with one client of a rank; of which, depends on the number of ranks.
        if found["residual"] is not None:
            check_like(self._like, found["residual"], "residual")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        if found["residual"] is not None:
            self._reduction.add_residual(self._client, found["residual"])
