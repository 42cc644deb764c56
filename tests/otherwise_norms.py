"""What one would write with torch for the normalizations it lacks, as `otherwise` has the rest: the same outputs.

The running statistics follow the batch, some by other conventions than the stones'; no output in training shows it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def channels(numbers):
    return numbers.view(1, -1, 1, 1)


class Batch(nn.Module):
    """γ, β and running statistics."""

    spread = "running_var"

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer(self.spread, torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @torch.no_grad()
    def follow(self, mean, spread, momentum):
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, momentum)
        getattr(self, self.spread).lerp_(spread, momentum)


class BatchRenorm(Batch):
    spread = "running_std"

    def forward(self, x):
        mean, std = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 1e-3).sqrt()
        r_max = (1 + 2 * (self.num_batches_tracked - 5000) / 35000).clamp(1, 3)
        d_max = (5 * (self.num_batches_tracked - 5000) / 20000).clamp(0, 5)
        r = (std.detach() / self.running_std).clamp(1 / r_max, r_max)
        d = ((mean.detach() - self.running_mean) / self.running_std).clamp(-d_max, d_max)
        z = (x - channels(mean)) / channels(std) * channels(r) + channels(d)
        self.follow(mean.detach(), std.detach(), 0.01)
        return z * channels(self.weight) + channels(self.bias)


class GhostBN(Batch):
    def forward(self, x):
        running = self.running_mean, self.running_var
        ghosts = [F.batch_norm(ghost, *running, self.weight, self.bias, training=True) for ghost in x.split(4)]
        return torch.cat(ghosts)


class BNGN(Batch):
    def forward(self, x):
        blocks = x.reshape(x.shape[0] // 2, 2, 32, -1)
        var, mean = torch.var_mean(blocks, (1, 3), correction=0, keepdim=True)
        z = ((blocks - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        self.follow(x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3)), 0.01)
        return z * channels(self.weight) + channels(self.bias)


class BCN(Batch):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.group_weight, self.group_bias = nn.Parameter(torch.ones(32)), nn.Parameter(torch.zeros(32))

    def forward(self, x):
        u = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)
        v = F.group_norm(u, 32).unflatten(1, (32, -1))
        return (v * self.group_weight.view(32, 1, 1, 1) + self.group_bias.view(32, 1, 1, 1)).flatten(1, 2)


class MeanOnlyBN(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x):
        mean = x.mean((0, 2, 3))
        self.running_mean.lerp_(mean.detach(), 0.1)
        return x - channels(mean) + channels(self.bias)


class ActNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.ones(channels))
        self.register_buffer("initialized", torch.tensor(True))

    def forward(self, x):
        return channels(self.scale) * (x + channels(self.loc))


class AdaNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        z = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        return 2.0 * (1 - 0.1 * z.detach()) * z


class PONO(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        return (x - mean) / std


class PixelNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Convolution(nn.Conv2d):
    """A convolution by the weight that `standardized` makes."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3)

    def forward(self, x):
        return F.conv2d(x, self.standardized(self.weight), self.bias, padding=1)


class WeightNorm(Convolution):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def standardized(self, weight):
        return torch._weight_norm(weight, self.gain, 0)  # what torch.nn.utils.parametrizations.weight_norm calls


class WeightStandardization(Convolution):
    def standardized(self, weight):
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        return weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)


class ScaledWS(Convolution):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def standardized(self, weight):
        rows = weight.reshape(1, len(weight), -1)
        gain = self.gain.flatten() * rows.shape[2] ** -0.5
        return F.batch_norm(rows, None, None, gain, training=True, eps=1e-6).view_as(weight)


class CenConv(Convolution):
    def standardized(self, weight):
        return weight - weight.mean((1, 2, 3), keepdim=True)
