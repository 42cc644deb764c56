"""Naive float64 references of the convolution wing, written from the papers with none of the library's code."""

from types import SimpleNamespace

import torch
from torch.nn import functional as F


def direct(x, p):
    """The definition of a convolution, window element by window element."""
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = p.kernel_size, p.stride, p.dilation, p.padding
    mode = "constant" if p.padding_mode == "zeros" else p.padding_mode
    padded = F.pad(x, [pw, pw, ph, ph], mode) if ph or pw else x
    high = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    wide = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    filters = p.weight.unflatten(0, (p.groups, -1))
    y = 0
    for i in range(kh):
        for j in range(kw):
            seen = padded[:, :, i * dh : i * dh + (high - 1) * sh + 1 : sh, j * dw : j * dw + (wide - 1) * sw + 1 : sw]
            y = y + torch.einsum("ngchw,goc->ngohw", seen.unflatten(1, (p.groups, -1)), filters[..., i, j])
    y = y.flatten(1, 2)
    return y if p.bias is None else y + p.bias.view(-1, 1, 1)


im2col = im2row = as_strided = kn2row = kn2col = kn2row_aa = mec = indirect_conv = direct


def bin_means(x, bins):
    """Means over bins from ⌊iH/n⌋ to ⌈(i + 1)H/n⌉, n of them along each axis."""
    spans = [[(i * s // n, -(-(i + 1) * s // n)) for i in range(n)] for s, n in zip(x.shape[2:], bins, strict=True)]
    rows = [torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in spans[1]], -1) for a, b in spans[0]]
    return torch.stack(rows, -2)


def drconv(x, p):
    """All m outputs, selected by a one-hot mask whose derivative is that of the softmax."""
    values, m = vars(p), p.regions

    def convolved(data, weight):
        return direct(
            data, SimpleNamespace(**{**values, "weight": weight, "bias": None}, groups=1, padding_mode="zeros")
        )

    guide = convolved(x, values["guide.weight"]) + values["guide.bias"].view(-1, 1, 1)
    hidden = torch.einsum("nchw,jc->njhw", bin_means(x, p.kernel_size), values["squeeze.weight"][:, :, 0, 0])
    hidden = 1 / (1 + (-hidden - values["squeeze.bias"].view(-1, 1, 1)).exp())
    groups = values["expand.weight"][:, :, 0, 0].unflatten(0, (m, x.shape[1], -1))
    filters = torch.einsum("nrjhw,rcoj->nrochw", hidden.unflatten(1, (m, m)), groups)
    biases = values["expand.bias"].view(*groups.shape[:3])
    filters = filters + biases.transpose(1, 2)[:, :, :, None, None]
    outputs = [[convolved(sample[None], made[r])[0] for sample, made in zip(x, filters, strict=True)] for r in range(m)]
    soft = guide.exp() / guide.exp().sum(1, keepdim=True)
    hard = F.one_hot(guide.argmax(1), m).movedim(-1, 1)
    mask = hard + soft - soft.detach()
    return sum(torch.stack(outputs[r]) * mask[:, r : r + 1] for r in range(m))
