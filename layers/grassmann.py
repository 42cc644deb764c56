r"""The Grassmannian G(1, n), where a filter is a point: its geometry, and which parameters of a model live there.

A row y of n weights, ‖y‖ = 1, stands for the line it spans. A tangent d at y is orthogonal to y (Cho & Lee 2017,
arXiv 1709.09603, section 3):
$$h = g - (y^\top g)\,y,\qquad \exp_y(d) = y\cos\|d\| + u\sin\|d\|,\quad u = d/\|d\|,$$
$$\mathrm{pt}_y(a; d) = a - (u^\top a)\,(y\sin\|d\| + u\,(1 - \cos\|d\|)),\qquad
\mathrm{pt}_y(d; d) = \|d\|\,(u\cos\|d\| - y\sin\|d\|).$$
Every function takes rows on the last axis, (…, n), and is done with each row by itself. sin‖d‖/‖d‖ is taken as a whole,
so that nothing is added to a norm and a tangent of 0 moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layers.card import OptionError
from layers.weights import Weight, weights


def lengths(rows: Tensor) -> Tensor:
    """Return ‖·‖ of each row of (…, n), as (…, 1)."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norms


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀb of each row of (…, n), as (…, 1)."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products.unsqueeze(-1)


def unit(rows: Tensor) -> Tensor:
    """Return the rows (…, n) divided by their norms; a row of zeros becomes nan."""
    return rows / lengths(rows)


def project(gradient: Tensor, y: Tensor) -> Tensor:
    """Return h = g − (yᵀg) y, the part of each row of the gradient that is tangent at y (equation 6)."""
    return torch.addcmul(gradient, y, inner(gradient, y), value=-1)


def tangent(gradient: Tensor, y: Tensor, omega: float = 0.0) -> Tensor:
    """Return the tangent part at y (k, O, n) of the gradient plus that of ω/2 ‖YYᵀ − 1‖².

    The gradient of the penalty is 2ω(YYᵀ − 1)Y. What the diagonal of YYᵀ − 1 adds to a row is radial, so it is left
    out instead of being added and projected away.
    """
    if omega and y.shape[-2] > 1:
        gram = torch.bmm(y, y.mT)
        gram.diagonal(dim1=-2, dim2=-1).zero_()
        gradient = torch.baddbmm(gradient, gram, y, alpha=2 * omega)
    return project(gradient, y)


def clipping(length: Tensor, most: float | None) -> Tensor:
    """Return min(1, ν/‖h‖) for each norm: what to scale a row by so that it is at most ν long; all 1 without ν."""
    return torch.ones_like(length) if most is None else length.clamp(min=most).reciprocal_().mul_(most)


def sinc(angle: Tensor) -> Tensor:
    """Return sin θ/θ, 1 at 0."""
    away = angle.abs().clamp_min(torch.finfo(angle.dtype).tiny)
    return away.sin() / away


def exponential(y: Tensor, d: Tensor) -> Tensor:
    """Return exp_y(d), where the geodesic from y that starts along d is after the length of d (equation 7)."""
    angle = lengths(d)
    return y * angle.cos() + d * sinc(angle)


def transport(a: Tensor, y: Tensor, d: Tensor) -> Tensor:
    """Return the tangent a at y carried along the geodesic of d to exp_y(d) (equation 8).

    With u = d/‖d‖: a − (dᵀa) (y sin‖d‖/‖d‖ + d (1 − cos‖d‖)/‖d‖²), and 1 − cos θ = 2 sin²(θ/2).
    """
    angle = lengths(d)
    return a - inner(d, a) * (y * sinc(angle) + d * (sinc(angle / 2).square() / 2))


def transport_along(y: Tensor, d: Tensor) -> Tensor:
    """Return d carried along its own geodesic, ‖d‖ (u cos‖d‖ − y sin‖d‖) (equation 9)."""
    angle = lengths(d)
    return d * angle.cos() - y * (angle * angle.sin())


def rotate_(p: Tensor, y: Tensor, a: Tensor, length: Tensor, angle: Tensor) -> None:
    """Write exp_y(d) into p and the transport of a into a, for d = angle · a/‖a‖ (its sign included), ‖a‖ = length.

    Both stay in the plane of y and a, so one rotation gives both:
    p = y cos θ + a sin θ/‖a‖,  a ← a cos θ − y ‖a‖ sin θ.
    """
    cos, sin = angle.cos(), angle.sin()
    torch.mul(y, cos, out=p)
    p.addcmul_(a, sin / length)
    a.mul_(cos).addcmul_(y, length * sin, value=-1)


def excludes(weight: Weight) -> str:
    """Return why a parameter of a model is not put on the Grassmannian; empty when it is.

    It takes kernels of convolutions with fewer outputs (per group) than weights of one output, as the published code
    does: only so few rows can be orthogonal with room to turn. Whether a normalization follows, which makes the length
    of a row irrelevant, cannot be seen from the parameter.
    """
    if not weight.is_kernel:
        return "no kernel: its entries are not weights of filters"
    if weight.kind == "linear":
        return "linear: kernels of convolutions alone, as in the published code"
    if weight.kind == "transposed":
        return "transposed: its output channels are not on the first axis, where rows are taken"
    if not weight.parameter.is_floating_point():
        return f"{weight.parameter.dtype}: real floating-point weights alone"
    outputs, inputs = weight.parameter.shape[0] // weight.groups, weight.parameter.shape[1:].numel()
    per_group = " per group" if weight.groups > 1 else ""
    return "" if outputs < inputs else f"not undercomplete: {outputs} filters{per_group} of {inputs} weights"


def grassmann_groups(
    model: nn.Module,
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    excludes: Callable[[Weight], str] = excludes,
) -> list[dict[str, Any]]:
    """Return parameter groups of SGD-G and Adam-G with every parameter of ``model`` in one of them, under its name.

    Kernels that ``excludes`` does not exclude are on the Grassmannian, one group for each number of convolution groups,
    with the options of the optimizer. The others are trained by Nesterov SGD with ``lr``, ``momentum`` and
    ``weight_decay``; γ and β of normalizations do not decay (the published code). Start from `unit_rows_`:

        model = unit_rows_(model)
        optimizer = SGDG(grassmann_groups(model), lr=0.2)
    """
    points: dict[int, list[tuple[str, Tensor]]] = {}
    decayed: list[tuple[str, Tensor]] = []
    affine: list[tuple[str, Tensor]] = []
    found = weights(model)
    norms = {weight.module for weight in found if weight.kind == "norm"}
    for weight in found:
        if not excludes(weight):
            chosen = points.setdefault(weight.groups, [])
        else:
            chosen = affine if weight.module in norms else decayed
        chosen.append((weight.name, weight.parameter))
    kept: dict[str, Any] = {"weight_decay": 0.0, "manifold": True}
    other: dict[str, Any] = {"lr": lr, "momentum": momentum, "manifold": False, "groups": 1}
    made = [{"params": rows, "groups": groups, **kept} for groups, rows in sorted(points.items())]
    made += [
        {"params": decayed, "weight_decay": weight_decay, **other},
        {"params": affine, "weight_decay": 0.0, **other},
    ]
    return [group for group in made if group["params"]]


@torch.no_grad()
def unit_rows_(model: nn.Module, *, excludes: Callable[[Weight], str] = excludes) -> nn.Module:
    """Divide each filter that `grassmann_groups` puts on the Grassmannian by its norm, in place; return ``model``.

    The paper starts there. The optimizers work on p/‖p‖ anyway, but a first gradient taken at other norms carries a
    factor 1/‖p‖, because the layers that follow do not see the norm. Raises OptionError for a filter of zeros, before
    anything is changed.
    """
    chosen = {weight.name: weight.parameter for weight in weights(model) if not excludes(weight)}
    for name, parameter in chosen.items():
        refuse_zero_rows(parameter, name)
    for parameter in chosen.values():
        parameter.copy_(unit(parameter.flatten(1)).view_as(parameter))
    return model


def refuse_zero_rows(parameter: Tensor, name: str) -> None:
    """Raise OptionError when a row of ``parameter`` (O, …) is zero; waits for its device once."""
    if parameter.is_meta or not parameter.numel():
        return
    zero = (parameter.detach().flatten(1) == 0).all(1)
    if zero.any():
        row = int(zero.nonzero()[0])
        raise OptionError(f"{name}: row {row} is zero and has no direction: draw its weights anew")
