"""A naive float64 function of a few lines per stone, found by the stone's name (``-`` spelt ``_``, ``in`` is ``in_``).

``name(x, p)`` gets the input (N, C, *positions) and a namespace ``p`` with every option of the layer, its parameters
(``p.weight``, …, or None), its buffers as they were before the forward, and ``p.training``. It returns y, or
``(y, buffers)`` with the buffers expected after the forward. Written from the paper, with none of the library's code;
differentiable, so gradients are compared too; where the paper stops a gradient, so does the reference.
"""

from __future__ import annotations

import torch


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
    a = 1 / count.double() if p.momentum is None else p.momentum
    mean, var = values.mean(1), values.var(1, correction=1)
    after = {"running_mean": (1 - a) * p.running_mean + a * mean, "running_var": (1 - a) * p.running_var + a * var}
    return y, {**after, "num_batches_tracked": count}


def gn(x, p):
    groups = x.shape[1] // p.channels_per_group if p.channels_per_group else p.groups
    return affine(standardize(x.reshape(x.shape[0], groups, -1), [2], p.eps).reshape(x.shape), p)


def divided(x, dims, p, detach="none"):
    """(x − mean)/√(var + eps), or /(std + eps), with the estimator and stopped gradients that p and detach name."""
    mean = x.mean(dims, keepdim=True)
    squares = ((x - mean) ** 2).sum(dims, keepdim=True)
    var = squares / (x.numel() / squares.numel() - int(p.unbiased))
    std = (var + p.eps).sqrt() if getattr(p, "eps_mode", "var") == "var" else var.sqrt() + p.eps
    mean = mean.detach() if detach in ("mean", "both") else mean
    return (x - mean) / (std.detach() if detach in ("std", "both") else std)


def ln(x, p):
    z = divided(x, [1] if p.axes == "channel" else list(range(1, x.dim())), p, p.detach)
    if p.affine != "elementwise":
        return affine(z, p)
    return z * p.weight.view(x.shape[1:]) + p.bias.view(x.shape[1:])


def adanorm(x, p):
    z = divided(x, [1], p)
    return p.scale * (1 - p.k * z.detach()) * z


def pono(x, p):
    return divided(x, [1], p)


def pixel_norm(x, p):
    return x / ((x**2).mean(1, keepdim=True) + p.eps).sqrt()


def in_(x, p):
    axes = list(range(2, x.dim()))
    if not p.training and p.track_running_stats:
        return affine((x - channels(p.running_mean, x)) / channels((p.running_var + p.eps).sqrt(), x), p)
    y = affine(standardize(x, axes, p.eps), p)
    if not (p.training and p.track_running_stats):
        return y
    count, planes = p.num_batches_tracked + 1, x.detach().flatten(2)
    a = 1 / count.double() if p.momentum is None else p.momentum
    mean, var = planes.mean(2).mean(0), planes.var(2, correction=1).mean(0)
    after = {"running_mean": (1 - a) * p.running_mean + a * mean, "running_var": (1 - a) * p.running_var + a * var}
    return y, {**after, "num_batches_tracked": count}


def after_batch(x, p, unbiased=True, a=None):
    """The running statistics after a batch: torch's convention, or the averages of E[x] and E[x²] (not unbiased)."""
    values, count = x.detach().transpose(0, 1).flatten(1), p.num_batches_tracked + 1
    a = (1 / count.double() if p.momentum is None else p.momentum) if a is None else a
    mean = (1 - a) * p.running_mean + a * values.mean(1)
    var = (1 - a) * p.running_var + a * values.var(1, correction=1)
    if not unbiased:
        var = (1 - a) * (p.running_var + p.running_mean**2) + a * (values**2).mean(1) - mean**2
    return {"running_mean": mean, "running_var": var, "num_batches_tracked": count}


def fixed(x, mean, var, p):
    """Normalize by given numbers (C,): evaluation of batch normalization."""
    return affine((x - channels(mean, x)) / channels((var + p.eps).sqrt(), x), p)


def ghost_bn(x, p):
    if not p.training:
        return fixed(x, p.running_mean, p.running_var, p)
    ghosts = x.split(p.ghost_size)
    y = torch.cat([affine(standardize(ghost, [0, *range(2, x.dim())], p.eps), p) for ghost in ghosts])
    if p.running == "batch":
        return y, after_batch(x, p)
    for ghost in ghosts:
        vars(p).update(after := after_batch(ghost, p))
    return y, after


def blocks(x, examples, groups, eps):
    """Standardize blocks of consecutive examples and consecutive channels."""
    shape = (x.shape[0] // examples, examples, groups, x.shape[1] // groups, -1)
    return standardize(x.reshape(shape), [1, 3, 4], eps).reshape(x.shape)


def weigh(x, p, groups):
    """Evaluation by (1 − alpha) × running + alpha × own averages of x and x², each over a group of channels."""
    shape, planes = (-1, groups, x.shape[1] // groups), x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    own = [t.mean(2).reshape(shape).mean(2, keepdim=True) for t in (planes, planes**2)]
    kept = [t.reshape(shape).mean(2, keepdim=True) for t in (p.running_mean, p.running_var + p.running_mean**2)]
    mean, square = ((1 - p.alpha) * k + p.alpha * o for k, o in zip(kept, own, strict=True))
    z = (planes.reshape(*own[0].shape[:2], -1, planes.shape[2]) - mean[..., None]) / (
        (square - mean**2)[..., None] + p.eps
    ).sqrt()
    return affine(z.reshape(x.shape), p)


def bn_gn(x, p):
    groups = x.shape[1] // p.channels_per_group if p.channels_per_group else p.groups
    if not p.training:
        return weigh(x, p, groups)
    return affine(blocks(x, p.examples_per_group, groups, p.eps), p), after_batch(x, p, unbiased=False)


def iew(x, p):
    groups = p.groups or x.shape[1]
    if not p.training:
        return weigh(x, p, groups)
    return affine(blocks(x, x.shape[0], groups, p.eps), p), after_batch(x, p, unbiased=False)


def batch_renorm(x, p):
    floor = p.running_std.clamp(min=p.eps**0.5)
    if not p.training:
        return affine((x - channels(p.running_mean, x)) / channels(floor, x), p)
    t, axes = int(p.num_batches_tracked), [0, *range(2, x.dim())]
    late = p.schedule == "none"
    r_max = p.r_max if late else min(max(1, 1 + (p.r_max - 1) * (t - p.start) / (p.r_end - p.start)), p.r_max)
    d_max = p.d_max if late else min(max(0, p.d_max * (t - p.start) / (p.d_end - p.start)), p.d_max)
    mean, std = x.mean(axes), (x.transpose(0, 1).flatten(1).var(1, correction=0) + p.eps).sqrt()
    r = (std / floor).clamp(1 / r_max, r_max).detach()
    d = ((mean - p.running_mean) / floor).clamp(-d_max, d_max).detach()
    y = affine((x - channels(mean, x)) / channels(std, x) * channels(r, x) + channels(d, x), p)
    moved = {"running_mean": p.running_mean.lerp(mean.detach(), p.momentum)}
    return y, {**moved, "running_std": p.running_std.lerp(std.detach(), p.momentum), "num_batches_tracked": t + 1}


def bcn(x, p):
    values, after = x.detach().transpose(0, 1).flatten(1), {}
    mean, var = p.running_mean, p.running_var
    if p.training and p.estimate:
        around, s = ((values - mean[:, None]) ** 2).mean(1), p.moving_speed
        mean, var = (1 - s) * mean + s * values.mean(1), (1 - s) * var + s * around
        after = {"running_mean": mean, "running_var": var}
    elif p.training:
        after, axes = after_batch(x, p), [0, *range(2, x.dim())]
        mean, var = x.mean(axes), x.transpose(0, 1).flatten(1).var(1, correction=0)
    u = fixed(x, mean, var, p)
    v = blocks(u, 1, p.groups, p.eps)
    w, b = (t.repeat_interleave(x.shape[1] // len(t)) for t in (p.group_weight, p.group_bias))
    return channels(w, x) * v + channels(b, x), after


class RootMeanSquare(torch.autograd.Function):
    """x/√(V + eps) with the backward of MABN's paper, which writes its Ψ in the ring."""

    @staticmethod
    def forward(ctx, x, level, eps, ring, slot, averaged):
        z = x / channels((level + eps).sqrt(), x)
        ctx.save_for_backward(z, level)
        ctx.rest = eps, ring, slot, averaged
        return z

    @staticmethod
    def backward(ctx, g):
        (z, level), (eps, ring, slot, averaged) = ctx.saved_tensors, ctx.rest
        ring[slot] = (g * z).mean([0, *range(2, g.dim())])
        psi = ring.mean(0) if averaged else ring[slot]
        return (g - z * channels(psi, z)) / channels((level + eps).sqrt(), z), None, None, None, None, None


def mabn(x, p):
    if not p.training:
        return fixed(x, 0 * p.running_square, p.running_square, p)
    t, m = int(p.num_batches_tracked) + 1, p.real_batch // p.batch
    averaged, chi = t > m and t >= p.warmup, (x.detach() ** 2).mean([0, *range(2, x.dim())])
    rings = [ring.clone() for ring in (p.ring_chi, p.ring_psi)]
    rings[0][t % m] = chi
    level = rings[0].mean(0) if averaged else chi
    r = ((level + p.eps) / (p.running_square + p.eps)).sqrt().clamp(1 / p.clip, p.clip)
    z = RootMeanSquare.apply(x, level, p.eps, rings[1], t % m, averaged)
    y = affine(z * channels(r if t > max(p.renorm_after, p.warmup) else r**0, x), p)
    after = {"running_square": (1 - p.momentum) * p.running_square + p.momentum * level, "num_batches_tracked": t}
    return y, {**after, "ring_chi": rings[0], "ring_psi": rings[1]}


def mean_only_bn(x, p):
    axes, tracked = [0, *range(2, x.dim())], p.track_running_stats
    mean = p.running_mean if tracked and not p.training else x.mean(axes)
    y = affine(x - channels(mean, x), p)
    if not (tracked and p.training):
        return y
    return y, {"running_mean": (1 - p.momentum) * p.running_mean + p.momentum * mean.detach()}


def actnorm(x, p):
    loc, learned = p.loc, p.scale if p.parametrization == "scale" else p.logs
    if p.training and not p.initialized:
        values = x.detach().transpose(0, 1).flatten(1)
        var = values.var(1, correction=int(p.variance == "unbiased"))
        scale = 1 / ((var.mean() if p.batch_variance else var).sqrt() + p.eps) * x.new_ones(x.shape[1])
        first = scale if p.parametrization == "scale" else scale.log() / p.logscale_factor
        loc, learned = loc - (loc + values.mean(1)).detach(), learned + (first - learned).detach()
    scale = learned if p.parametrization == "scale" else (p.logscale_factor * learned).exp()
    return channels(scale, x) * (x + channels(loc, x)), {"initialized": p.initialized | p.training}
