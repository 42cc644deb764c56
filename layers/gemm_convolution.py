r"""The engine under the convolution algorithms: one product of matrices, or one per tap, in place of a convolution.

$$y_{no\,uv} = b_o + \sum_{c,i,j} W_{ocij}\; x_{n,c,\;s u + d i - p,\;s v + d j - p}$$
An algorithm is a function that makes y from x and W and allocates what its paper allocates, its *workspace*, nothing
else. What is shared stands here: the layer around it, the gradients, and how y starts.

Gradients. Algorithms that lower x to a matrix of patches have those of the product, with the matrix made again:
∂L/∂W = g·patchesᵀ and ∂L/∂x = col2im(Wᵀ·g), small images together. The others go tap by tap and lower nothing:
∂L/∂x[shifted] += W_tapᵀ g, ∂L/∂W_tap = g·x[shifted]ᵀ. Second derivatives are torch's.

Under torch.compile, tracing and functorch, which see through plain operations only, it is torch's own convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layers.convolution import Convolution, autocast
from layers.moments import as_laid_out, needs_plain_operations, wide_dtype

Pair = tuple[int, int]
Tap = tuple[int, int, tuple[slice, slice], tuple[slice, slice]]
TOGETHER = 1 << 21  # numbers of the patches of as many images as are multiplied together, for the gradients
FEW = 128  # columns: a product with fewer is slow, and one for all images of a batch is worth turning its result


class Geometry(NamedTuple):
    """How windows are taken of an input that is padded by ``padding`` zeros on each side."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def output(self, height: int, width: int) -> Pair:
        """Return the positions HO, WO of the output for an input of H, W."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        high, wide = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
        return high, wide

    @property
    def is_pointwise(self) -> bool:
        """Whether every window is one element of the input: nothing is to be lowered."""
        return (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))

    def taps(self, height: int, width: int) -> Iterator[Tap]:
        """Yield, for each element (i, j) of the kernel: i, j, the positions of the input it meets, those of the output.

        Both are slices along height and width, of as many positions each; those that meet padding are left out.
        """
        sizes = (height, width), self.output(height, width), self.stride, self.padding, self.dilation
        for i in range(self.kernel[0]):
            rows = _met(i, *(size[0] for size in sizes))
            for j in range(self.kernel[1]):
                columns = _met(j, *(size[1] for size in sizes))
                if rows and columns:
                    yield i, j, (rows[0], columns[0]), (rows[1], columns[1])


def _met(tap: int, size: int, outputs: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice] | None:
    """The positions of the input that ``tap`` meets along one axis, and those of the output; None for padding alone."""
    shift = tap * dilation - padding
    first = max(0, -(shift // stride))
    last = min(outputs - 1, (size - 1 - shift) // stride)
    if last < first:
        return None
    start = first * stride + shift
    return slice(start, last * stride + shift + 1, stride), slice(first, last + 1)


class GemmConvolution(Convolution):
    """A convolution (N, C, H, W) → (N, O, HO, WO) by an algorithm of its subclass.

    Parameters, state and outputs are those of torch.nn.Conv2d, up to rounding. Padding of another kind than zeros is
    added before. Raises what `Convolution` raises, and RuntimeError for an input of another dtype than the weight.
    """

    @staticmethod
    def gradients(
        grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return ∂L/∂x and ∂L/∂W, where wanted, for ``grad`` = ∂L/∂y; records no graph."""
        raise NotImplementedError

    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), in any layout, for ``x`` (N, C, H, W) in any layout; records no graph."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (N, O, HO, WO) of ``x`` (N, C, H, W), in its memory format."""
        self.check_input(x)
        if needs_plain_operations() or x.is_meta:
            return as_laid_out(self._conv_forward(x, self.weight, self.bias), x)
        padded, padding = self.padded(x)
        geometry = Geometry(self.kernel_size, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]
        padded, weight, bias = autocast(padded, self.weight, self.bias)
        refuse_mixed_types(type(self).__name__, padded, weight, bias)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (padded, weight, bias)):
            y: Tensor = _ByAlgorithm.apply(padded, weight, bias, self, geometry)  # type: ignore[no-untyped-call]
        else:
            y = self.algorithm(padded, weight, bias, geometry)
        kept = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return y.contiguous(memory_format=torch.channels_last if kept else torch.contiguous_format)


class _ByAlgorithm(torch.autograd.Function):
    """The algorithm of a layer forward, its gradients backward. Keeps x and W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: GemmConvolution, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradients, ctx.geometry, ctx.biased = type(layer).gradients, geometry, bias is not None
        return layer.algorithm(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (x, weight), geometry = grads[0], ctx.saved_tensors, ctx.geometry
        wants = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() or needs_plain_operations() or torch._C._functorch.is_legacy_batchedtensor(grad):
            stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
            sizes = [weight.shape[0]] if ctx.biased else None
            found = torch.ops.aten.convolution_backward(
                grad, x, weight, sizes, stride, padding, dilation, False, (0, 0), geometry.groups, wants
            )
            return (*(f if wanted else None for f, wanted in zip(found, wants, strict=True)), None, None)
        grad_bias = grad.sum((0, 2, 3)) if wants[2] else None
        grad_x, grad_weight = ctx.gradients(grad, x, weight, geometry, wants[:2])
        return grad_x, grad_weight, grad_bias, None, None


def refuse_mixed_types(name: str, x: Tensor, *parameters: Tensor | None) -> None:
    """Raise RuntimeError, as torch's convolutions do, unless ``x`` and the ``parameters`` are of one dtype.

    Some algorithms would convert, others fail in the middle.
    """
    other = next((t.dtype for t in parameters if t is not None and t.dtype != x.dtype), None)
    if other is not None:
        raise RuntimeError(f"{name}: the input's type is {x.dtype}, a parameter's {other}; convert one with .to(dtype)")


def started(y: Tensor, bias: Tensor | None) -> int:
    """Fill ``y``, channels along its dimension 1, with ``bias``; return β of the product that overwrites or adds to it.

    That is 1, or 0 without a bias, as in ``y.baddbmm_(…, beta=β)``.
    """
    if bias is None:
        return 0
    y.copy_(bias.view(1, -1, *[1] * (y.dim() - 2)).expand_as(y))
    return 1


def patches(x: Tensor, geometry: Geometry, out: Tensor | None = None) -> Tensor:
    """Return the patches (N, C·KH·KW, HO·WO) of ``x`` (N, C, H, W), one per column; in ``out`` of `patch_matrix`.

    Row c·KH·KW + i·KW + j holds x[c] shifted to element (i, j) of the kernel, as in Caffe and torch.nn.functional.
    A pointwise convolution's are x itself, a view. One copy per element of the kernel, in runs of WO: on the CPU 17
    times as fast as torch.ops.aten.im2col, which copies number by number, for 3×3 over 64×56×56.
    """
    if geometry.is_pointwise and out is None:
        return x.flatten(2)
    out = patch_matrix(x, geometry) if out is None else out
    cells = out.view(len(x), x.shape[1], *geometry.kernel, *geometry.output(*x.shape[2:]))
    for i, j, (rows, columns), (high, across) in geometry.taps(*x.shape[2:]):
        cells[:, :, i, j, high, across].copy_(x[:, :, rows, columns])
    return out


def patch_matrix(x: Tensor, geometry: Geometry) -> Tensor:
    """Return room for the patches of ``x`` (N, C, H, W), 0 where padding is met, for these and others of its shape.

    In memory a row has all images, so that (C·KH·KW, N·HO·WO) is a view of it.
    """
    (high, wide), (kh, kw) = geometry.output(*x.shape[2:]), geometry.kernel
    make = x.new_zeros if any(geometry.padding) else x.new_empty
    return make(x.shape[1] * kh * kw, x.shape[0], high * wide).transpose(0, 1)


def lowered_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return ∂L/∂x and ∂L/∂W, where wanted, by products with matrices of patches, small images together.

    Half precision adds up in float32: over the images of a batch rounded sums would stop to grow.
    """
    groups, positions = geometry.groups, grad[0, 0].numel() if len(grad) else 0
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)  # (G, O/G, I)
    images, step = x.contiguous(), max(1, TOGETHER // max(1, groups * filters.shape[2] * positions))
    wide = x.dtype if step >= len(x) and adds_in_float32(x) else wide_dtype(x.dtype)
    grad_x = torch.empty_like(images) if wants[0] else None
    grad_filters = torch.zeros_like(filters, dtype=wide) if wants[1] else None
    matrix = None if geometry.is_pointwise or grad_filters is None else patch_matrix(images[:step], geometry)
    for n in range(0, len(x), step):
        part, upstream = images[n : n + step], grad[n : n + step]
        upstream = upstream.transpose(0, 1).reshape(*filters.shape[:2], -1)  # (G, O/G, n·P)
        if grad_filters is not None:
            room = None if matrix is None else matrix[: len(part)]
            columns = patches(part, geometry, room).transpose(0, 1).reshape(groups, -1, upstream.shape[2])
            grad_filters.baddbmm_(upstream.to(wide), columns.transpose(1, 2).to(wide))
        if grad_x is not None:
            _add_patches(torch.bmm(filters.transpose(1, 2), upstream), grad_x[n : n + step], geometry)
    return grad_x, None if grad_filters is None else grad_filters.view(weight.shape).to(weight.dtype)


def adds_in_float32(x: Tensor) -> bool:
    """Whether a product of matrices like ``x`` is a sum in float32, rounded once and as fast as it can be."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _add_patches(columns: Tensor, images: Tensor, geometry: Geometry) -> None:
    """Add the columns (…, N·HO·WO) up where their patches lay in ``images`` (N, C, H, W): the adjoint of `patches`."""
    n, channels, *size = images.shape
    if geometry.is_pointwise:
        images.copy_(columns.view(channels, n, *size).transpose(0, 1))
        return
    cells = columns.view(channels, *geometry.kernel, n, *geometry.output(*size)).permute(3, 0, 1, 2, 4, 5)
    dtype = wide_dtype(images.dtype)
    sums = images.zero_() if dtype == images.dtype else torch.zeros_like(images, dtype=dtype)
    for i, j, (rows, across), (high, wide) in geometry.taps(*size):
        sums[:, :, rows, across] += cells[:, :, i, j, high, wide]
    if sums is not images:
        images.copy_(sums)


def tapwise_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return ∂L/∂x and ∂L/∂W, where wanted, tap by tap, without lowering; half precision adds up in float32."""
    groups, (outputs, inputs, kh, kw) = geometry.groups, weight.shape
    wide = wide_dtype(x.dtype)
    once = x.dtype if adds_in_float32(x) else wide  # a tap's gradient is one product; x gets a sum of them
    channels = x.permute(0, 2, 3, 1).to(once).contiguous()
    grads = grad.permute(0, 2, 3, 1).to(once).contiguous()
    taps = weight.reshape(groups, outputs // groups, inputs, kh, kw).permute(3, 4, 0, 1, 2)
    filters = taps.to(wide, memory_format=torch.contiguous_format) if wants[0] else taps
    grad_x = torch.zeros_like(channels, dtype=wide) if wants[0] else None
    grad_filters = torch.zeros_like(taps, dtype=once, memory_format=torch.contiguous_format) if wants[1] else None
    for i, j, (rows, columns), (high, across) in geometry.taps(*x.shape[2:]):
        g = grads[:, high, across].reshape(-1, groups, outputs // groups).transpose(0, 1)  # (G, M, O/G)
        if grad_filters is not None:
            seen = channels[:, rows, columns].reshape(-1, groups, inputs).transpose(0, 1)
            torch.bmm(g.transpose(1, 2), seen, out=grad_filters[i, j])
        if grad_x is not None:
            met = grad_x[:, rows, columns]
            met += torch.bmm(g.to(wide), filters[i, j]).transpose(0, 1).reshape(met.shape)
    found = None if grad_filters is None else grad_filters.permute(2, 3, 4, 0, 1).reshape(weight.shape)
    return (
        None if grad_x is None else grad_x.permute(0, 3, 1, 2).to(x.dtype),
        None if found is None else found.to(weight.dtype),
    )


def as_torch(layer: GemmConvolution, x: Tensor) -> tuple[Tensor, Tensor]:
    """The proof that all algorithms share: output and gradients of a layer beside those of torch's convolution."""

    def found(convolve: Callable[[Tensor], Tensor]) -> Tensor:
        leaves = [x.detach().requires_grad_(), *layer.parameters()]
        y = convolve(leaves[0])
        return torch.cat([t.flatten() for t in (y, *torch.autograd.grad(y.sin().sum(), leaves))]).detach()

    plain = nn.Conv2d.forward
    return found(layer), found(lambda leaf: plain(layer, leaf))
