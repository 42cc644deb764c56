"""The naive references of convolutions and of what works on weights, as `references` has them of activations.

A convolution is ``name(x, p)`` as there. A penalty, projection or initializer is ``name(weight, p)`` with the options
as ``p``; it returns the number or the new weight, drawn by torch's generator where it is random. An optimizer is
``name(params, grads, p)``: lists of parameters and, for each step, of their gradients; it returns the parameters after
the last step.
"""

from __future__ import annotations

import torch
from references import channels


def convolution(x, w, p):
    """The sum over each window, window by window, of the padded input."""
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = p.kernel_size, p.stride, p.dilation, p.padding
    axes = [[q - pad for q in range(size + 2 * pad)] for size, pad in zip(x.shape[2:], (ph, pw), strict=True)]
    fold = {
        "zeros": lambda q, n: q,
        "replicate": lambda q, n: min(max(q, 0), n - 1),
        "circular": lambda q, n: q % n,
        "reflect": lambda q, n: -q if q < 0 else 2 * (n - 1) - q if q >= n else q,
    }[p.padding_mode]
    rows, columns = ([fold(q, n) for q in axis] for axis, n in zip(axes, x.shape[2:], strict=True))
    inside = [[float(0 <= q < n) for q in axis] for axis, n in zip((rows, columns), x.shape[2:], strict=True)]
    x = x[:, :, [max(0, min(q, x.shape[2] - 1)) for q in rows]][..., [max(0, min(q, x.shape[3] - 1)) for q in columns]]
    x = x * torch.outer(*(torch.tensor(each, dtype=x.dtype) for each in inside))
    high, wide = (len(rows) - dh * (kh - 1) - 1) // sh + 1, (len(columns) - dw * (kw - 1) - 1) // sw + 1
    x, w = x.unflatten(1, (p.groups, -1)), w.unflatten(0, (p.groups, -1))
    y = 0
    for i in range(kh):
        for j in range(kw):
            seen = x[..., i * dh : i * dh + (high - 1) * sh + 1 : sh, j * dw : j * dw + (wide - 1) * sw + 1 : sw]
            y = y + torch.einsum("ngchw,goc->ngohw", seen, w[..., i, j])
    y = y.flatten(1, 2)
    return y if p.bias is None else y + channels(p.bias, y)


def weight_standardization(x, p):
    rows = p.weight.flatten(1)
    centred, n = rows - rows.mean(1, keepdim=True), rows.shape[1]
    divisor = n - 1 if p.convention in ("qiao", "bcn") else n
    eps = {"timm": 1e-6}.get(p.convention, 1e-5) if p.eps is None else p.eps
    var = (centred**2).sum(1, keepdim=True) / divisor
    std = var.sqrt() + eps if p.convention.startswith("qiao") else (var + eps).sqrt()
    return convolution(x, (centred / std).view_as(p.weight), p)


def plain_sgd(w, grads, p):
    """Nesterov SGD, as the optimizers on the Grassmannian train what is not on it."""
    momentum = torch.zeros_like(w)
    for g in grads:
        g = (-g if p.maximize else g) + p.weight_decay * w
        momentum = p.momentum * momentum + g
        w = w - p.lr * (g + p.momentum * momentum)
    return w


def tangents(w, g, p):
    """The unit rows of a kernel, and their tangent gradients with the penalty, clipped; a list of vectors each."""
    flat, g = w.flatten(1), (-g if p.maximize else g).flatten(1)
    size, ys, hs = w.shape[0] // p.groups, [row / (row @ row).sqrt() for row in flat], []
    for i, y in enumerate(ys):
        others = ys[i // size * size : (i // size + 1) * size]
        h = g[i] + 2 * p.omega * (sum((y @ other) * other for other in others) - y)
        h = h - (y @ h) * y
        long = (h @ h).sqrt()
        hs.append(h if p.grad_clip is None or long <= p.grad_clip else h * p.grad_clip / long)
    return ys, hs


def turn(y, a, d):
    """exp_y(d), and a carried along it; by equations 7 and 8."""
    angle = (d @ d).sqrt()
    if angle == 0:
        return y, a
    u = d / angle
    return y * angle.cos() + u * angle.sin(), a - (u @ a) * (y * angle.sin() + u * (1 - angle.cos()))


def sgd_g(params, grads, p):
    found = []
    for w, *steps in zip(params, *grads, strict=True):
        taus = [torch.zeros_like(row) for row in w.flatten(1)]
        rows = w
        for g in steps if p.manifold else []:
            ys, hs = tangents(rows, g, p)
            ds = [p.momentum * tau - p.lr * h for tau, h in zip(taus, hs, strict=True)]
            turned = [turn(y, d, d) for y, d in zip(ys, ds, strict=True)]
            rows, taus = torch.stack([y for y, _ in turned]), [tau for _, tau in turned]
        found.append(rows.view_as(w) if p.manifold else plain_sgd(w, steps, p))
    return found


def adam_g(params, grads, p):
    found = []
    for w, *steps in zip(params, *grads, strict=True):
        taus, vs, rows = [torch.zeros_like(row) for row in w.flatten(1)], [0.0] * len(w), w
        for t, g in enumerate(steps if p.manifold else [], 1):
            ys, hs = tangents(rows, g, p)
            ms = [p.beta1 * tau + (1 - p.beta1) * h for tau, h in zip(taus, hs, strict=True)]
            vs = [p.beta2 * v + (1 - p.beta2) * (h @ h) for v, h in zip(vs, hs, strict=True)]
            rate = p.lr * (1 - p.beta2**t) ** 0.5 / (1 - p.beta1**t)
            turned = [turn(y, m, -rate * m / (v + p.eps) ** 0.5) for y, m, v in zip(ys, ms, vs, strict=True)]
            rows, taus = torch.stack([y for y, _ in turned]), [tau for _, tau in turned]
        found.append(rows.view_as(w) if p.manifold else plain_sgd(w, steps, p))
    return found


def weight_norm(x, p):
    gains, vectors = (p.gain.view(1), [p.weight]) if p.norm == "tensor" else (p.gain, p.weight)
    filters = [g * v / max((v**2).sum() ** 0.5, p.eps) for g, v in zip(gains, vectors, strict=True)]
    return convolution(x, filters[0] if p.norm == "tensor" else torch.stack(filters), p)


def scaled_ws(x, p):
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    chance = (-(z**2) / 2).exp() / (-(z**2) / 2).exp().sum()
    act = {"identity": z, "relu": z.clamp(min=0), "silu": z / (1 + (-z).exp())}[p.activation]
    gamma = ((chance * act**2).sum() - (chance * act).sum() ** 2) ** -0.5 if p.gamma is None else p.gamma
    filters = []
    for g, w in zip(p.gain, p.weight, strict=True):
        mean = w.mean()
        std = (((w - mean) ** 2).mean() + p.eps) ** 0.5
        filters.append(g * gamma / w.numel() ** 0.5 * (w - mean) / std)
    return convolution(x, torch.stack(filters), p)


def cen_conv(x, p):
    return convolution(x, torch.stack([w - w.sum() / w.numel() for w in p.weight]), p)


def shifted_l2(weight, p):
    total = 0
    for w in weight.flatten(1):
        n, m = len(w), w.mean()
        s = (((w - m) ** 2).sum() / (n - 1)).sqrt() if p.statistic == "std" else None
        total += ((w @ w).sqrt() - p.eps) ** 2 if s is None else (n - 1) * (s - p.eps) ** 2 + n * m**2
    return p.lam / 2 * total


def svb(weight, p):
    found = []
    for rows in weight.flatten(1).chunk(p.groups):
        u, s, v = torch.linalg.svd(rows, full_matrices=False)
        found.append(u @ s.clamp(1 / p.factor, p.factor).diag() @ v)
    return torch.cat(found).view_as(weight)


def omd(weight, p):
    groups = weight.flatten(1).chunk(p.groups)
    return p.lam / 2 * sum(((rows @ rows.T - torch.eye(len(rows)).to(rows)) ** 2).sum() for rows in groups)


def orthogonal(weight, p):
    found = []
    for drawn in torch.randn(p.groups, len(weight) // p.groups, weight[0].numel(), dtype=weight.dtype):
        wide, basis = drawn.shape[0] < drawn.shape[1], []
        for v in drawn if wide else drawn.T:
            for u in [*basis, *basis]:
                v = v - (u @ v) * u
            basis.append(v / (v @ v) ** 0.5)
        found.append(p.gain * (torch.stack(basis) if wide else torch.stack(basis).T))
    return torch.cat(found).view_as(weight)


def omd_modulation(x, p):
    y = 1 * x
    active = p.steps % p.every == 0 and (p.until_step is None or p.steps < p.until_step)
    if active and p.target is not None and y.requires_grad:

        def rescaled(error):
            rho = (p.target / (error**2).mean() ** 0.5).detach()
            return error if p.low <= rho <= p.high else rho * error

        y.register_hook(rescaled)
    return y, {"steps": p.steps + int(p.training)}


def normalized_conv(x, p):
    (high, wide), modes = p.padding, {"zeros": "constant"}
    x = torch.nn.functional.pad(x, [wide, wide, high, high], modes.get(p.padding_mode, p.padding_mode))
    axes = zip(x.shape[2:], p.dilation, p.kernel_size, p.stride, strict=True)
    size = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in axes]
    maps = []
    for part, w in zip(x.chunk(p.groups, 1), p.weight.chunk(p.groups), strict=True):
        rows = torch.nn.functional.unfold(part, p.kernel_size, p.dilation, 0, p.stride).transpose(1, 2)
        mean = rows.sum(2, keepdim=True) / rows.shape[2]
        var = ((rows - mean) ** 2).sum(2, keepdim=True) / rows.shape[2]
        rows = rows - mean if p.center else rows
        rows = rows / (var + p.eps).sqrt() if p.scale else rows
        maps.append((rows @ w.flatten(1).T).transpose(1, 2))
    y = torch.cat(maps, 1).unflatten(2, size)
    return y if p.bias is None else y + channels(p.bias, y)
