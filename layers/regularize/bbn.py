r"""Bounded Batch Normalization: the γ of a layer are kept within a factor of their mean (Jia, Tao, Gao & Xu 2017,
arXiv 1611.06013).

$$\alpha = \operatorname{mean}_i \frac{\gamma_i}{\sigma_i},\qquad
\gamma_i \leftarrow \alpha\,\sigma_i \min\!\left(\max\!\left(\frac{\gamma_i}{\alpha\,\sigma_i},\, 1/f\right), f\right),
\qquad f = 1 + \tilde\epsilon ,$$
with σ_i² the running variance plus ε of the layer (``type=bbn``, the paper), or σ_i = 1 (``type=rel``, the default of
the authors' code, which calls it "even better"). α is taken once, before anything is clamped. The authors call it
together with singular value bounding, at the same steps.

A γ of the other sign than α comes out as α σ/f: it changes its sign. Where α is near 0, because signs cancel or γ
starts at 0, all γ would become 0, so that it is refused.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from layers.attached import Attached, Projected
from layers.batch_norms import AnyBatchNorm, batch_norms
from layers.card import Card, Identity, Option, OptionError, Paper
from layers.moments import widened
from layers.weights import Weight, weights

card = Card(
    title="Bounded Batch Normalization",
    paper=Paper(
        authors="Jia, Tao, Gao, Xu",
        title="Improving Training of Deep Neural Networks via Singular Value Bounding",
        year=2017,
        venue="CVPR 2017",
        arxiv="1611.06013",
    ),
    impl="bbn",
    role="transform",
    formula="γ_i ← α σ_i min(max(γ_i/(α σ_i), 1/f), f),  α = mean(γ_i/σ_i)",
    summary="Bounds the γ of every batch normalization of a model within a factor of their mean, once.",
    options=(
        Option(name="factor", type=float, default=2.0, ge=1, help="f, the end of the band", source="the authors' code"),
        Option(
            name="type",
            type=str,
            default="rel",
            choices=("rel", "bbn"),
            help="bound γ itself, or γ/√(running variance + eps) as in the paper",
            source="the authors' code",
        ),
    ),
    identities=(
        Identity(says="every γ/α ends in [1/f, f], α the mean of γ before", proof="in_the_band"),
        Identity(says="inside the band γ stays what it is", proof="inside", within=0.0),
        Identity(says="the type bbn does to γ/σ what rel does to γ", proof="rel_of_ratios"),
        Identity(says="c γ is bounded to c times what γ is, c < 0 too", proof="scaled"),
    ),
    notes=(
        "The notes give the title of the paper only.",
        "The published default is rel, not the formula of the paper.",
        "The published code makes all γ 0 where their mean is 0, and flips the sign of those with another sign than "
        "their mean; the former is refused here.",
        "Not idempotent: clamping moves the mean, so that a second call finds another α.",
    ),
    examples=({}, {"factor": 1.1}, {"type": "bbn"}, {"factor": 1.0, "type": "bbn"}),
)


def bounded(gamma: Tensor, factor: float = 2.0, std: Tensor | None = None) -> Tensor:
    """Return ``gamma`` (C,) bounded within ``factor`` of α σ, σ = ``std`` (C,) or 1; in the dtype of ``gamma``.

    Raises OptionError for ``factor`` < 1, and where |α| is below the root of the machine's precision times the mean
    of |γ/σ| (a look that a device waits for).
    """
    card.check({}, {"factor": factor})
    wide = widened(gamma)
    sigma = torch.ones_like(wide) if std is None else std.to(wide)
    ratio = wide / sigma
    alpha = ratio.mean()
    if not alpha.abs() > torch.finfo(ratio.dtype).eps ** 0.5 * ratio.abs().mean():
        raise OptionError(
            f"the mean of γ is {float(alpha):.3g} where that of |γ| is {float(ratio.abs().mean()):.3g}: bounding would "
            "make every γ 0; wait until γ has left 0, or keep its signs alike"
        )
    ends = torch.stack([alpha / factor, alpha * factor])
    return torch.clamp(wide, ends.min() * sigma, ends.max() * sigma).to(gamma.dtype)


@torch.no_grad()
def bbn(model: nn.Module, factor: float = 2.0, type: str = "rel") -> nn.Module:
    """Bound γ of every batch normalization (`batch_norms`) of ``model`` once, in place, and return the model.

    Raises OptionError, before anything is changed, for refused options, for a model without batch normalization or
    with one that lacks γ and β, for ``type=bbn`` without running statistics, and for a layer whose α is 0 (`bounded`).
    """
    card.check({}, {"factor": factor, "type": type})
    norms = batch_norms(model)
    made = [_bounded(name, norm, factor, type) for name, norm in norms.items()]
    for norm, gamma in zip(norms.values(), made, strict=True):
        norm.weight.copy_(gamma)  # type: ignore[union-attr]
    return model


def _bounded(name: str, norm: AnyBatchNorm, factor: float, type: str) -> Tensor:
    """γ of one layer, bounded; refusals name the layer."""
    if type == "bbn" and norm.running_var is None:
        raise OptionError(f"type=bbn: {name} keeps no running variance; use type=rel", "type")
    std = (norm.running_var + norm.eps).sqrt() if type == "bbn" and norm.running_var is not None else None
    assert norm.weight is not None
    try:
        return bounded(norm.weight.detach(), factor, std)
    except OptionError as error:
        raise OptionError(f"{name}: {error}", error.option) from None


def _bounded_weight(weight: Weight, factor: float, type: str) -> Tensor:
    assert isinstance(weight.module, AnyBatchNorm)
    return _bounded(weight.name.rpartition(".")[0], weight.module, factor, type)


def excludes(weight: Weight) -> str:
    """Return "" for γ of a batch normalization, else what ``weight`` is instead."""
    if weight.kind == "norm" and isinstance(weight.module, AnyBatchNorm):
        return ""
    return "no γ of a batch normalization"


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    every: int = 1,
    factor: float = 2.0,
    type: str = "rel",
    broadcast: bool = False,
) -> Attached:
    """Bound γ of the batch normalizations of ``model`` after every ``every``-th step of ``optimizer``.

    ``broadcast`` makes data-parallel ranks take the result of rank 0 (`Projected`). Raises OptionError for refused
    options, as `Attached` does, and now and at a step as `bbn` does.
    """
    card.check({}, {"factor": factor, "type": type})
    for weight in weights(model):
        if not excludes(weight) and weight.parameter.device.type != "meta":
            _bounded_weight(weight, factor, type)

    def project(weight: Weight) -> None:
        weight.parameter.copy_(_bounded_weight(weight, factor, type))

    return Projected(optimizer, model, excludes, project, every=every, broadcast=broadcast)


def _norms(model: nn.Module, scale: float = 1.0) -> tuple[nn.Module, list[AnyBatchNorm]]:
    """A copy of ``model`` whose γ are spread over positive numbers, times ``scale``, and its layers."""
    moved = copy.deepcopy(model)
    norms = list(batch_norms(moved).values())
    with torch.no_grad():
        for norm in norms:
            assert norm.weight is not None
            spread = torch.arange(len(norm.weight), dtype=torch.float64).sin().mul(3).exp()
            norm.weight.copy_(scale * spread)
    return moved, norms


def _gammas(norms: list[AnyBatchNorm]) -> Tensor:
    return torch.cat([norm.weight.detach() for norm in norms if norm.weight is not None])


def in_the_band(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """γ/α after the transform beside γ/α before, clamped."""
    moved, norms = _norms(model)
    before = [norm.weight.detach().clone() for norm in norms if norm.weight is not None]
    expected = torch.cat([(gamma / gamma.mean()).clamp(0.5, 2.0) for gamma in before])
    bbn(moved)
    means = torch.cat([gamma.mean().expand_as(gamma) for gamma in before])
    return _gammas(norms) / means, expected


def inside(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """γ in a wide band beside γ before."""
    moved, norms = _norms(model)
    before = _gammas(norms).clone()
    bbn(moved, factor=1e4)
    return _gammas(norms), before


def rel_of_ratios(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """γ/σ after the type bbn beside γ after rel, having started from γ/σ."""
    (first, ours), (second, others) = _norms(model), _norms(model)
    roots = [(norm.running_var + norm.eps).sqrt() for norm in ours if norm.running_var is not None]
    with torch.no_grad():
        for norm, root in zip(others, roots, strict=True):
            norm.weight.div_(root)  # type: ignore[union-attr]
    bbn(first, type="bbn")
    bbn(second)
    return _gammas(ours) / torch.cat(roots), _gammas(others)


def scaled(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The bounded −3 γ beside −3 times the bounded γ."""
    (first, ours), (second, others) = _norms(model, -3.0), _norms(model)
    bbn(first)
    bbn(second)
    return _gammas(ours), -3.0 * _gammas(others)
