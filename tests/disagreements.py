"""Layers about which counters of operations disagree: kernels, the same by hand, by functions, and decompositions."""

import torch
from torch import nn
from torch.nn import functional as F


class NormByHand(nn.Module):
    def __init__(self, groups=4):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        grouped = x.reshape(x.shape[0], self.groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        return (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)


class FunctionalConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight, padding=1)


class WeightNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3))

    def forward(self, x):
        return self.conv(x)


class StandardizedConv(nn.Conv2d):
    def __init__(self):
        super().__init__(8, 6, 3)

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias)


class Unfolded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 72))

    def forward(self, x):
        return self.weight @ F.unfold(x, 3, padding=1)


class BilinearEinsum(nn.Module):
    def forward(self, x):
        return torch.einsum("nchw,ndhw->ncd", x, x)


class BilinearProduct(nn.Module):
    def forward(self, x):
        flat = x.flatten(2)
        return flat @ flat.mT


class BilinearBmm(nn.Module):
    def forward(self, x):
        flat = x.flatten(2)
        return torch.bmm(flat, flat.mT)


class NewtonSchulz(nn.Module):
    def forward(self, x):
        flat = x.flatten(2)
        y = torch.bmm(flat, flat.mT) / flat.shape[-1]
        y = y / y.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
        z = eye = torch.eye(y.shape[-1]).expand_as(y)
        for _ in range(3):
            t = (3 * eye - torch.bmm(z, y)) / 2
            y, z = torch.bmm(y, t), torch.bmm(t, z)
        return y


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x))


class Vectors(nn.Module):
    """mv, dot and addmv."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 64))

    def forward(self, x):
        v = x.flatten(1)[0, :64]
        return torch.addmv(torch.mv(self.weight, v), self.weight, v) * torch.dot(v, v)


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).mT[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


class FusedAttention(nn.Module):
    """Attention by one kernel, which has no formula in any table."""

    def forward(self, x):
        tokens = x.flatten(2).mT[:, None].contiguous()
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


class Pyramid(nn.Module):
    def forward(self, x):
        return torch.cat([F.adaptive_max_pool2d(x, size).flatten(1) for size in (1, 2, 3)], 1)


class Decomposed(nn.Module):
    """eigh, svd, inv and solve of a covariance."""

    def __init__(self, how="eigh"):
        super().__init__()
        self.how = how

    def forward(self, x):
        flat = x.flatten(2)
        c = torch.bmm(flat, flat.mT) + torch.eye(flat.shape[1])
        if self.how == "solve":
            return torch.linalg.solve(c, flat)
        found = getattr(torch.linalg, self.how)(c)
        return found if self.how == "inv" else found[1]


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).abs()


_OF_TORCH = [
    ("torch.nn:GroupNorm", {"num_groups": 4}),
    ("torch.nn:LayerNorm", {"normalized_shape": 6}),
    ("torch.nn:BatchNorm2d", {}),
    ("torch.nn:InstanceNorm2d", {}),
    ("torch.nn:InstanceNorm2d", {"affine": True}),
    ("torch.nn:RMSNorm", {"normalized_shape": 6}),
    ("torch.nn:Conv2d", {"out_channels": 6, "kernel_size": 3}),
    ("torch.nn:Conv2d", {"out_channels": 8, "kernel_size": 3, "groups": 8}),
    ("torch.nn:PixelShuffle", {"upscale_factor": 2}),
    ("torch.nn:UpsamplingBilinear2d", {"scale_factor": 2}),
    ("torch.nn:AvgPool2d", {"kernel_size": 2}),
    ("torch.nn:ReLU", {}),
]
_OURS = (
    NormByHand,
    FunctionalConv,
    WeightNormed,
    StandardizedConv,
    Unfolded,
    BilinearEinsum,
    BilinearProduct,
    BilinearBmm,
    NewtonSchulz,
    Shared,
    Vectors,
    Attention,
    FusedAttention,
    Pyramid,
    Fourier,
)
_HOW = ("eigh", "svd", "inv", "solve")
CASES = [
    *_OF_TORCH,
    *((f"disagreements:{layer.__name__}", {}) for layer in _OURS),
    *(("disagreements:Decomposed", {"how": how}) for how in _HOW),
]
# What has no formula here, and is named: then the count is a lower bound.
UNCOUNTED = {
    "FusedAttention": {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    },
    "Fourier": {"_fft_r2c", "_fft_c2c"},
    "inv": {"linalg_inv_ex"},
    "solve": {"_linalg_solve_ex", "linalg_lu_solve"},
}
