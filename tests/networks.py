"""A small residual network of torch layers, put into the middle of its training, for tests that change models."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """A residual block of a small network, written out."""

    def __init__(self, channels, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.bn2 = norm(channels)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


def small_resnet(channels=8):
    layers = [nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), Block(channels), Block(channels)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 5)).double()


def images(size=6, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def settled(model):
    """A model in the middle of its training: random γ and β, running statistics that saw data."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.train()(images())
    return model


def unchanged(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def near(found, wanted):
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
