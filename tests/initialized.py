"""Models and measures for the tests of data-dependent initialization."""

from __future__ import annotations

import copy

import torch
from harness import assert_same, normal
from torch import nn
from torch.nn.utils import parametrizations as of_torch
from torch.nn.utils import parametrize

from layers.weight.weight_norm import WeightNorm, WeightNormConv2d


def ours(layer, **options):
    parametrize.register_parametrization(layer, "weight", WeightNorm(layer, **options))
    return layer


def seeded(make, *arguments, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*arguments)


def batch(*shape, seed=1):
    return 3 * normal(shape, seed=seed) + 2


def network():
    """Weight-normalized in the three ways there are, and a plain head."""
    first, second = WeightNormConv2d(3, 8, 3), ours(nn.Conv2d(8, 6, 3, groups=2))
    third = of_torch.weight_norm(nn.ConvTranspose2d(6, 4, 2), dim=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.Flatten(), nn.Linear(4 * 5 * 5, 5)).double()


def images(seed=1):
    return batch(16, 3, 8, 8, seed=seed)


def moments(model, *inputs, layers=None):
    """Mean and biased variance of each output channel of each convolution and linear layer, in the order of calls."""
    found = []

    def watch(layer, given, y):
        axis = -1 if isinstance(layer, nn.Linear) else 1
        found.append(torch.var_mean(y.detach().movedim(axis, 0).flatten(1), 1, correction=0)[::-1])

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    hooks = [m.register_forward_hook(watch) for m in layers or model.modules() if isinstance(m, kinds)]
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model(*inputs)
    model.load_state_dict(before)
    for hook in hooks:
        hook.remove()
    return found


def assert_standard(found, scale=1.0, within=1e-12):
    assert found
    for mean, var in found:
        assert mean.abs().max() <= within
        assert (var - scale**2).abs().max() <= within


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(found, wanted, but=()):
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        if name not in but:
            assert_same(tensor, wanted[name], what=name)
