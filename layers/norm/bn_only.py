r"""Train the γ and β of batch normalization and nothing else (Frankle, Schwab & Morcos 2021, arXiv 2003.00152).

Every other parameter keeps its random initial value: it gets no gradient, so no optimizer moves it. γ starts uniform in
[0, 1), β at 0. The running statistics keep following the data. A CIFAR ResNet-(6b + 2) of width w trains
$$14\,w\,(2b + 1)$$
numbers this way, 0.46 % of ResNet-866. The forward is unchanged; the backward still passes through every convolution
but computes no weight gradients, about a third of a training step's convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from layers.batch_norms import AnyBatchNorm, batch_norms
from layers.card import Card, Identity, Option, OptionError, Paper
from layers.catalog import suggest
from layers.resnet import cifar_resnet

card = Card(
    title="Training only batch normalization",
    paper=Paper(
        authors="Frankle, Schwab, Morcos",
        title="Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs",
        year=2021,
        venue="ICLR 2021",
        arxiv="2003.00152",
    ),
    impl="bn_only",
    role="transform",
    formula="∂L/∂θ := 0 for every θ but γ and β",
    summary="Freezes a model at its random initial values, except γ and β of its batch normalizations.",
    options=(
        Option(name="train_output", type=bool, default=False, help="train the last linear or convolution layer too"),
        Option(
            name="init",
            type=str,
            default="uniform",
            choices=("uniform", "fixed", "oneone", "positivenegative", "keep"),
            help="γ and β at the start: U[0, 1) and 0; 1 and 0; 1 and 1; U[−1, 1) and 0; as they are",
            source="the paper; names of the authors' code, which has no keep",
        ),
        Option(
            name="freeze_stats",
            type=bool,
            default=False,
            help="normalize by the running statistics, which stay as they are, in training too",
        ),
    ),
    identities=(
        Identity(says="ResNet-(6b + 2) of width w trains 14 w (2b + 1) of the paper's total", proof="counts"),
        Identity(says="three steps of SGD leave everything else as it was", proof="nothing_else_moves"),
    ),
    notes=(
        "The notes quote 83 % on CIFAR-10, from the first version; the published abstract says 82 %.",
        "In the authors' code freezing the others leaves the classifier trainable unless the output is frozen too.",
        "The bias of a convolution before a batch normalization stays frozen at a value that the layer removes anyway.",
    ),
    examples=({}, {"train_output": True, "init": "positivenegative"}, {"init": "oneone", "freeze_stats": True}),
)

# Parameters of the paper's CIFAR-10 networks of width 16, by depth.
PUBLISHED_TOTALS = {
    14: 175258,
    20: 272474,
    32: 466906,
    56: 855770,
    110: 1730714,
    218: 3480602,
    434: 6980378,
    866: 13979930,
}


def bn_only(
    model: nn.Module,
    train_output: bool = False,
    init: str = "uniform",
    freeze_stats: bool = False,
    *,
    exceptions: Iterable[str] = (),
) -> nn.Module:
    """Freeze ``model`` in place but for γ and β of its batch normalizations (`batch_norms`), and return it.

    ``init`` draws γ and β anew from torch's generator. ``train_output`` spares the last linear or convolution layer;
    ``exceptions`` are names of modules or parameters that stay as trainable as they were. Gradients of what is frozen
    are dropped, so that an optimizer which holds it does not move it.
    Raises OptionError, before anything is changed, for a model without batch normalization or with one that lacks γ
    and β, for names that it does not have, for ``freeze_stats`` without running statistics, and for refused options.
    """
    card.check({}, {"train_output": train_output, "init": init, "freeze_stats": freeze_stats})
    norms = batch_norms(model)
    spared = _spared(model, (exceptions,) if isinstance(exceptions, str) else exceptions)
    if train_output:
        spared |= {id(parameter) for parameter in _output_layer(model).parameters()}
    if freeze_stats:
        _refuse_untracked(norms)
    trained = {id(parameter) for norm in norms.values() for parameter in (norm.weight, norm.bias)}
    for parameter in model.parameters():
        if id(parameter) in trained:
            parameter.requires_grad_(True)
        elif id(parameter) not in spared:
            parameter.requires_grad_(False)
            parameter.grad = None
    for norm in norms.values():
        _start(norm, init)
        if freeze_stats:
            norm.register_forward_pre_hook(_evaluate)
    return model


def _spared(model: nn.Module, names: Iterable[str]) -> set[int]:
    """The identities of the parameters that ``names`` of modules and parameters stand for."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    spared = set()
    for name in names:
        if name in parameters:
            spared.add(id(parameters[name]))
        elif name and name in modules:
            spared |= {id(parameter) for parameter in modules[name].parameters()}
        else:
            near = suggest(name, {**modules, **parameters})
            hint = f"; did you mean {near}?" if near else ""
            raise OptionError(f"exceptions: the model has no module or parameter {name!r}{hint}", "exceptions")
    return spared


def _output_layer(model: nn.Module) -> nn.Module:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    if not layers:
        raise OptionError("train_output: the model has no linear or convolution layer; use exceptions", "train_output")
    return layers[-1]


def _refuse_untracked(norms: dict[str, AnyBatchNorm]) -> None:
    for name, norm in norms.items():
        if norm.running_mean is None:
            raise OptionError(f"freeze_stats: {name} keeps no running statistics to freeze", "freeze_stats")


def _start(norm: AnyBatchNorm, init: str) -> None:
    """Set γ and β as ``init`` says."""
    weight, bias = norm.weight, norm.bias
    if init == "keep" or weight is None or bias is None:
        return
    if init in ("uniform", "positivenegative"):
        nn.init.uniform_(weight, 0.0 if init == "uniform" else -1.0, 1.0)
    else:
        nn.init.ones_(weight)
    nn.init.constant_(bias, 1.0 if init == "oneone" else 0.0)


def _evaluate(norm: nn.Module, _: object) -> None:
    """Before each forward: undo what ``model.train()`` did to this layer."""
    norm.eval()


def counts(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """All and the trained parameters of ResNet-14 to ResNet-866 beside the paper's totals and 14 w (2b + 1)."""
    width = 16
    found, expected = [], []
    for depth, total in PUBLISHED_TOTALS.items():
        with torch.device("meta"):
            built = bn_only(cifar_resnet(depth, width))
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in built.parameters()]
        found.append([sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)])
        expected.append([total, 14 * width * (2 * ((depth - 2) // 6) + 1)])
    return torch.tensor(found, dtype=x.dtype), torch.tensor(expected, dtype=x.dtype)


def nothing_else_moves(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """All frozen parameters after three steps of SGD with momentum and weight decay beside their first values."""
    trained = bn_only(copy.deepcopy(model))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()
    frozen = {name: parameter for name, parameter in trained.named_parameters() if not parameter.requires_grad}
    before = dict(model.named_parameters())
    pairs = [(parameter.flatten(), before[name].flatten()) for name, parameter in frozen.items()]
    return torch.cat([after for after, _ in pairs]), torch.cat([first for _, first in pairs])
