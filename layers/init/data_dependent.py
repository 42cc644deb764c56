r"""Data-dependent initialization: the first batch sets scale and bias of every layer (Salimans & Kingma 2016,
arXiv 1602.07868, section 3).

For one batch, layer by layer in forward order, with t = w·x the pre-activation of a layer without its bias, μ and σ its
mean and standard deviation per output channel over the batch and all positions (σ biased, without ε),
$$g \leftarrow g\,s/\sigma,\qquad b \leftarrow -\mu\,s/\sigma,$$
so that t comes out with mean 0 and standard deviation s (1 in the paper). Each layer sees the outputs of those
below after they were set: one forward pass in all. A weight without a length g is itself multiplied, w ← w s/σ, which
is the same function (the authors' Keras code). Before mean-only batch normalization, which has the bias, only g is set.

A layer without bias keeps its mean: the paper's b is what removes it, and there is none; σ is still about the mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from layers.card import Card, Identity, Option, OptionError, Paper
from layers.first_batch import FirstBatch, excluded, restored
from layers.norm.actnorm import ActNorm
from layers.norm.bn import BatchNorm
from layers.synchronise import spans_ranks
from layers.weight.weight_norm import WeightNorm, WeightNormConv2d

card = Card(
    title="Data-dependent initialization",
    paper=Paper(
        authors="Salimans, Kingma",
        title="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
        year=2016,
        venue="NIPS 2016",
        arxiv="1602.07868",
    ),
    impl="data_dependent",
    role="transform",
    formula="g ← g s/σ,  b ← −μ s/σ,  μ, σ of t = w·x over the first batch",
    summary="One batch, layer by layer, sets scale and bias so that every pre-activation has mean 0 and variance 1.",
    options=(
        Option(
            name="scale",
            type=float,
            default=1.0,
            gt=0,
            help="s, the standard deviation to reach",
            source="the authors' TensorFlow code, init_scale",
        ),
        Option(
            name="eps",
            type=float,
            default=0.0,
            ge=0,
            help="added to the variance: a constant channel is admitted, a second pass is no longer without effect",
            source="the paper has none; their TensorFlow code takes 1e-10 and 1e-8",
        ),
        Option(
            name="layers",
            type=str,
            default="all",
            choices=("all", "weight-norm"),
            help="every convolution and linear layer, or only those with weight normalization, as in the paper",
        ),
    ),
    identities=(
        Identity(
            says="every pre-activation of the batch has mean 0 and variance 1", proof="standardized", within=1e-12
        ),
        Identity(says="on that batch it is batch normalization without γ and β", proof="is_batch_norm"),
        Identity(says="a second pass of the same batch changes nothing", proof="idempotent", within=1e-12),
        Identity(says="multiplying plain weights is the same function as setting g", proof="plain_alike"),
        Identity(says="run again, weights of other lengths give the same", proof="weights_rescaled"),
        Identity(says="run again, data of another scale give the same", proof="data_rescaled"),
        Identity(says="run again, data of other means give the same, without zero padding", proof="data_recentered"),
    ),
    notes=(
        "It holds on the one batch: another one comes out with other moments, and training moves them.",
        "It needs the order of the forward, σ is biased and without ε; torch's weight_norm has none of it.",
        "In the authors' Lasagne code a constant channel divides by zero; here it is refused by name.",
        "Without bias a layer keeps its mean, and the layers above see it.",
    ),
    examples=({}, {"scale": 0.5}, {"eps": 0.1}),
)


@torch.no_grad()
def data_dependent(
    model: nn.Module,
    batch: object,
    scale: float = 1.0,
    eps: float = 0.0,
    layers: str = "all",
    *,
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Set g (or the weight) and the bias of the layers that `chosen` takes, in place, by ``batch``; return ``model``.

    ``batch`` is the input: a tensor, a tuple or list of arguments, or a mapping of arguments by name. The model runs
    once (a layer that is set computes its output twice), in the mode in which it is: call ``model.train()`` for
    dropout, batch normalization and `ActNorm` as in training. `ActNorm` layers that wait for a first batch get it.
    Every other buffer is given back: no running statistic moves. No graph is kept. A layer that is used twice is set
    at its first use, and a parameter that layers share by the first of them.
    Where torch.distributed is initialized, moments are those over the batches of all ranks of ``group`` (None: all),
    so that equal parameters stay equal; every rank must call it, and run the same layers.
    Raises OptionError, with every parameter and buffer as before, for refused options; for a model without layers to
    take, with lazy ones, on the meta device, or over several ranks with an uninitialized ActNorm; for a batch without
    tensors, or not finite; naming layer and channel, for less than 2 values, σ = 0, moments or parameters that
    overflow; for a layer that the batch does not reach. What the model raises passes through in the same way.
    """
    card.check({}, {"scale": scale, "eps": eps, "layers": layers})
    reasons = chosen(model, layers)
    taken = {name or type(model).__name__: model.get_submodule(name) for name, reason in reasons.items() if not reason}
    if not taken:
        words = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3]) or "it has none"
        raise OptionError(f"no layer of this {type(model).__name__} is to be initialized ({words})", "layers")
    _refuse_model(model, group)
    _refuse_batch(batch, group)
    first = FirstBatch(taken, scale, eps, group)  # type: ignore[arg-type]  # chosen names these kinds alone
    with restored(model), first.hooks(model):
        if isinstance(batch, Mapping):
            model(**batch)
        else:
            model(*(batch if isinstance(batch, (tuple, list)) else (batch,)))
        if missed := [name for name in taken if name not in first.reached]:
            raise OptionError(f"{missed[0]} was not reached by this batch: freeze it to leave it alone")
    return model


def chosen(model: nn.Module, layers: str = "all") -> dict[str, str]:
    """Return every convolution and linear layer of ``model`` by name, with "" where it is taken, else the reason.

    Left alone are layers that are frozen, lazy, or parametrized in another way, and unless ``layers`` is all those
    without weight normalization, this library's or torch's, with one length per output.
    """
    card.option("layers").check(layers)
    return {
        name: excluded(module, lengths_only=layers == "weight-norm")
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }


def _refuse_model(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    if lazy := [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]:
        raise OptionError(f"{lazy[0]} is lazy, it has no shape yet: run a batch through the model before")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise OptionError(f"this {type(model).__name__} is on the meta device: it has no values to scale")
    if not spans_ranks(group):
        return
    for name, module in model.named_modules():
        if isinstance(module, ActNorm) and module.training and not module.initialized:
            raise OptionError(f"{name} would differ between ranks: run this on one rank before wrapping the model")


def _refuse_batch(batch: object, group: dist.ProcessGroup | None) -> None:
    """Refuse what is no input; over several ranks all of them, when it is one's."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    if not tensors:
        raise OptionError(f"the batch is {type(batch).__name__} without tensors: give the input of the model")
    if any(tensor.is_meta for tensor in tensors):
        raise OptionError("the batch is on the meta device: it has no values")
    bad = torch.stack([(~tensor.isfinite()).any().to(tensors[0].device) for tensor in tensors]).any().float()
    if spans_ranks(group):
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=group)
    if bad:
        raise OptionError("the batch holds inf or nan")


def _network(x: Tensor) -> nn.Sequential:
    """Three weight-normalized layers: two convolutions, one of them grouped, and a linear one."""
    linear = nn.Linear(216, 5)
    parametrize.register_parametrization(linear, "weight", WeightNorm(linear))
    first, second = WeightNormConv2d(3, 8, 3), WeightNormConv2d(8, 6, 3, stride=2, groups=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), nn.Flatten(), linear).to(x)


def _outputs(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What the three layers give, (O, values) each."""
    found = []
    for module in model:
        x = module(x)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            found.append(x.detach().transpose(0, 1).flatten(1))
    return found


def standardized(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of all channels beside 0 and 1."""
    network = _network(x)
    data_dependent(network, x)
    moments = [torch.var_mean(rows, 1, correction=0) for rows in _outputs(network, x)]
    found = torch.stack([torch.cat(each) for each in zip(*moments, strict=True)])
    return found, torch.tensor([[1.0], [0.0]], dtype=x.dtype, device=x.device).expand_as(found)


def is_batch_norm(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores beside those of the same directions with batch normalization, its ε vanishing, behind each layer."""
    network = _network(x)
    y = x
    for module in network:
        y = module(y)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            y = BatchNorm(y.shape[1], eps=1e-30, affine=False, device=x.device, dtype=x.dtype)(y)
    return data_dependent(network, x)(x), y


def idempotent(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """All parameters after the second pass beside those after the first."""
    network = data_dependent(_network(x), x)
    before = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    data_dependent(network, x)
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]), before


def plain_alike(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores of plain layers with the same weights beside those of weight-normalized ones."""
    network = _network(x)
    plain = nn.Sequential(*(module.fold() if isinstance(module, WeightNormConv2d) else module for module in network))
    plain[-1] = nn.Linear(216, 5).to(x)
    plain[-1].load_state_dict({"weight": network[-1].weight, "bias": network[-1].bias})
    return data_dependent(plain, x)(x), data_dependent(network, x)(x)


def _again(x: Tensor, weights: float = 1.0, data: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """The scores of a network that is initialized again, with multiplied v, g, data and shifted channels, and once."""
    network = data_dependent(_network(x), x)
    once = network(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(weights)
    moved = data * x.detach() + shift * torch.arange(1, 4, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    return data_dependent(network, moved)(moved), once


def weights_rescaled(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores of a second initialization with parameters 2.7 times as large beside the first."""
    return _again(x, weights=2.7)


def data_rescaled(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores of a second initialization by data 2.7 times as large beside the first."""
    return _again(x, data=2.7)


def data_recentered(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores of a second initialization by data with other means beside the first."""
    return _again(x, shift=1.3)
