"""Models whose costs are counted by module: shared, called twice, checkpointed, functional, unknown."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from layers import catalog
from layers.resnet import cifar_resnet, imagenet_resnet


class Doubled(nn.Module):
    """One module called twice, under two names, and a parameter that two modules share."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.alias = self.inner
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.inner.weight

    def forward(self, x):
        return self.tied(self.alias(self.inner(x)).relu())


class Functional(nn.Module):
    """No modules within: functions only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return functional.gelu(x @ self.weight.t()).tanh() * 2


class Branching(nn.Module):
    """Uses one tensor three times, and returns a dictionary; within it a tuple."""

    def __init__(self):
        super().__init__()
        self.both = nn.Sequential(Split(), Join())
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        h = x * 2
        return {"out": self.last(h) + self.both(h) + h, "pair": (h, h)}


class Split(nn.Module):
    def forward(self, x):
        x = x * 3
        return x.sin(), [x.cos(), x.relu()]


class Join(nn.Module):
    def forward(self, parts):
        return parts[0] * parts[1][0] + parts[1][1]


class Checkpointed(nn.Module):
    """Runs a module again in its backward."""

    def __init__(self, reentrant):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.inner, x.sin(), use_reentrant=self.reentrant).cos()


class Unknown(nn.Module):
    """What no formula counts, within a module."""

    def __init__(self):
        super().__init__()
        self.odd = Odd()

    def forward(self, x):
        return self.odd(x) + 1


class Odd(nn.Module):
    def forward(self, x):
        return torch.special.i0e(torch.digamma(x.abs() + 1))


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


MODELS = {
    "cifar_resnet": (lambda: cifar_resnet(8, width=4), (2, 3, 8, 8)),
    "imagenet_resnet": (lambda: imagenet_resnet(18, classes=5), (2, 3, 32, 32)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), (2, 5, 8)),
    "lstm64": (lambda: nn.LSTM(6, 5, batch_first=True).double(), (2, 4, 6)),
    "lstm": (lambda: nn.LSTM(6, 5, num_layers=2, batch_first=True), (2, 4, 6)),
    "doubled": (Doubled, (3, 6)),
    "functional": (Functional, (3, 6)),
    "branching": (Branching, (3, 6)),
    "checkpointed": (lambda: Checkpointed(False), (3, 6)),
    "reentrant": (lambda: Checkpointed(True), (3, 6)),
    "unknown": (Unknown, (3, 6)),
    "mlp": (mlp, (4, 6)),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), (3, 6)),
    "mixed-pooling": (lambda: catalog.stone("mixed-pooling").load()(8), (2, 8, 4, 4)),
    "frozen": (lambda: nn.Linear(6, 4).requires_grad_(False), (3, 6)),
}


def built(name):
    make, shape = MODELS[name]
    torch.manual_seed(7)
    model = make()
    parameter = next(model.parameters(), torch.zeros(()))
    return model, torch.randn(shape, dtype=parameter.dtype)
