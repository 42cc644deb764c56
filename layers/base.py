"""What every activation normalization shares: checked options, γ and β per channel, the check of an input."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from layers.card import Card, OptionError, OptionValue


class Norm(nn.Module):
    """A normalization of (N, C, *positions) with options checked by its card.

    Each option becomes an attribute. With ``affine`` it has ``weight`` (γ, ones) and ``bias`` (β, zeros), both (C,).
    Raises OptionError (a ValueError) for an option or combination that the card refuses.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        card: Card,
        channels: int,
        options: Mapping[str, OptionValue],
        *,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.options = card.check({"C": channels}, options)
        for name, value in self.options.items():
            setattr(self, name, value)
        shape = (channels,) if affine else None
        for name in ("weight", "bias"):
            made = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to one and β to zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is (N, C, *positions), 2-d to 5-d, floating, with this layer's channels."""
        if not 2 <= x.dim() <= 5:
            raise ValueError(
                f"{type(self).__name__} takes (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), not {x.dim()}-d"
            )
        if x.shape[1] != self.channels:
            raise ValueError(
                f"{type(self).__name__} was built for {self.channels} channels, the input has {x.shape[1]}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__} takes floating-point input, not {x.dtype}")

    def refuse_single_values(self, count: int, what: str) -> None:
        """Raise ValueError when a statistic would be taken over one value: the output would be β whatever x is."""
        if count == 1:
            raise ValueError(f"{type(self).__name__} in training needs more than 1 value per {what}")

    def extra_repr(self) -> str:
        """Return channels and options as they were given."""
        return ", ".join([str(self.channels), *(f"{name}={value!r}" for name, value in self.options.items())])


def scale_and_shift(
    var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return γ/√(σ² + ε) and β in the dtype of the statistics."""
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(var.dtype)
    return scale, None if bias is None else bias.to(var.dtype)


__all__ = ["Norm", "OptionError", "scale_and_shift"]
