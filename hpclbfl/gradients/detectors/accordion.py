"""Accordion: the change of the norm of the gradient of a whole epoch.

S. Agarwal et al., "Accordion: Adaptive Gradient Communication via Critical Learning Regime Identification", MLSys 2021.
D is the gradient accumulated over an epoch. At the end of every `interval_epochs`-th epoch its norm is compared with
the one of the comparison before,

    delta = | |D_old| - |D_new| | / |D_old|

and the change is held until the next comparison. The authors compare every 10 epochs, and take a change of 0.5 and
more, or a learning rate that decays, as critical. As in their algorithm D is accumulated over every epoch, though the
last one before a comparison alone counts. What differs:

- D is the mean over the epoch's samples, where they add up the gradients of its steps: under a fixed batch the change
  is the same, and one that the detector itself changes does not show as a change of D. They compare layer by layer to
  choose compression, and the whole model, as here, to choose the batch.
- The first comparison is between the first epoch and the one `interval_epochs` after it. Before it the change is not
  known (NaN); whoever decides by it says what that means, in the paper that the phase is critical.
- A rate that decays gives an infinite change, above any threshold, from that step to the next comparison. A decay is a
  fall to half or less in one step, after a step in which the rate did not fall: a schedule with steps has such falls; a
  warm-up or a cosine, whose last steps fall quickly one after the other, has none. A rate that falls because the batch
  does is one.

Gradients that are not finite are left out. A norm of D that is zero up to rounding is no predecessor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients.change import RESOLUTION, relative, unknown
from hpclbfl.gradients.norm import squared_norm

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients import Context
    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

DECAY = 0.5
"""A rate that falls to this part of itself, or less, in one step has decayed."""


class AccordionConfig(DetectorConfig):
    """Accordion: the change of the norm of the gradient of a whole epoch, or a learning rate that decays.

    The threshold 0.5 is the authors'. Here neither that of the scaler nor that of an averaging was chosen from
    measurements.
    """

    interval_epochs: PositiveInt = 10
    """Epochs between two comparisons."""

    takes_norms_only: ClassVar[bool] = False


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@checkpointed
@dataclass(frozen=True)
class EpochState:
    """What the next comparison depends on."""

    total: Tensor
    """[P] sum over the epoch so far of each step's gradient times its share of an epoch."""
    mass: Tensor = field(default_factory=_zero)
    """Sum of those shares."""
    norm: Tensor = field(default_factory=unknown)
    """|D| of the newest comparison; NaN where there is none yet."""
    change: Tensor = field(default_factory=unknown)
    """That of the newest comparison; infinite after a decay of the rate; NaN before the first comparison."""
    epochs: int = 0
    """That have ended."""
    lr: float = math.nan
    """Of the step before."""
    fell: bool = False
    """Whether that was lower than the one before it."""


@DETECTORS.register("accordion", AccordionConfig)
class Accordion:
    """See the module; a `hpclbfl.gradients.change.Detector`."""

    needs_layers = False

    def __init__(self, config: AccordionConfig) -> None:
        self._interval = config.interval_epochs

    def init(self, layout: Layout | None) -> EpochState:
        """An empty epoch. Raises ValueError: the parameters' layout is not known."""
        if layout is None:
            raise ValueError("accordion adds up gradients: it needs the layout of the parameters")
        return EpochState(torch.zeros(layout.size, dtype=layout.dtype, device=layout.device))

    def observe(self, gradient: Gradient, state: EpochState, ctx: Context) -> EpochState:
        """Takes the whole gradient, without its factor. Raises ConfigError: it is not told where epochs end."""
        if math.isnan(ctx.epoch_after):
            raise ConfigError("detector accordion needs to know where epochs end, which it is not told here")
        device, share = state.total.device, ctx.epoch_after - ctx.epoch
        is_finite = torch.isfinite(gradient.sq_norm).to(device)
        total = torch.where(is_finite, torch.add(state.total, gradient.flat, alpha=share), state.total)
        mass = state.mass.to(device) + share * is_finite.double()
        norm, change, epochs = state.norm.to(device), state.change.to(device), state.epochs
        if ctx.ends_epoch:
            if epochs % self._interval == 0:
                sq_norm = squared_norm([total]) / mass**2
                now = (sq_norm if ctx.agree is None else ctx.agree(sq_norm)).sqrt()
                change = relative(now, norm, RESOLUTION)
                # Of an epoch without any finite gradient it is not known.
                norm = torch.where(now.isnan(), norm, now)
            total, mass, epochs = torch.zeros_like(total), torch.zeros_like(mass), epochs + 1
        if ctx.lr <= DECAY * state.lr and not state.fell:
            change = torch.full_like(change, math.inf)
        return EpochState(total, mass, norm, change, epochs, ctx.lr, ctx.lr < state.lr)
