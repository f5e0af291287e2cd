"""A gradient on its way to the optimizer: its values, its norms, and a factor that is not multiplied in yet.

The factor stays apart because a fused optimizer multiplies by it in the pass that it makes anyway, and because norms
are those of the values: Eq. 8 compares gradients before they are scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpclbfl.gradients.norm import layer_squared_norms, squared_norm

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


@dataclass(frozen=True)
class Layout:
    """Where each parameter's gradient lies in a flat one: the last parameter's first, as the backward pass goes."""

    names: tuple[str, ...]
    """[L] of the parameters that are trained, in the order of the net."""
    shapes: tuple[tuple[int, ...], ...]
    """[L]"""
    slices: tuple[slice, ...]
    """[L] of the flat gradient, [P]."""
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """P, the number of elements."""
        return max((at.stop for at in self.slices), default=0)

    @classmethod
    def of(cls, named: Iterable[tuple[str, nn.Parameter]]) -> Layout:
        """Of a net's `named_parameters()`."""
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        begin, slices = 0, []
        for _, parameter in reversed(trained):
            slices.append(slice(begin, begin + parameter.numel()))
            begin += parameter.numel()
        names, parameters = zip(*trained, strict=True)
        shapes = tuple(tuple(parameter.shape) for parameter in parameters)
        return cls(names, shapes, tuple(reversed(slices)), parameters[0].dtype, parameters[0].device)


class Gradient:
    """One gradient.

    Args:
        values: [P] flat, or one tensor for each parameter in the order of the net; None for one that the backward pass
            did not reach.
        layout: of the parameters; None: not known, and `flat` and `tensors` cannot be asked for.
        sq_norm: float64 0-d; None: it is measured when it is asked for.
        layer_sq_norms: [L], the same.
        factor: 0-d; None: 1.
        is_replaced: the values lie elsewhere than where the optimizer finds its gradient.
        is_owned: a transform may change the values in place, by `edited`.
        measured: see the property.
        changes: how often transforms have changed the values.
    """

    def __init__(
        self,
        values: Tensor | Sequence[Tensor | None],
        layout: Layout | None = None,
        sq_norm: Tensor | None = None,
        layer_sq_norms: Tensor | None = None,
        factor: Tensor | None = None,
        is_replaced: bool = False,
        is_owned: bool = False,
        measured: Gradient | None = None,
        changes: int = 0,
    ) -> None:
        self.values, self.layout, self.factor = values, layout, factor
        self.is_replaced, self.is_owned, self.changes = is_replaced, is_owned, changes
        self._measured = measured
        self._flat: Tensor | None = None
        self._sq_norm, self._layer_sq_norms = sq_norm, layer_sq_norms

    @property
    def sq_norm(self) -> Tensor:
        """Squared norm of the values, without the factor; float64 0-d."""
        if self._sq_norm is None:
            self._sq_norm = squared_norm(self._there())
        return self._sq_norm

    @property
    def layer_sq_norms(self) -> Tensor:
        """[L] squared norm of each parameter's part, without the factor; float64."""
        if self._layer_sq_norms is None:
            self._layer_sq_norms = layer_squared_norms(
                self.tensors if isinstance(self.values, torch.Tensor) else self._there()
            )
        return self._layer_sq_norms

    @property
    def flat(self) -> Tensor:
        """[P] the values in one tensor, without the factor; not to be changed in place."""
        if isinstance(self.values, torch.Tensor):
            return self.values
        if self._flat is None:
            self._flat = torch.cat([tensor.reshape(-1) for tensor in reversed(self.tensors)])
        return self._flat

    @property
    def tensors(self) -> list[Tensor]:
        """[L] the values by parameter, in the order of the net; not to be changed in place."""
        layout = self._known_layout()
        values = self.values
        if isinstance(values, torch.Tensor):
            return [values[at].view(shape) for at, shape in zip(layout.slices, layout.shapes, strict=True)]
        like = self._there()[0]
        return [
            like.new_zeros(shape) if value is None else value
            for value, shape in zip(values, layout.shapes, strict=True)
        ]

    @property
    def measured(self) -> Gradient:
        """What a change of the gradient is told from: without the noise that a transform has added since.

        Of a gradient whose owner let it be `edited` the norms alone can be asked for, those by layer where they were
        known.
        """
        return self if self._measured is None else self._measured

    def scaled(self, factor: Tensor) -> Gradient:
        """The same values with a further factor, 0-d."""
        return self._with(factor=factor if self.factor is None else self.factor * factor)

    def with_norms(self, sq_norm: Tensor, layer_sq_norms: Tensor | None) -> Gradient:
        """The same values with these norms."""
        return self._with(sq_norm=sq_norm, layer_sq_norms=layer_sq_norms)

    def kept(self) -> Gradient:
        """The same gradient, of whose values whoever wants to change them takes a copy."""
        return self._with(is_owned=False)

    def edited(self) -> Gradient:
        """The same values, which may be changed in place: its own where their owner allows that, else a copy.

        This gradient must not be used any more; the new one's norms are measured when they are asked for, after the
        change. Its `measured` has the norms from before.
        """
        before = self.measured
        changed = {"sq_norm": None, "layer_sq_norms": None, "changes": self.changes + 1}
        if self.is_owned and self._is_dense:
            norms = Gradient((), self.layout, before.sq_norm, before._layer_sq_norms)
            return self._with(**changed, measured=norms)
        if isinstance(self.values, torch.Tensor):
            values: Any = self.values.clone()
        else:
            values = [tensor.clone(memory_format=torch.contiguous_format) for tensor in self.tensors]
        return self._with(**changed, measured=before, values=values, is_replaced=True, is_owned=True)

    def _with(self, **changed: Any) -> Gradient:
        own = {
            "values": self.values,
            "layout": self.layout,
            "sq_norm": self._sq_norm,
            "layer_sq_norms": self._layer_sq_norms,
            "factor": self.factor,
            "is_replaced": self.is_replaced,
            "is_owned": self.is_owned,
            "measured": self._measured,
            "changes": self.changes,
        }
        return Gradient(**own | changed)

    @property
    def _is_dense(self) -> bool:
        """Whether every parameter has its part, in one piece."""
        values = [self.values] if isinstance(self.values, torch.Tensor) else self.values
        return all(value is not None and value.is_contiguous() for value in values)

    def replaced(self, values: Tensor | Sequence[Tensor]) -> Gradient:
        """Other values under the same factor: [P] flat, or one tensor for each parameter in the order of the net.

        Raises:
            ValueError: they do not have the layout of the parameters.
        """
        layout = self._known_layout()
        if isinstance(values, torch.Tensor):
            if values.shape != (layout.size,):
                raise ValueError(f"a flat gradient of shape {list(values.shape)} for {layout.size} parameters")
        else:
            shapes = tuple(tuple(value.shape) for value in values)
            if shapes != layout.shapes:
                raise ValueError("the tensors of a gradient do not have the shapes of the parameters")
        return Gradient(
            values, layout, factor=self.factor, is_replaced=True, measured=self._measured, changes=self.changes + 1
        )

    def _there(self) -> list[Tensor]:
        values = [self.values] if isinstance(self.values, torch.Tensor) else self.values
        if not len(values):
            raise ValueError("of this gradient the norms alone are known: its values have been changed since")
        return [value for value in values if value is not None]

    def _known_layout(self) -> Layout:
        if self.layout is None:
            raise ValueError("this gradient does not know its parameters")
        return self.layout
