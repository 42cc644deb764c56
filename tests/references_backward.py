"""The naive references of the backward rules: a plain forward whose upstream gradient is changed on its way."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from references_conv import direct


def meprop(x, p):
    y = sum(x[:, i : i + 1] * p.weight[:, i] for i in range(x.shape[1]))
    outputs = y.shape[1]
    k = p.k if p.k is not None else outputs if p.ratio is None else max(1, int(p.ratio * outputs + 0.5))

    def kept(error):
        if k == 0 or k >= outputs or not len(error):
            return error
        sizes = error.abs().sum(0).expand_as(error) if p.unified else error.abs()
        order = sizes.argsort(1, descending=True)[:, :k]
        mask = torch.zeros_like(error)
        for row, columns in zip(mask, order, strict=True):
            row[columns] = 1
        return mask * error

    if y.requires_grad:
        y.register_hook(kept)
    return y if p.bias is None else y + p.bias


def dsg(x, p):
    values = vars(p)

    def convolved(weight):
        geometry = {name: values[name] for name in ("kernel_size", "stride", "padding", "dilation")}
        return direct(x, SimpleNamespace(**geometry, groups=1, padding_mode="zeros", weight=weight, bias=None))

    weight, after = values["conv.weight"], {}
    y = scores = convolved(weight)
    if p.selection == "drs" and p.sparsity > 0:
        r, reduced = values["search.projection"], values["search.reduced"]
        if p.training and values["norm.num_batches_tracked"] % p.project_every == 0:
            reduced = weight.flatten(1) @ r / r.shape[1] ** 0.5
            after["search.reduced"] = reduced.detach()
        projected = convolved(r.T.reshape(-1, *weight.shape[1:])) / r.shape[1] ** 0.5
        scores = torch.einsum("nkhw,ok->nohw", projected, reduced)
    mask = torch.ones_like(y)
    for sample in range(len(x)) if p.sparsity > 0 else ():
        ordered = scores[0 if p.threshold == "first" else sample].detach().flatten().sort(descending=True).values
        mask[sample] = scores[sample] > ordered[round((1 - p.sparsity) * len(ordered) - 0.5 + 1e-6) - 1]
    z = (mask * y).relu()
    mean, var = values["norm.running_mean"], values["norm.running_var"]
    if p.training:
        channels = z.transpose(0, 1).flatten(1)
        count = channels.shape[1]
        after["norm.num_batches_tracked"] = values["norm.num_batches_tracked"] + 1
        after["norm.running_mean"] = 0.9 * mean + 0.1 * channels.mean(1).detach()
        after["norm.running_var"] = 0.9 * var + 0.1 * channels.var(1).detach()
        mean, var = channels.mean(1), channels.var(1) * (count - 1) / count
    mean, var, gamma, beta = (t.view(-1, 1, 1) for t in (mean, var, values["norm.weight"], values["norm.bias"]))
    return mask * (gamma * (z - mean) / (var + p.eps).sqrt() + beta), after


def resprop(x, p):
    bias, p.bias = p.bias, None
    y = direct(x, p)
    n, density = len(x), 1 - p.reuse_sparsity + p.margin
    after = {}
    if p.reuse_sparsity > p.margin and y.requires_grad:
        h, fits = p.prev_grad, p.prev_grad.shape == y.shape[1:]
        exponent, step = int(p.exponent), int(p.steps)
        tau, epoch = p.threshold_init * p.factor**exponent, step // p.epoch if p.epoch else 0
        ends = p.epoch is not None and (step % p.epoch == 0 or (step + 1) % p.epoch == 0)
        wanted = max(1 if epoch < 2 else 1 - epoch / 10, density) if p.warmup else density
        dense = not fits or ends or wanted == 1
        if p.training and n:
            after = {"prev_grad": torch.zeros(y.shape[1:], dtype=x.dtype), "exponent": torch.tensor(exponent)}

        def reused(error):
            if n == 0:
                return error
            change = torch.zeros_like(error) if not fits else (error - h).abs()
            new = torch.ones_like(error)
            if not dense and p.structure == "element":
                new = (change > tau).double()
            elif not dense:
                axis = 0 if p.structure == "sample" else 1
                sizes = change.transpose(0, axis).flatten(1).sum(1)
                most = sizes.argsort(descending=True)[: max(1, int(density * len(sizes) + 0.5))]
                new = torch.zeros_like(error)
                new.transpose(0, axis)[most] = 1
            if after:
                sample = ((step + 1 + p.sample_seed * 7919 % 2**31) * 6364136223846793005 % 2**64 >> 33) & 0x7FFFFFFF
                after["prev_grad"].copy_(error[sample % n].detach())
                if not dense and p.structure == "element":
                    found = new.mean().item() - wanted
                    after["exponent"] += (found > 1e-12) - int(found < -1e-12)
            return torch.where(new == 1, error, h) if fits else error

        y.register_hook(reused)
        after = {**after, "steps": torch.tensor(step + 1)} if after else {}
    return (y if bias is None else y + bias.view(-1, 1, 1)), after
