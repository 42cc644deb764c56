"""A naive float64 function of a few lines per stone, found by the stone's name (``-`` spelt ``_``, ``in`` is ``in_``).

``name(x, p)`` gets the input (N, C, *positions) and a namespace ``p`` with every option of the layer, its parameters
(``p.weight``, …, or None), its buffers as they were before the forward, and ``p.training``. It returns y, or
``(y, buffers)`` with the buffers expected after the forward. Written from the paper, with none of the library's code;
differentiable, so gradients are compared too; where the paper stops a gradient, so does the reference.
"""

from __future__ import annotations


def channels(v, x):
    """View per-channel numbers (C,) so that they broadcast over x."""
    return v.view(1, -1, *[1] * (x.dim() - 2))


def affine(z, p):
    """γ z + β per channel, for the parameters that exist."""
    z = z if p.weight is None else channels(p.weight, z) * z
    return z if p.bias is None else z + channels(p.bias, z)


def standardize(x, dims, eps):
    """(x − mean)/√(biased variance + eps) over dims."""
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean) ** 2).mean(dims, keepdim=True).add(eps).sqrt()


def bn(x, p):
    axes = [0, *range(2, x.dim())]
    if not p.training and p.track_running_stats:
        return affine((x - channels(p.running_mean, x)) / channels((p.running_var + p.eps).sqrt(), x), p)
    y = affine(standardize(x, axes, p.eps), p)
    if not p.track_running_stats:
        return y
    count, values = p.num_batches_tracked + 1, x.detach().transpose(0, 1).flatten(1)
    a = 1 / count if p.momentum is None else p.momentum
    mean, var = values.mean(1), values.var(1, correction=1)
    after = {"running_mean": (1 - a) * p.running_mean + a * mean, "running_var": (1 - a) * p.running_var + a * var}
    return y, {**after, "num_batches_tracked": count}


def gn(x, p):
    groups = x.shape[1] // p.channels_per_group if p.channels_per_group else p.groups
    return affine(standardize(x.reshape(x.shape[0], groups, -1), [2], p.eps).reshape(x.shape), p)
