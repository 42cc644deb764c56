"""What layers share: options checked by a card, the check of an input; and normalizations: γ and β per channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from layers.card import Card, OptionError, OptionValue
from layers.moments import wide_dtype

AXES = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


class Layer(nn.Module):
    """A layer of (N, C, *positions), of the ranks on its card, with options checked by it; each becomes an attribute.

    Raises OptionError (a ValueError) for an option or combination that the card refuses.
    """

    def __init__(self, card: Card, channels: int, options: Mapping[str, OptionValue]) -> None:
        super().__init__()
        self.channels = channels
        self.ranks = card.ranks
        self.options = card.check({"C": channels}, options)
        for name, value in self.options.items():
            setattr(self, name, value)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` has one of this layer's ranks and its channels, TypeError unless floating."""
        name = type(self).__name__
        if x.dim() not in self.ranks:
            *most, last = (AXES[rank] for rank in self.ranks)
            raise ValueError(f"{name} takes {', '.join(most)}{' or ' if most else ''}{last}, not {x.dim()}-d")
        if x.shape[1] != self.channels:
            raise ValueError(f"{name} was built for {self.channels} channels, the input has {x.shape[1]}")
        if not x.is_floating_point():
            raise TypeError(f"{name} takes floating-point input, not {x.dtype}")

    def refuse_no_positions(self, x: Tensor, kernel_size: int = 1, padding: int = 0) -> None:
        """Raise ValueError where ``x`` (N, C, H, W) has no position, or a window does not fit when it is padded."""
        name, size = type(self).__name__, f"{x.shape[2]}×{x.shape[3]}"
        if not (x.shape[2] and x.shape[3]):
            raise ValueError(f"{name} needs at least 1 position, the input has {size}")
        if min(x.shape[2:]) + 2 * padding < kernel_size:
            raise ValueError(
                f"{name}: kernel_size={kernel_size} is larger than the input of {size} with a padding of {padding}"
            )

    def extra_repr(self) -> str:
        """Return channels and options as they were given."""
        return ", ".join([str(self.channels), *(f"{name}={value!r}" for name, value in self.options.items())])


class Norm(Layer):
    """A normalization of (N, C, *positions) with options checked by its card.

    With ``affine`` it has ``weight`` (γ, ones) and ``bias`` (β, zeros), both (C,).
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
        super().__init__(card, channels, options)
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

    def refuse_single_values(self, count: int, what: str) -> None:
        """Raise ValueError when a statistic would be taken over one value: the output would be β whatever x is."""
        if count == 1:
            raise ValueError(f"{type(self).__name__} in training needs more than 1 value per {what}")


def scale_and_shift(
    var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return γ/√(σ² + ε) and β in the dtype of the statistics."""
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(var.dtype)
    return scale, None if bias is None else bias.to(var.dtype)


def widened_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return γ and β as torch's CPU kernels want them for ``x``: in the dtype of statistics, there for a half type.

    They keep the statistics for backward in the dtype of γ; a mean of few digits spoils ∂L/∂x.
    """
    wide = wide_dtype(x.dtype)
    if wide != x.dtype:
        weight = x.new_ones(x.shape[1], dtype=wide) if weight is None else weight
        bias = x.new_zeros(x.shape[1], dtype=wide) if bias is None else bias
    if weight is not None and weight.dtype != wide:
        weight = weight.float() if wide == torch.float32 else weight.to(wide)  # a quarter faster
    if bias is not None and bias.dtype != wide:
        bias = bias.float() if wide == torch.float32 else bias.to(wide)
    return weight, bias


__all__ = ["AXES", "Layer", "Norm", "OptionError", "scale_and_shift", "widened_affine"]
