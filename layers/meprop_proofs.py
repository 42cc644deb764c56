"""The identities of meProp (layers/backward/meprop.py), for a layer of as many outputs as inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from layers.meprop_convolution import MePropConv2d
from layers.sparse_backward import kept

Gradients = tuple[Tensor, ...]


def _upstream(y: Tensor) -> Tensor:
    """An upstream gradient for ``y`` without equal magnitudes, the same at every call."""
    return 3 * torch.linspace(-1, 2, y.numel(), device=y.device, dtype=y.dtype).square().view(y.shape).sin()


def _found(layer: nn.Module, x: Tensor, scale: float = 1.0) -> Gradients:
    """∂L/∂x, ∂L/∂W and ∂L/∂b."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    return torch.autograd.grad(y, (leaf, *layer.parameters()), scale * _upstream(y))


def _joined(found: Gradients) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in found])


def _of(grad: Tensor, whole: Tensor, x: Tensor, weight: Tensor) -> Gradients:
    """The gradients of a linear layer for ``grad``; that of the bias for ``whole``."""
    return grad @ weight, grad.t() @ x, whole.sum(0)


def dense_gradient(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """All gradients beside those of torch's linear layer."""
    upstream = _upstream(x)
    return _joined(_found(layer, x)), _joined(_of(upstream, upstream, x, layer.weight))


def _kept_of(layer: nn.Linear, x: Tensor) -> Tensor:
    """Ĝ by sorting: G outside the k largest columns, or entries of each row, set to zero."""
    upstream = _upstream(x)
    k = kept(layer.out_features, layer.k, layer.ratio)  # type: ignore[arg-type]
    sizes = upstream.abs().sum(0).expand_as(upstream) if layer.unified else upstream.abs()
    least = sizes.sort(1, descending=True).values[:, k - 1 : k]
    return torch.where(sizes >= least, upstream, 0)


def masked(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """All gradients beside those of torch's linear layer for Ĝ."""
    return _joined(_found(layer, x)), _joined(_of(_kept_of(layer, x), _upstream(x), x, layer.weight))


def one_example(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """All gradients, unified and per example."""
    other = copy.deepcopy(layer)
    other.unified = not layer.unified  # type: ignore[assignment]
    return _joined(_found(layer, x)), _joined(_found(other, x))


def whole_bias(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂b beside Σ_n G_n."""
    return _found(layer, x)[2], _upstream(x).sum(0)


def loss_scale(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of −3 L beside −3 times those of L."""
    return _joined(_found(layer, x, -3.0)), -3 * _joined(_found(layer, x))


def any_order(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients for a batch turned round, its rows turned back, beside those for the batch."""
    leaf = x.detach().flip(0).requires_grad_()
    of_x, *others = torch.autograd.grad(layer(leaf), (leaf, *layer.parameters()), _upstream(x).flip(0))
    return _joined((of_x.flip(0), *others)), _joined(_found(layer, x))


def projection(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """‖Ĝ‖, Ĝ recovered from ∂L/∂x = Ĝ W, beside ‖G‖ times the cosine between the two."""
    upstream, found = _upstream(x), torch.linalg.solve(layer.weight, _found(layer, x)[0], left=False)
    return found.norm(), upstream.norm() * torch.cosine_similarity(found.flatten(), upstream.flatten(), 0)


def pointwise(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a 1×1 convolution over 2×3 positions beside those of the linear layer over all of them."""
    images = torch.stack([x.detach() * (1 + 0.3 * step) for step in range(6)], 2).view(*x.shape, 2, 3)
    own = {"k": layer.k, "ratio": layer.ratio, "unified": layer.unified, "device": x.device, "dtype": x.dtype}
    convolution = MePropConv2d(layer.in_features, layer.out_features, 1, **own)  # type: ignore[arg-type]
    with torch.no_grad():
        convolution.weight.copy_(layer.weight.view_as(convolution.weight))
    leaf, rows = images.requires_grad_(), images.detach().movedim(1, 3).reshape(-1, x.shape[1]).requires_grad_()
    y, z = convolution(leaf), layer(rows)
    upstream = _upstream(z).view(len(x), 2, 3, -1).movedim(3, 1)
    of_x, of_weight, of_bias = torch.autograd.grad(y, (leaf, *convolution.parameters()), upstream)
    wanted = torch.autograd.grad(z, (rows, *layer.parameters()), _upstream(z))
    return _joined((of_x.movedim(1, 3), of_weight, of_bias)), _joined(wanted)
