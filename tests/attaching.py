"""What the tests of attached techniques share: every optimizer, small models, training steps."""

from __future__ import annotations

import torch
from compared import randn
from torch import nn
from torch.nn.utils import parametrizations

from layers import catalog
from layers.regularize import omd
from layers.weight.weight_standardization import WSConv2d

RATE, LAM = 0.05, 0.5
OPTIMIZERS = {
    name: getattr(torch.optim, name)
    for name in vars(torch.optim)
    if isinstance(getattr(torch.optim, name), type)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")  # a base; needs a closure, below; needs sparse gradients
} | {stone.name: stone.load() for stone in catalog.stones().values() if stone.kind == "optim"}


def network():
    """Kernels (5, 6) and (4, 5) without biases: every optimizer takes matrices."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False)).double()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    return model


def images(seed=0):
    return randn(8, 6, seed=50 + seed)


def loss_of(model, step=0):
    return model(images(step)).square().mean()


def train(model, optimizer, steps=3, before=lambda: None, penalty=lambda: 0.0):
    for step in range(steps):
        optimizer.zero_grad()
        (loss_of(model, step) + penalty()).backward()
        before()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def of(model, penalty=omd.omd):
    return sum(penalty(parameter, LAM) for parameter in model.parameters())


def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        WSConv2d(4, 4),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    ).double()


def step_on_nothing(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
