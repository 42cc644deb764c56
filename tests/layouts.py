"""The same numbers laid out in memory in different ways."""

import torch

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def contiguous(x):
    """As torch.randn makes them."""
    return x.clone(memory_format=torch.contiguous_format)


def channels_last(x):
    """The channels of one position side by side: a memory format of torch in 4-d and 5-d, a stride in 2-d and 3-d."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(x):
    """Batch and channels swapped in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def strided(x):
    """Every second number of a larger tensor along the last axis."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 9.0)
    wide[..., ::2] = x
    return wide[..., ::2]


def reversed_axes(x):
    """The order of all axes reversed in memory."""
    axes = list(reversed(range(x.dim())))
    return x.permute(axes).contiguous().permute(axes)


def strides(x):
    """The strides of the axes along which there is a step to make."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1 and x.numel()]


LAYOUTS = {layout.__name__: layout for layout in (contiguous, channels_last, transposed, strided, reversed_axes)}
