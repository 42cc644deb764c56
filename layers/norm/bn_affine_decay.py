r"""Decay of batch normalization's γ and β, with γ pulled to 1 (Summers & Dinneen 2020, arXiv 1906.03548).

$$R = \tfrac{\lambda}{2}\sum_c (\gamma_c - 1)^2 + \tfrac{\lambda}{2}\sum_c \beta_c^2,\qquad
\partial R/\partial\gamma = \lambda(\gamma - 1),\quad \partial R/\partial\beta = \lambda\beta$$
A convolution before a batch normalization may be scaled without changing the output, so its decay only changes the
effective learning rate. The decay of γ and β changes the function.

An optimizer's weight decay pulls to 0 and cannot say 1, so the stone is a term to add to the loss:

    optimizer = torch.optim.SGD(param_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
    loss = criterion(model(x), y) + bn_affine_decay(model, weight_decay=1e-4)
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layers.batch_norms import batch_norms
from layers.card import Card, Identity, Option, Paper

card = Card(
    title="Weight decay on batch normalization's γ and β",
    paper=Paper(
        authors="Summers, Dinneen",
        title="Four Things Everyone Should Know to Improve Batch Normalization",
        year=2020,
        venue="ICLR 2020",
        arxiv="1906.03548",
    ),
    impl="bn_affine_decay",
    role="transform",
    formula="R = λ/2 Σ(γ − 1)² + λ/2 Σβ²",
    summary="A penalty on γ and β of every batch normalization of a model, to be added to the loss.",
    options=(
        Option(name="weight_decay", type=float, default=1e-4, ge=0, help="λ; usually that of the other weights"),
        Option(
            name="gamma_target",
            type=float,
            default=1.0,
            help="what γ is pulled to; 0 is the decay that optimizers have",
            source="the authors' code",
        ),
        Option(
            name="apply_to", type=str, default="both", choices=("gamma", "beta", "both"), help="which of the two decay"
        ),
    ),
    identities=(
        Identity(says="∂R/∂γ = λ(γ − 1) and ∂R/∂β = λβ", proof="gradients"),
        Identity(says="with target 0, a step of SGD on R is SGD's own weight decay", proof="plain_decay"),
        Identity(says="shrinking every convolution changes no output, at ε → 0", proof="convolutions_may_shrink"),
    ),
    notes=(
        "In the published file the weight_decay argument of the layer is dead: the regularizers are made without it, "
        "and none is ever attached.",
        "Where another normalization follows, it removes a scale common to all γ and β again; their decay can matter "
        "more where they reach the output without one, as in residual networks.",
        "γ is pulled to 1, where plain weight decay in torch's optimizers pulls it to 0.",
    ),
    examples=({}, {"weight_decay": 0.01, "gamma_target": 0.0}, {"apply_to": "gamma"}, {"apply_to": "beta"}),
)


def bn_affine_decay(
    model: nn.Module, weight_decay: float = 1e-4, gamma_target: float = 1.0, apply_to: str = "both"
) -> Tensor:
    """Return R (), differentiable, over γ and β (`batch_norms`) of ``model``, in their dtype; add it to the loss.

    Parameters that several layers share count once. Raises OptionError for refused options, for a model without batch
    normalization, and for one whose batch normalization lacks γ and β.
    """
    card.check({}, {"weight_decay": weight_decay, "gamma_target": gamma_target, "apply_to": apply_to})
    gammas, betas = _affine(model)
    distances = [gamma.flatten() - gamma_target for gamma in gammas] if apply_to != "beta" else []
    distances += [beta.flatten() for beta in betas] if apply_to != "gamma" else []
    return weight_decay / 2 * torch.cat(distances).square().sum()


def param_groups(model: nn.Module, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
    """Split the parameters of ``model`` for any torch optimizer: γ and β without decay, all others with it.

    The decay of γ and β then comes from `bn_affine_decay` alone, and is not counted twice.
    Raises OptionError as `bn_affine_decay` does.
    """
    card.check({}, {"weight_decay": weight_decay})
    affine = {id(parameter): parameter for kind in _affine(model) for parameter in kind}
    others = [parameter for parameter in model.parameters() if id(parameter) not in affine]
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": list(affine.values()), "weight_decay": 0.0},
    ]


def _affine(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """All γ and all β of ``model``, each parameter once."""
    norms = batch_norms(model).values()
    gammas = {id(norm.weight): norm.weight for norm in norms if norm.weight is not None}
    betas = {id(norm.bias): norm.bias for norm in norms if norm.bias is not None}
    return list(gammas.values()), list(betas.values())


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂R/∂γ and ∂R/∂β by autograd beside the formulas, away from the values where a model starts."""
    moved = _moved(model)
    gammas, betas = _affine(moved)
    found = torch.autograd.grad(bn_affine_decay(moved, 0.3), [*gammas, *betas])
    return torch.cat(found), 0.3 * torch.cat([*(gamma - 1 for gamma in gammas), *betas])


def plain_decay(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """γ and β after a step of SGD on R with target 0 beside a step of SGD(weight_decay) on nothing."""
    penalized, decayed = _moved(model), _moved(model)
    left, right = ([parameter for kind in _affine(made) for parameter in kind] for made in (penalized, decayed))
    slopes = torch.autograd.grad(bn_affine_decay(penalized, 0.3, gamma_target=0.0), left)
    for one, other, slope in zip(left, right, slopes, strict=True):
        one.grad, other.grad = slope, torch.zeros_like(other)
    torch.optim.SGD(left, lr=0.1).step()
    torch.optim.SGD(right, lr=0.1, weight_decay=0.3).step()
    return torch.cat(left), torch.cat(right)


def convolutions_may_shrink(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a model whose convolutions were shrunk beside that of the model, both without ε."""
    whole, shrunk = _moved(model), _moved(model)
    for made in (whole, shrunk):
        for norm in batch_norms(made).values():
            norm.eps = 1e-30
    with torch.no_grad():
        for module in shrunk.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(0.7)
    return shrunk(x), whole(x)


def _moved(model: nn.Module) -> nn.Module:
    """A copy in training mode with γ and β away from 1 and 0, the same at every call."""
    moved = copy.deepcopy(model).train()
    with torch.no_grad():
        for kind in _affine(moved):
            for i, parameter in enumerate(kind):
                parameter += 0.3 * torch.linspace(-1, 1, parameter.numel()).add(i).sin().to(parameter)
    return moved
