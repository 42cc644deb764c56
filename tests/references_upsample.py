"""The naive references of upsampling stones, as `references_weights` has them of convolutions and initializers."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from references_weights import convolution


def convolved(x, weight, bias, padding, dilation=1):
    """A convolution with zeros around the input, window by window."""
    both = {"stride": (1, 1), "padding": (padding,) * 2, "dilation": (dilation,) * 2, "kernel_size": weight.shape[2:]}
    return convolution(x, weight, SimpleNamespace(**both, groups=1, padding_mode="zeros", bias=bias))


def to_positions(z, r, order):
    """Channels to sub-positions, one by one."""
    n, channels, h, w = z.shape
    o = channels // r**2
    y = z.new_zeros(n, o, h * r, w * r)
    for channel in range(o):
        for i in range(r):
            for j in range(r):
                source = channel * r**2 + i * r + j if order == "crd" else (i * r + j) * o + channel
                y[:, channel, i::r, j::r] = z[:, source]
    return y


def subpixel(x, p):
    padding = p.kernel_size // 2 if p.padding is None else p.padding
    z = convolved(x, vars(p)["conv.weight"], vars(p).get("conv.bias"), padding)
    return to_positions(z, p.scale, p.order)


def irevnet_squeeze(x, p):
    high, wide = p.block_size
    c = x.shape[1]
    z = x.new_zeros(x.shape[0], c * high * wide, x.shape[2] // high, x.shape[3] // wide)
    for i in range(high):
        for j in range(wide):
            m = i * wide + j
            for channel in range(c):
                target = m * c + channel if p.order == "dcr" else channel * high * wide + m
                z[:, target] = x[:, channel, i::high, j::wide]
    return z


def duc(x, p):
    z = 0
    for branch in range(1 if p.branches is None else p.branches):
        rate = 1 if p.branches is None else p.branch_step * (branch + 1)
        weight, bias = (vars(p).get(f"branch.{branch}.{name}") for name in ("weight", "bias"))
        z = z + convolved(x, weight, bias, rate * (p.kernel_size - 1) // 2, rate)
    return to_positions(z, p.scale, "crd")


def hdc(x, p):
    for layer, rate in enumerate(map(int, p.rates.split(","))):
        weight, bias = (vars(p).get(f"layers.{layer}.{name}") for name in ("weight", "bias"))
        x = x * (x > 0) if p.relu and layer else x
        x = convolved(x, weight, bias, rate * (p.kernel_size - 1) // 2, rate)
    return x


def icnr_(weight, p):
    inputs, drawn = weight[0].numel(), torch.empty(len(weight) // p.scale**2, *weight.shape[1:], dtype=weight.dtype)
    if p.draw == "torch":
        drawn.uniform_(-1 / inputs**0.5, 1 / inputs**0.5)
    else:
        drawn.normal_(0, (2 / inputs) ** 0.5)
    found = torch.empty_like(weight)
    for o, filters in enumerate(drawn):
        for m in range(p.scale**2):
            found[o * p.scale**2 + m if p.order == "crd" else m * len(drawn) + o] = filters
    return found
