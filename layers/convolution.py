"""What every two-dimensional convolution of the library shares: torch.nn.Conv2d with options checked by a card.

A subclass computes its effective weight from ``weight``; parameters, names of options and attributes, initial values
and padding modes are those of `torch.nn.Conv2d`, so that checkpoints, initialisers and `isinstance` work unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from layers.card import Card, OptionError, OptionValue
from layers.moments import as_laid_out


def options_among(card: Card, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a constructor's ``arguments``, its ``locals()``, that are options of ``card``."""
    return {option.name: arguments[option.name] for option in card.options}


def refuse_windows(
    name: str, x: Tensor, kernel_size: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[int, ...] | str
) -> None:
    """Raise ValueError where ``x`` (N, C, H, W), padded, has no room for a window; ``name`` is the layer's."""
    for size, kernel, step, pad in zip(x.shape[2:], kernel_size, dilation, map(int, padding), strict=True):
        if size + 2 * pad < step * (kernel - 1) + 1:
            raise ValueError(
                f"{name}: a kernel_size of {kernel_size} with a dilation of {dilation} is larger than "
                f"the input of {x.shape[2]}×{x.shape[3]} with a padding of {padding}"
            )


class Convolution(nn.Conv2d):
    """A convolution of (N, C, H, W) by `effective_weight`, with the options of `layers.shared.CONVOLUTION` and others.

    ``out_channels`` None makes as many as there are inputs. Options of the card that torch's class lacks become
    attributes. A subclass with parameters of its own registers them after this constructor, then calls `start`.
    Raises OptionError (a ValueError) for an option or combination that the card refuses.
    """

    def __init__(
        self,
        card: Card,
        in_channels: int,
        options: Mapping[str, OptionValue],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checked: dict[str, Any] = card.check({"C": in_channels}, options)
        theirs = {name: checked[name] for name in _OF_TORCH}
        theirs["out_channels"] = in_channels if theirs["out_channels"] is None else theirs["out_channels"]
        super().__init__(in_channels, **theirs, device=device, dtype=dtype)
        self.options = checked
        for name, value in checked.items():
            if name not in _OF_TORCH:
                setattr(self, name, value)

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch.nn.Conv2d does, then start what the subclass adds."""
        super().reset_parameters()
        if hasattr(self, "options"):  # not yet, when torch's constructor calls
            self.start()

    def start(self) -> None:
        """Set what a subclass starts in its own way, from the weight and bias that torch.nn.Conv2d has drawn."""

    def effective_weight(self) -> Tensor:
        """Return the weight (O, C/groups, KH, KW) to convolve with."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (N, O, HO, WO) of ``x`` (N, C, H, W) with the effective weight, plus the bias."""
        self.check_input(x)
        y: Tensor = self._conv_forward(x, self.effective_weight(), self.bias)
        return as_laid_out(y, x)

    def fold(self) -> nn.Conv2d:
        """Return a torch.nn.Conv2d of the same outputs, its weight the effective one; for deployment.

        Raises OptionError where outputs are more than a convolution by a weight: the subclass has its own forward, or a
        hook before that makes the weight, as pruning and the older parametrizations of torch.nn.utils do.
        """
        if type(self).forward is not Convolution.forward:
            raise OptionError(f"{type(self).__name__} is more than a convolution by a weight: it cannot be folded")
        if "weight" not in self._parameters and not parametrize.is_parametrized(self, "weight"):
            raise OptionError(f"the weight of this {type(self).__name__} is made by a hook: remove that first")
        learnt = any(parameter.requires_grad for name, parameter in self.named_parameters() if name != "bias")
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            **{name: getattr(self, name) for name in _OF_TORCH if name not in ("out_channels", "bias")},
            bias=self.bias is not None,
            device="meta",
        )
        plain.to_empty(device=self.weight.device).to(self.weight.dtype)
        with torch.no_grad():
            plain.weight.copy_(self.effective_weight()).requires_grad_(learnt)
            if plain.bias is not None and self.bias is not None:
                plain.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return plain.train(self.training)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is (N, C, H, W), floating, with this layer's channels, and windows fit."""
        name = type(self).__name__
        if x.dim() != 4:
            raise ValueError(f"{name} takes (N, C, H, W), not {x.dim()}-d")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"{name} was built for {self.in_channels} channels, the input has {x.shape[1]}")
        if not x.is_floating_point():
            raise TypeError(f"{name} takes floating-point input, not {x.dtype}")
        if not (x.shape[2] and x.shape[3]):
            raise ValueError(f"{name} needs at least 1 position, the input has {x.shape[2]}×{x.shape[3]}")
        refuse_windows(name, x, self.kernel_size, self.dilation, self.padding)
        for size, pad in zip(x.shape[2:], map(int, self.padding), strict=True):
            if (self.padding_mode == "reflect" and pad >= size) or (self.padding_mode == "circular" and pad > size):
                raise ValueError(
                    f"{name}: padding_mode={self.padding_mode} cannot add {self.padding} to {x.shape[2]}×{x.shape[3]}"
                )

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return ``x`` with its padding, unless that is zeros, and the zeros that are left to add."""
        high, wide = (int(size) for size in self.padding)
        if self.padding_mode == "zeros":
            return x, (high, wide)
        return F.pad(x, [wide, wide, high, high], self.padding_mode), (0, 0)

    def extra_repr(self) -> str:
        """Return the input channels and every option."""
        return ", ".join([str(self.in_channels), *(f"{name}={value!r}" for name, value in self.options.items())])


def autocast(*tensors: Any) -> Any:
    """Return ``tensors``, which may be None, in the dtype that autocast gives to convolutions, if it is on."""
    first: Tensor = tensors[0]
    device = first.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def admitted(name: str, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x`` in the dtype of autocast where that is on; for layers that compute in a wider one by themselves.

    Raises RuntimeError, as torch's convolutions do, where it is not on and ``weight`` is of another dtype; ``name`` is
    the layer's.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(device))
    if x.dtype != weight.dtype:
        raise RuntimeError(f"{name} has weights of type {weight.dtype}, not {x.dtype}")
    return x


_OF_TORCH = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode")
