"""Residual networks to put normalizations into: the CIFAR ResNet-(6b + 2) of width w and the ImageNet ResNets.

Both from He, Zhang, Ren & Sun 2016 (arXiv 1512.03385, sections 4.1 and 4.2), with a normalized 1×1 convolution on each
shortcut that changes shape (their option B), as the networks of arXiv 2003.00152 have. No convolution has a bias. The
normalization is a factory, ``norm(channels)``, called once per convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from layers.card import OptionError
from layers.norm.bn import BatchNorm

NormFactory = Callable[[int], nn.Module]
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
EXPANSION = 4  # of a bottleneck's last convolution


def cifar_resnet(depth: int = 14, width: int = 16, classes: int = 10, norm: NormFactory = BatchNorm) -> ResNet:
    """Return ResNet-(6b + 2): a 3×3 stem and three stages of b two-convolution blocks, w, 2w and 4w channels wide.

    With batch normalization its γ and β are 14 w (2b + 1) numbers. Raises OptionError for a ``depth`` that is not
    6b + 2 with b ≥ 1, and for ``width`` or ``classes`` below 1.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise OptionError(f"depth={depth} is not 6b + 2 with b ≥ 1; the nearest depth is {near}", "depth")
    for name, value in (("width", width), ("classes", classes)):
        if value < 1:
            raise OptionError(f"{name}={value} is not an integer ≥ 1", name)
    stem = nn.Sequential(convolution(3, width, 3), norm(width), nn.ReLU())
    stages = [_stage(width * max(1, 2**i // 2), width * 2**i, blocks, 1 + (i > 0), (3, 3), norm) for i in range(3)]
    return ResNet(stem, stages, nn.Linear(4 * width, classes))


def imagenet_resnet(depth: int, classes: int = 1000, norm: NormFactory = BatchNorm) -> ResNet:
    """Return ResNet-18 or -34 (two 3×3 convolutions a block), -50, -101 or -152 (bottlenecks, stride on the 3×3).

    Raises OptionError for another ``depth`` and for ``classes`` below 1.
    """
    if depth not in IMAGENET_BLOCKS:
        raise OptionError(f"depth={depth} is not one of {', '.join(map(str, IMAGENET_BLOCKS))}", "depth")
    if classes < 1:
        raise OptionError(f"classes={classes} is not an integer ≥ 1", "classes")
    kernels = (3, 3) if depth < 50 else (1, 3, 1)
    stem = nn.Sequential(convolution(3, 64, 7, 2), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages, inputs = [], 64
    for i, blocks in enumerate(IMAGENET_BLOCKS[depth]):
        stages.append(_stage(inputs, 64 * 2**i, blocks, 1 + (i > 0), kernels, norm))
        inputs = 64 * 2**i * (EXPANSION if len(kernels) == 3 else 1)
    return ResNet(stem, stages, nn.Linear(inputs, classes))


class ResNet(nn.Module):
    """Stem, stages of `ResidualBlock`, mean over positions, linear head: (N, 3, H, W) → (N, classes).

    Convolutions and the head are drawn from He's normal distribution, as in the code of arXiv 2003.00152.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Linear) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = head
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, classes) of images ``x`` (N, 3, H, W)."""
        scores: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return scores


class ResidualBlock(nn.Module):
    """relu(residual(x) + shortcut(x)) with one convolution and norm per kernel in ``kernels``, relu between them.

    The first 3×3 convolution carries the stride. The shortcut is the identity, or a normalized 1×1 convolution where
    channels or resolution change.
    """

    def __init__(
        self, inputs: int, channels: int, outputs: int, stride: int, kernels: Sequence[int], norm: NormFactory
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = inputs
        for i, kernel in enumerate(kernels):
            after = outputs if i == len(kernels) - 1 else channels
            step = stride if i == kernels.index(3) else 1
            layers += [convolution(before, after, kernel, step), norm(after), nn.ReLU()]
            before = after
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations (N, outputs, H/stride, W/stride) of ``x`` (N, inputs, H, W)."""
        summed: Tensor = self.residual(x) + self.shortcut(x)
        return summed.relu()


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps the resolution."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _stage(
    inputs: int, channels: int, blocks: int, stride: int, kernels: Sequence[int], norm: NormFactory
) -> nn.Sequential:
    outputs = channels * (EXPANSION if len(kernels) == 3 else 1)
    first = ResidualBlock(inputs, channels, outputs, stride, kernels, norm)
    rest = (ResidualBlock(outputs, channels, outputs, 1, kernels, norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
