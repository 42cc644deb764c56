"""The naive references of the second-order poolings, as `references` has them of activations."""

from __future__ import annotations

import torch
from references_weights import convolution


def bilinear(x, p):
    rows = x.reshape(*x.shape[:2], -1).unbind(2)
    product = sum(row.unsqueeze(2) * row.unsqueeze(1) for row in rows)
    c = x.shape[1]
    product = product / len(rows) if p.pool == "mean" else product
    if p.sketch is None:
        flat = product.flatten(1)
    else:
        flat = [torch.zeros(len(x), dtype=x.dtype) for _ in range(p.sketch)]
        for i in range(c):
            for j in range(c):
                place = int(p.hashes[0, i] + p.hashes[1, j]) % p.sketch
                flat[place] = flat[place] + p.signs[0, i] * p.signs[1, j] * product[:, i, j]
        flat = torch.stack(flat, 1)
    root = torch.where(flat == 0, 0, flat.sign() * torch.where(flat == 0, 1, flat.abs() + p.eps).sqrt())
    if p.vec == "triu":
        pairs = [(i, j) for i in range(c) for j in range(i, c)]
        root = torch.stack([root[:, i * c + j] * (1 if i == j else 2**0.5) for i, j in pairs], 1)
    if not p.l2:
        return root
    length = (root**2).sum(1, keepdim=True)
    return root / torch.where(length == 0, 1, length).sqrt()


def factorized_bilinear(x, p):
    n, o, k = x.shape[1] // p.groups, p.out_channels or x.shape[1], p.num_factors
    bias, p.bias = p.bias, None
    share = 1 if p.training or not p.drop else 1 - p.drop
    y = 0 if p.weight is None else convolution(x, p.weight, p)
    filters = p.factors.view(o, k, n, *p.kernel_size)
    for f in range(k):
        y = y + share * convolution(x, filters[:, f], p) ** 2
        if not p.self_interaction:
            y = y - share * convolution(x**2, filters[:, f] ** 2, p)
    return y if bias is None else y + bias.view(-1, 1, 1)


def symmetric_power(a, exponent):
    values, vectors = torch.linalg.eigh(a)
    return vectors @ torch.diag_embed(values**exponent) @ vectors.mT


def helmert(m):
    """An orthonormal basis of the vectors of m numbers whose sum is 0, as columns."""
    basis = torch.zeros(m, m - 1, dtype=torch.float64)
    for j in range(1, m):
        basis[:j, j - 1], basis[j, j - 1] = 1, -j
        basis[:, j - 1] /= (j * (j + 1)) ** 0.5
    return basis


def mpn_cov(x, p):
    x = x.flatten(2)
    buffers = {}
    if p.dim_reduction is not None:
        x = torch.einsum("rc,ncm->nrm", vars(p)["reduction.conv.weight"].squeeze(3).squeeze(2), x)
        x, buffers = batch_normalized(x, p)
        x = x.clamp_min(0)
    c, m = x.shape[1:]
    # A Aᵀ = Σ with A of full rank: the power is that of the smaller of A Aᵀ and Aᵀ A.
    a = x @ helmert(m) / m**0.5
    if p.method == "eig":
        q = symmetric_power(a @ a.mT, p.alpha) if c < m else a @ symmetric_power(a.mT @ a, p.alpha - 1) @ a.mT
        if p.norm == "l2":
            q = q / torch.linalg.matrix_norm(q, 2, keepdim=True)
        elif p.norm == "fro":
            q = q / (q**2).sum((1, 2), keepdim=True).sqrt()
    else:
        sigma = a @ a.mT
        trace = (a**2).sum((1, 2)).view(-1, 1, 1)
        y, z = sigma / trace, torch.eye(c, dtype=x.dtype).expand_as(sigma)
        for _ in range(p.iters):
            t = (3 * torch.eye(c, dtype=x.dtype) - z @ y) / 2
            y, z = y @ t, t @ z
        q = trace.sqrt() * y
    pairs = [(i, j) for i in range(c) for j in range(i if p.vec == "triu" else 0, c)]
    return torch.stack([q[:, i, j] for i, j in pairs], 1), buffers


def batch_normalized(x, p):
    """Batch normalization with the defaults of torch, and its buffers afterwards."""
    old = {name: vars(p)[f"reduction.norm.{name}"] for name in ("running_mean", "running_var", "num_batches_tracked")}
    mean, var = old["running_mean"], old["running_var"]
    buffers = {}
    if p.training:
        values = x.transpose(0, 1).flatten(1)
        mean, var = values.mean(1), values.var(1, correction=0)
        unbiased = values.detach().var(1, correction=1)
        buffers = {
            "reduction.norm.running_mean": 0.9 * old["running_mean"] + 0.1 * mean.detach(),
            "reduction.norm.running_var": 0.9 * old["running_var"] + 0.1 * unbiased,
            "reduction.norm.num_batches_tracked": old["num_batches_tracked"] + 1,
        }
    z = (x - mean.view(-1, 1)) / (var.view(-1, 1) + 1e-5).sqrt()
    return z * vars(p)["reduction.norm.weight"].view(-1, 1) + vars(p)["reduction.norm.bias"].view(-1, 1), buffers
