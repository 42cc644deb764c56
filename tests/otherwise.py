"""What one would write with torch where it has no layer of the kind: the same outputs, the way papers' codes do it.

Each has the options that its stone is measured with there, and parameters of the same names. `performance.py` puts them
beside the stones, `test_otherwise.py` compares outputs and gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """A convolution without bias, zeros around, and a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int] = (1, 1)):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel[0] // 2, kernel[1] // 2), bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x))


class SPP(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        return torch.cat([F.adaptive_max_pool2d(x, bins).flatten(1) for bins in (6, 3, 2, 1)], 1)


class PPM(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.bins = (1, 2, 3, 6)
        self.grids = nn.ModuleList(ConvNorm(channels, channels // 4) for _ in self.bins)

    def forward(self, x):
        outputs = [x]
        for bins, grid in zip(self.bins, self.grids, strict=True):
            z = F.relu(grid(F.adaptive_avg_pool2d(x, bins)))
            outputs.append(F.interpolate(z, x.shape[2:], mode="bilinear", align_corners=True))
        return torch.cat(outputs, 1)


class StripPooling(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.rows, self.columns = ConvNorm(channels, channels, (3, 1)), ConvNorm(channels, channels, (1, 3))
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        rows = self.rows(F.adaptive_avg_pool2d(x, (None, 1))).expand_as(x)
        columns = self.columns(F.adaptive_avg_pool2d(x, (1, None))).expand_as(x)
        return x * self.fuse(F.relu(rows + columns)).sigmoid()


class MixedPooling(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        quarter = channels // 4
        self.near, self.far = ConvNorm(channels, quarter), ConvNorm(channels, quarter)
        self.local, self.first, self.second = (ConvNorm(quarter, quarter, (3, 3)) for _ in range(3))
        self.rows, self.columns = ConvNorm(quarter, quarter, (3, 1)), ConvNorm(quarter, quarter, (1, 3))
        self.gather_near, self.gather_far = (ConvNorm(quarter, quarter, (3, 3)) for _ in range(2))
        self.out = ConvNorm(2 * quarter, channels)

    def forward(self, x):
        def enlarged(y):
            return F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True)

        near, far = F.relu(self.near(x)), F.relu(self.far(x))
        first = enlarged(self.first(F.adaptive_avg_pool2d(near, 20)))
        second = enlarged(self.second(F.adaptive_avg_pool2d(near, 12)))
        near = F.relu(self.gather_near(F.relu(self.local(near) + first + second)))
        rows = enlarged(self.rows(F.adaptive_avg_pool2d(far, (None, 1))))
        columns = enlarged(self.columns(F.adaptive_avg_pool2d(far, (1, None))))
        far = F.relu(self.gather_far(F.relu(rows + columns)))
        return F.relu(x + self.out(torch.cat([near, far], 1)))


class Bilinear(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        rows = x.flatten(2)
        product = (torch.bmm(rows, rows.mT) / rows.shape[2]).flatten(1)
        return F.normalize(product.sign() * (product.abs() + 1e-8).sqrt())


class MPNCOV(nn.Module):
    """Five steps of Newton and Schulz, recorded one by one."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        rows = x.flatten(2)
        size = rows.shape[2]
        centring = (torch.eye(size, dtype=x.dtype, device=x.device) - 1 / size) / size
        sigma = rows @ centring @ rows.mT
        trace = sigma.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        eye = torch.eye(self.channels, dtype=x.dtype, device=x.device)
        y, z = sigma / trace, eye.expand_as(sigma)
        for _ in range(5):
            t = (3 * eye - z @ y) / 2
            y, z = y @ t, t @ z
        i, j = torch.triu_indices(self.channels, self.channels)
        return (y * trace.sqrt())[:, i, j]


class SplitMerge(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        parts = torch.stack([x[:, :, i::2, j::2] for i in range(2) for j in range(2)], 1)
        return parts.flatten(0, 1)


class HDC(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        made = (nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in (1, 2, 5))
        self.layers = nn.ModuleList(made)

    def forward(self, x):
        first, second, third = self.layers
        return third(F.relu(second(F.relu(first(x)))))


class NormalizedConv(nn.Module):
    """The windows as a matrix of nine times the data, standardized."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        rows = F.unfold(x, 3, padding=1).transpose(1, 2)
        var, mean = torch.var_mean(rows, 2, correction=0, keepdim=True)
        y = F.linear((rows - mean) / (var + 1e-5).sqrt(), self.weight.flatten(1), self.bias)
        return y.transpose(1, 2).unflatten(2, x.shape[2:])


class DRConv(nn.Module):
    """All regions' outputs everywhere, then one of them by a mask whose gradient is that of the softmax."""

    def __init__(self, channels: int):
        super().__init__()
        self.guide = nn.Conv2d(channels, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(channels, 64, 1)
        self.expand = nn.Conv2d(64, 8 * channels**2, 1, groups=8)

    def forward(self, x):
        batch, channels = x.shape[:2]
        made = self.expand(self.squeeze(F.adaptive_avg_pool2d(x, 3)).sigmoid())
        filters = made.view(batch, 8, channels, channels, 3, 3).transpose(2, 3).flatten(0, 2)
        outputs = F.conv2d(x.flatten(0, 1)[None], filters, padding=1, groups=batch)
        guide = self.guide(x)
        soft = guide.softmax(1)
        hard = F.one_hot(guide.argmax(1), 8).movedim(-1, 1).to(x.dtype)
        mask = hard + soft - soft.detach()
        return (outputs.view(batch, 8, channels, *outputs.shape[2:]) * mask.unsqueeze(2)).sum(1)


def omd(weight: Tensor):
    rows = weight.flatten(1)
    return 1e-4 / 2 * torch.linalg.matrix_norm(rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype)).square()


def shifted_l2(weight: Tensor):
    rows = weight.flatten(1)
    shift = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True) * 1e-3
    return 1e-4 / 2 * (rows - shift).square().sum()


@torch.no_grad()
def svb(weight: Tensor):
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return ((left * values.clamp(1 / 1.5, 1.5)) @ right).view_as(weight)


@torch.no_grad()
def icnr_(tensor: Tensor):
    first = nn.init.kaiming_uniform_(tensor.new_empty(len(tensor) // 4, *tensor.shape[1:]), a=5**0.5)
    return tensor.copy_(first.repeat_interleave(4, 0))
