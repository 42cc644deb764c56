r"""The ε-shifted L2 regularizer: weight decay that stops at a standard deviation of ε (Li, Chen, Xia & Yang 2019,
arXiv 1911.05920, version 1).

Of each filter, n = I weights with mean m and unbiased standard deviation s,
$$R = \tfrac{\lambda}{2}\sum_o \left[(n - 1)(s_o - \varepsilon)^2 + n\,m_o^2\right],\qquad
\partial R/\partial w = \lambda(w - \varepsilon\,\hat w),\quad \hat w = (w - m)/s .$$
Where a normalization follows, or the weights are standardized, the loss does not depend on the scale of a filter, so
that plain decay has no minimum: ‖w‖ falls to 0 wherever the loss pushes no more. Here the minimum is at s = ε, m = 0,
where R = 0; ε → 0 gives R = λ/2 ‖w‖². The gradient is that of the authors' code; R is its integral. With
``statistic=norm`` the length is shifted instead: R = λ/2 Σ(‖w_o‖ − ε)², that ε being √(n − 1) times this one.

    optimizer = torch.optim.SGD(param_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
    handle = attach(optimizer, model, lam=1e-4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layers.attached import Attached, Penalized
from layers.card import Card, Flops, Identity, Option, OptionError, Paper, Rule
from layers.moments import Planes, needs_plain_operations, widened
from layers.weight.weight_standardization import standardize
from layers.weight_functions import check
from layers.weights import Weight, weights

card = Card(
    title="ε-shifted L2 regularizer",
    paper=Paper(
        authors="Li, Chen, Xia, Yang",
        title="Understanding the Disharmony between Weight Normalization Family and Weight Decay: "
        "ε-shifted L2 Regularizer",
        year=2019,
        arxiv="1911.05920",
    ),
    impl="shifted_l2",
    role="penalty",
    formula="R = λ/2 Σ_o [(n − 1)(s_o − ε)² + n m_o²],  ∂R/∂w = λ(w − ε ŵ)",
    summary="Weight decay of every filter towards mean 0 and standard deviation ε instead of 0.",
    options=(
        Option(
            name="lam", type=float, default=1e-4, ge=0, help="λ", source="the authors' code: ResNets; mobile nets 4e-5"
        ),
        Option(
            name="eps",
            type=float,
            default=1e-3,
            gt=0,
            help="ε, where the decay stops; towards 0 it is plain weight decay",
            source="the authors' code: imagenet_fast; imagenet_mobile 1e-8",
        ),
        Option(
            name="statistic",
            type=str,
            default="std",
            choices=("std", "norm"),
            help="what is shifted: the standard deviation of a filter's weights, or its length",
            source="the authors' code for standardized weights; norm, the text",
        ),
    ),
    rules=(
        Rule(
            "statistic == 'norm' or I > 1",
            "statistic=std needs filters of 2 weights or more, these have {I}; use statistic=norm",
            "statistic",
        ),
    ),
    flops=Flops(
        "4*E + 8*O if statistic == 'std' else 2*E + 3*O",
        "4*E + 2*O if statistic == 'std' else E + 3*O",
    ),
    executed=Flops(
        "5*E + 14*O - 1 if statistic == 'std' else 2*E + 4*O - 1",
        "2*E + 16*O + 1 if statistic == 'std' else 2*E + 4*O + 1",
    ),
    explained=(
        "The moments are those of a normalizing kernel, 5 operations per weight; backward is a multiply-add. Looking "
        "for filters without variance is an operation per filter. `attach` takes the closed form instead, moments and "
        "one multiply-add per weight."
    ),
    saved="(4 if statistic == 'std' else 2)*O*B",
    traffic=Flops("E*B", "2*E*B"),
    identities=(
        Identity(says="∂R/∂w = λ(w − ε ŵ) with ŵ standardized as by weight-standardization", proof="gradient_of_std"),
        Identity(
            says="∂R/∂w has the length λ |‖w‖ − ε| where the norm is shifted",
            proof="length_of_gradient",
            options={"lam": 0.3, "eps": 0.7, "statistic": "norm"},
        ),
        Identity(says="R = 0 at standard deviation ε and mean 0", proof="minimum"),
        Identity(says="ε → 0 is weight decay, R = λ/2 ‖w‖²", proof="plain_decay", options={"eps": 1e-30}),
        Identity(says="both statistics are one where the mean is 0, with √(n − 1) ε for ε", proof="norm_is_scaled_std"),
    ),
    notes=(
        "The title has lost its ε in the notes and reads as a minus sign.",
        "The AAAI 2020 paper of the same title drops the shift and proposes another remedy.",
        "Published as an optimizer that adds to p.grad in place, so that the caller's gradients change.",
        "A filter of equal weights is 0/0 in the published code and becomes NaN; here it is refused where that can be "
        "seen, and decays plainly otherwise.",
        "Plain decay ends at ‖w‖⁴ = η²‖g‖²/(1 − (1 − ηλ)²), g the gradient at unit length: only filters without a "
        "gradient vanish.",
        "As in the authors' code, linear layers, depthwise convolutions, biases and normalizations keep their ordinary "
        "decay; so do transposed convolutions, which have their filters on another axis.",
    ),
    examples=({}, {"lam": 0.01, "eps": 0.1}, {"lam": 0.3, "eps": 0.7, "statistic": "norm"}),
)


def shifted_l2(weight: Tensor, lam: float = 1e-4, eps: float = 1e-3, statistic: str = "std") -> Tensor:
    """Return R () of ``weight`` (O, …), differentiable, in its dtype; add it to the loss, or see `attach`.

    Raises OptionError for refused options, for filters of one weight (std), and, where looking does not make a device
    wait (on the CPU), for a filter without variance (norm: without length).
    """
    rows = _rows(weight, lam, eps, statistic)
    if statistic == "norm":
        norm = torch.linalg.vector_norm(rows, dim=1)
        _refuse_dead(norm, weight, statistic)
        shifted: Tensor = (norm - eps).square().sum() * (lam / 2)
        return shifted.to(weight.dtype)
    count, (mean, var) = rows.shape[1], _moments(rows)
    _refuse_dead(var, weight, statistic)
    std = var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()  # its derivative at 0 is 0, not NaN
    each = (count - 1) * (std - eps).square() + count * mean.square()
    return (each.sum() * (lam / 2)).to(weight.dtype)


@torch.no_grad()
def shifted_l2_gradient(weight: Tensor, lam: float = 1e-4, eps: float = 1e-3, statistic: str = "std") -> Tensor:
    """Return ∂R/∂w in the shape and dtype of ``weight`` (O, …), in closed form: no graph, no synchronization.

    A filter without variance (norm: without length) gets the gradient λw of plain decay.
    Raises OptionError for refused options and for filters of one weight (std).
    """
    rows = _rows(weight, lam, eps, statistic)
    if statistic == "norm":
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        gradient = rows * (lam - torch.where(norm > 0, lam * eps / norm, 0.0))
    else:
        # λ(w − ε (w − m)/s) = (λ − λε/s) w + λε m/s
        mean, var = (moment.unsqueeze(1) for moment in _moments(rows))
        shift = torch.where(var > torch.finfo(var.dtype).tiny, lam * eps * var.rsqrt(), 0.0)
        gradient = (rows * (lam - shift)).add_(mean * shift)
    return gradient.view(weight.shape).to(weight.dtype)


def _rows(weight: Tensor, lam: float, eps: float, statistic: str) -> Tensor:
    """Check the options and return the filters as rows (O, I), in float32 or wider."""
    check(card, weight, {"lam": lam, "eps": eps, "statistic": statistic})
    return widened(weight).reshape(weight.shape[0], weight.shape[1:].numel())


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of each row (O,); torch.var_mean takes ten times as long."""
    planes, count = Planes(rows.unsqueeze(0)), rows.shape[1]
    return planes.mean.squeeze(0), planes.var.squeeze(0) * (count / (count - 1))


def _refuse_dead(size: Tensor, weight: Tensor, statistic: str, name: str = "shifted-l2") -> None:
    """Refuse a filter whose ``size`` (O,) is 0; without a look at what is on a device, abstract or traced."""
    if type(weight) not in (Tensor, nn.Parameter) or weight.device.type != "cpu" or needs_plain_operations():
        return
    if not size.all():
        first = int((size == 0).nonzero()[0])
        lacks = "variance" if statistic == "std" else "length"
        raise OptionError(f"{name}: filter {first} has no {lacks}; draw it at random, or leave it to weight decay")


def excludes(weight: Weight) -> str:
    """Return "" for a convolution kernel (O, C/groups > 1, KH, KW), else why ``weight`` keeps its ordinary decay."""
    if weight.kind != "conv":
        names = {"norm": "γ of a normalization", "bias": "a bias", "linear": "a linear layer", "other": "no kernel"}
        found = names.get(weight.kind, "a transposed convolution")
    elif not weight.parameter.is_floating_point():
        found = f"{weight.parameter.dtype}, not real floating-point"
    elif weight.parameter.dim() != 4:
        found = f"a kernel of {weight.parameter.dim()} axes, not 4"
    elif weight.parameter.shape[1] == 1:
        found = "one input channel per group (depthwise)"
    else:
        return ""
    return f"{found}: keeps its ordinary weight decay"


def param_groups(model: nn.Module, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
    """Split the parameters of ``model`` for any torch optimizer: all but those that `attach` regularizes decay plainly.

    The others are the second group, without weight decay. Raises OptionError for a negative ``weight_decay``.
    """
    Option(name="weight_decay", type=float, default=1e-4, ge=0, help="").check(weight_decay)
    shifted = [weight.parameter for weight in weights(model) if not excludes(weight)]
    others = [weight.parameter for weight in weights(model) if excludes(weight)]
    return [{"params": others, "weight_decay": weight_decay}, {"params": shifted, "weight_decay": 0.0}]


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    every: int = 1,
    lam: float = 1e-4,
    eps: float = 1e-3,
    statistic: str = "std",
    decoupled: bool = True,
) -> Attached:
    """Regularize those kernels of ``model`` that `excludes` admits, at every ``every``-th step of ``optimizer``.

    Decoupled: w ← w − lr·∂R/∂w before the update; else ∂R/∂w is added to the gradient for the step (`Penalized`).
    ``skipped`` of the handle says which parameters keep their ordinary decay, and why.
    Raises OptionError for refused options, for a parameter whose group has a weight_decay too (`param_groups` splits
    them), for a filter without variance (norm: length), for lr·lam ≥ 2, and as `Attached` does.
    """
    options = card.check({}, {"lam": lam, "eps": eps, "statistic": statistic})
    for weight in weights(model):
        if not excludes(weight) and weight.parameter.device.type != "meta":
            rows = _rows(weight.parameter.detach(), lam, eps, statistic)
            size = rows.var(1) if statistic == "std" else torch.linalg.vector_norm(rows, dim=1)
            _refuse_dead(size.cpu(), torch.empty(0), statistic, weight.name)
    return Penalized(
        optimizer,
        model,
        excludes,
        lambda weight: shifted_l2(weight.parameter, **options),  # type: ignore[arg-type]
        lambda weight: shifted_l2_gradient(weight.parameter, **options),  # type: ignore[arg-type]
        lam=lam,
        limit=2.0,
        every=every,
        decoupled=decoupled,
        replaces_decay=True,
    )


Apply = Callable[[Tensor], Tensor]


def _gradient(apply: Apply, weight: Tensor) -> Tensor:
    leaf = weight.detach().clone().requires_grad_()
    return torch.autograd.grad(apply(leaf), leaf)[0]


def gradient_of_std(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """∂R/∂w by autograd beside λ(w − ε ŵ), for the default options."""
    standard = standardize(weight.flatten(1), "qiao", 0.0).view_as(weight)
    return _gradient(apply, weight), 1e-4 * (weight - 1e-3 * standard)


def length_of_gradient(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """‖∂R/∂w_o‖ beside λ |‖w_o‖ − ε|, for the options of the card."""
    return _gradient(apply, weight).flatten(1).norm(dim=1), 0.3 * (weight.flatten(1).norm(dim=1) - 0.7).abs()


def minimum(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R at standard deviations of ε and 2ε beside 0 and λ/2 Σ(n − 1)ε², for the default options."""
    least = 1e-3 * standardize(weight.flatten(1), "qiao", 0.0).view_as(weight)
    beyond = 0.5e-4 * (weight.numel() - len(weight)) * 1e-3**2
    return torch.stack([apply(least), apply(2 * least)]), torch.tensor([0.0, beyond], dtype=weight.dtype)


def plain_decay(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R at ε → 0 beside λ/2 ‖w‖²."""
    return apply(weight), 0.5e-4 * weight.square().sum()


def norm_is_scaled_std(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R of centred filters beside that of their length, shifted by √(n − 1) ε."""
    centred = weight - weight.flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))
    count = weight[0].numel()
    return apply(centred), shifted_l2(centred, eps=1e-3 * (count - 1) ** 0.5, statistic="norm")
