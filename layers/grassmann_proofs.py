"""What holds for every optimizer on the Grassmannian, as the two sides of equations.

Each function gets ``make(params)``, an optimizer with the options of the identity, and a weight (O, …) in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from layers.grassmann import exponential as exp
from layers.grassmann import inner, lengths, project, transport, transport_along, unit

Make = Callable[..., Optimizer]


def wave(like: Tensor, step: int = 0) -> Tensor:
    """Return numbers of the shape of ``like``, the same at every call, others for each ``step``."""
    count = torch.arange(like.numel(), dtype=like.dtype, device=like.device)
    return ((step + 1.7) * count + step).sin().add(0.1).view_as(like)


def walk(make: Make, start: Tensor, gradients: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return rows (O, n) and state of an optimizer that began at ``start`` and saw ``gradients``."""
    parameter = start.detach().clone().requires_grad_()
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach().flatten(1), optimizer.state[parameter]


def frame(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit rows y of the weight and two tangents at them, the first up to 1.5 long."""
    y = unit(weight.detach().flatten(1))
    d, a = project(wave(y), y), project(wave(y, 1), y)
    return y, unit(d) * torch.linspace(0.1, 1.5, y.shape[0], dtype=y.dtype, device=y.device).unsqueeze(1), a


def unit_length(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """‖y‖ after 5 steps, and 1."""
    rows, _ = walk(make, weight, [wave(weight, step) for step in range(5)])
    return lengths(rows), torch.ones_like(lengths(rows))


def momentum_is_tangent(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The momentum of a row beside its part that is tangent at the row, after 5 steps: ⟨y, τ⟩ = 0."""
    rows, state = walk(make, weight, [wave(weight, step) for step in range(5)])
    buffer = next(tensor for tensor in state.values() if tensor.shape == weight.shape).flatten(1)
    return buffer, project(buffer, rows)


def transport_keeps_products(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """⟨a, a⟩, ⟨a, d⟩ and ⟨d, d⟩ after the transport along d, and before."""
    y, d, a = frame(weight)
    moved, along = transport(a, y, d), transport(d, y, d)

    def products(first: Tensor, second: Tensor) -> Tensor:
        pairs = ((first, first), (first, second), (second, second))
        return torch.stack([inner(left, right) for left, right in pairs])

    return products(moved, along), products(a, d)


def transport_of_the_direction(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 8 applied to d itself, and equation 9."""
    y, d, _ = frame(weight)
    return transport(d, y, d), transport_along(y, d)


def distance(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The angle between y and exp_y(d), and ‖d‖."""
    y, d, _ = frame(weight)
    return inner(y, exp(y, d)).acos(), lengths(d)


def odd(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """exp at −y along −d, and −exp at y along d: the two points are one line."""
    y, d, _ = frame(weight)
    return exp(-y, -d), -exp(y, d)


def radial_part(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows after a step by g + c·p, for some c per row, and by g."""
    radial = torch.linspace(-3, 3, weight.shape[0], dtype=weight.dtype).view(-1, *[1] * (weight.dim() - 1))
    pulled, _ = walk(make, weight, [wave(weight) + radial * weight.detach()])
    return pulled, walk(make, weight, [wave(weight)])[0]


def rotation(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows after 5 steps from pQ by gQ, and those from p by g, times Q, for an orthogonal Q of the weights of a row."""
    rows = weight.detach().flatten(1)
    gradients = [wave(rows, step) for step in range(5)]
    q = torch.linalg.qr(wave(torch.empty(2 * [rows.shape[1]], dtype=rows.dtype), 3))[0]
    turned, _ = walk(make, rows @ q, [gradient @ q for gradient in gradients])
    return turned, walk(make, rows, gradients)[0] @ q


def penalty(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows after steps that know ω by the option, and by the gradient of ω/2 ‖YYᵀ − 1‖² as autograd gives it."""
    omega = 0.1
    start = unit(weight.detach().flatten(1))
    y = start.clone().requires_grad_()
    loss = omega / 2 * (y @ y.mT - torch.eye(y.shape[0], dtype=y.dtype)).square().sum()
    (slope,) = torch.autograd.grad(loss, y)
    by_option, _ = walk(lambda params: make([{"params": params, "omega": omega}]), start, [wave(start)])
    by_loss, _ = walk(lambda params: make([{"params": params, "omega": 0.0}]), start, [wave(start) + slope])
    return by_option, by_loss


def turned(make: Make, weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """Return by what angle each row is from where it began, (O,): 2 arcsin of half the distance of unit rows."""
    rows, _ = walk(make, weight, gradients)
    return 2 * (lengths(rows - unit(weight.detach().flatten(1))) / 2).asin().squeeze(1)


def plain_groups(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in a group with manifold=False after 5 steps, and torch.optim.SGD's, with Nesterov's momentum."""
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    gradients = [wave(weight, step) for step in range(5)]
    ours, _ = walk(lambda params: make([{"params": params, "manifold": False, **options}]), weight, gradients)
    theirs, _ = walk(lambda params: torch.optim.SGD(params, nesterov=True, **options), weight, gradients)
    return ours, theirs
