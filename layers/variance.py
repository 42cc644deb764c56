"""The variance in plain operations, as the compiler, the tracer and functorch see it."""

from torch import Tensor


def variance_about(mean: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return the biased variance of ``x`` along ``dim``, kept with size 1, in plain operations; ``mean`` is its mean.

    For any c it is the mean of (x − c)² less (mean − c)². A constant c that equals the mean takes no digits away, and
    saves the compiler two passes backward: the gradient would otherwise have the sum of all x − mean in it, which is 0.
    """
    center = mean.detach()
    return (x - center).square().mean(dim, keepdim=True) - (mean - center).square()
