"""Naive float64 functions of the pooling modules; see references.py for what they get and return.

Parameters and buffers of sub-modules have dotted names: ``vars(p)["rows.conv.weight"]``.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import references
import torch


class Layers:
    """Convolutions and batch norms by the names of their parameters; remembers the buffers after the forward."""

    def __init__(self, p):
        self.values, self.eps, self.training, self.after = vars(p), p.eps, p.training, {}

    def __call__(self, x, name):
        weight = self.values[f"{name}.conv.weight"]
        return self.normalized(correlation(x, weight), f"{name}.norm")

    def normalized(self, x, name):
        mine = {key[len(name) + 1 :]: value for key, value in self.values.items() if key.startswith(f"{name}.")}
        options = {"eps": self.eps, "momentum": 0.1, "track_running_stats": True, "training": self.training}
        found = references.bn(x, SimpleNamespace(**mine, **options))
        if not self.training:
            return found
        y, buffers = found
        self.after.update({f"{name}.{key}": value for key, value in buffers.items()})
        return y


def correlation(x, weight):
    """Stride 1, zeros around, odd kernels: the sum over offsets of shifted images times a matrix."""
    height, width = weight.shape[2:]
    top, left = height // 2, width // 2
    padded = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * top, x.shape[3] + 2 * left)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    y = 0
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            y = y + torch.einsum("oc,nchw->nohw", weight[:, :, i, j], window)
    return y


def binned(x, bins, reduce):
    """``reduce`` of the pixels in each of bins×bins windows from ⌊iH/n⌋ to ⌈(i + 1)H/n⌉."""

    def borders(size, i):
        return slice(math.floor(i * size / bins), math.ceil((i + 1) * size / bins))

    rows = [[reduce(x[:, :, borders(x.shape[2], i), borders(x.shape[3], j)]) for j in range(bins)] for i in range(bins)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def averages(x, bins):
    return binned(x, bins, lambda window: window.mean((2, 3)))


def resized(x, size, align_corners):
    """Each output pixel lies between two rows and two columns of x."""

    def matrix(inputs, outputs):
        m = x.new_zeros(outputs, inputs)
        for o in range(outputs):
            if align_corners:
                place = o * (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
            else:
                place = max(0.0, (o + 0.5) * inputs / outputs - 0.5)
            low = min(int(place), inputs - 1)
            high = min(low + 1, inputs - 1)
            m[o, low] += 1 - (place - low)
            m[o, high] += place - low
        return m

    return torch.einsum("ah,nchw,bw->ncab", matrix(x.shape[2], size[0]), x, matrix(x.shape[3], size[1]))


def relu(x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def strip_pooling(x, p):
    layers = Layers(p)
    rows, columns = x.sum(3, keepdim=True) / x.shape[3], x.sum(2, keepdim=True) / x.shape[2]
    expanded = [
        layers(rows, "rows").expand(-1, -1, -1, x.shape[3]),
        layers(columns, "columns").expand(-1, -1, x.shape[2], -1),
    ]
    u = expanded[0] + expanded[1]
    u = relu(u) if p.relu else u
    z = correlation(u, vars(p)["fuse.weight"]) + vars(p)["fuse.bias"].view(1, -1, 1, 1)
    gate = 1 / (1 + (-z).exp())
    return (x * gate if p.returns == "product" else gate), layers.after


def mixed_pooling(x, p):
    layers, size = Layers(p), x.shape[2:]
    near, far = relu(layers(x, "near")), relu(layers(x, "far"))
    grids = [
        resized(layers(averages(near, bins), name), size, p.align_corners)
        for name, bins in zip(("first", "second"), p.pool_sizes, strict=True)
    ]
    first = relu(layers(near, "local") + grids[0] + grids[1])
    strips = [layers(far.mean(3, keepdim=True), "rows"), layers(far.mean(2, keepdim=True), "columns")]
    second = relu(resized(strips[0], size, True) + resized(strips[1], size, True))
    both = torch.cat([relu(layers(first, "gather_near")), relu(layers(second, "gather_far"))], 1)
    return relu(x + layers(both, "out")), layers.after


def spp(x, p):
    reduce = (lambda window: window.amax((2, 3))) if p.mode == "max" else (lambda window: window.mean((2, 3)))
    return torch.cat(
        [binned(x, level, reduce).reshape(len(x), x.shape[1] * level**2) for level in p.levels if level], 1
    )


def ppm(x, p):
    layers, parts = Layers(p), [x]
    for index, bins in enumerate(bins for bins in p.levels if bins):
        z = relu(layers(averages(x, bins), f"grids.{index}"))
        parts.append(resized(z, x.shape[2:], p.align_corners))
    return torch.cat(parts, 1), layers.after


def split_merge(x, p):
    (kh, kw), step = p.window, p.window[0] * p.window[1]
    offsets = [(i, j) for i in range(kh) for j in range(kw)]
    if p.merge:
        count = len(x) // step
        y = x.new_zeros(count, x.shape[1], x.shape[2] * kh, x.shape[3] * kw)
        for m, (i, j) in enumerate(offsets):
            y[:, :, i::kh, j::kw] = x[m::step] if p.order == "sample" else x[m * count : (m + 1) * count]
        return y
    images = [x[:, :, i::kh, j::kw] for i, j in offsets]
    if p.order == "offset":
        return torch.cat(images)
    return torch.stack([image[n] for n in range(len(x)) for image in images]) if len(x) else torch.cat(images)
