"""What docs/performance.md measures: stones at three sizes in five circumstances, and what they stand beside."""

from __future__ import annotations

from dataclasses import replace

from layers.card import OptionError
from profiles.errors import Refusal
from profiles.speed.cases import case, peer_of
from profiles.subject import Setup, subject

LAYERS = {"32x64x56x56": (32, 64, 56, 56), "8x512x7x7": (8, 512, 7, 7), "1x512x7x7": (1, 512, 7, 7)}
ROWS = {"512x1024": (512, 1024), "64x1024": (64, 1024), "8x1024": (8, 1024)}  # of layers without positions
WEIGHTS = {"64x64x3x3": (64, 64, 3, 3), "512x512x3x3": (512, 512, 3, 3), "1000x512": (1000, 512)}
STEPS = {"1 × 10M": (1000, 10_000), "200 × 50k": (50, 1000)}
IMAGES = {"64x3x32x32": (64, 3, 32, 32), "16x3x224x224": (16, 3, 224, 224)}
VARIANTS = {
    "": {},
    "channels_last": {"memory_format": "channels_last"},
    "bfloat16": {"dtype": "bfloat16"},
    "2 threads": {"threads": 2},
    "compiled": {"compile": True},
}
DIRECTIONS = ("forward", "backward")
# The defaults, a scale of 8 and 20 factors, take seconds for a call at the largest size.
OPTIONS = {"duc": {"scale": 2}, "factorized-bilinear": {"num_factors": 4, "padding": 1}}
# Beside what a stone without a peer of its own stands, by its name or its kind: what is trained in its place.
OTHERWISE = {
    "norm": "torch.nn:BatchNorm2d",
    "sgd-g": "torch.optim:SGD:momentum=0.9",
    "adam-g": "torch.optim:Adam:foreach=true",
}
# What gives the same outputs: torch's, or what one would write with torch.
SAME = {
    "actnorm": "otherwise_norms:ActNorm",
    "adanorm": "otherwise_norms:AdaNorm",
    "batch-renorm": "otherwise_norms:BatchRenorm",
    "bcn": "otherwise_norms:BCN",
    "bilinear": "otherwise:Bilinear",
    "bn-gn": "otherwise_norms:BNGN",
    "cen-conv": "otherwise_norms:CenConv",
    "drconv": "otherwise:DRConv",
    "ghost-bn": "otherwise_norms:GhostBN",
    "hdc": "otherwise:HDC",
    "icnr": "otherwise:icnr_",
    "iew": "torch.nn:BatchNorm2d",
    "mean-only-bn": "otherwise_norms:MeanOnlyBN",
    "mixed-pooling": "otherwise:MixedPooling",
    "mpn-cov": "otherwise:MPNCOV",
    "normalized-conv": "otherwise:NormalizedConv",
    "omd": "otherwise:omd",
    "orthogonal": "torch.nn.init:orthogonal_",
    "pixel-norm": "otherwise_norms:PixelNorm",
    "pono": "otherwise_norms:PONO",
    "ppm": "otherwise:PPM",
    "scaled-ws": "otherwise_norms:ScaledWS",
    "shifted-l2": "otherwise:shifted_l2",
    "split-merge": "otherwise:SplitMerge",
    "spp": "otherwise:SPP",
    "strip-pooling": "otherwise:StripPooling",
    "svb": "otherwise:svb",
    "weight-norm": "otherwise_norms:WeightNorm",
    "weight-standardization": "otherwise_norms:WeightStandardization",
}


def sizes(stone):
    """The inputs that a stone is measured on."""
    if stone.card.role == "optimizer":
        return STEPS
    if stone.card.role == "augmentation":
        return IMAGES
    if stone.card.works_on_weights:
        return WEIGHTS
    return LAYERS if 4 in stone.card.ranks else ROWS


def settings(stone, size, shape, variant):
    """Setup and the rest of one row's variant, None where it makes no sense."""
    changed = dict(VARIANTS[variant])
    on_weight, on_images = stone.card.works_on_weights, stone.card.role == "augmentation"
    if (on_weight or on_images) and variant in ("channels_last", "bfloat16", "compiled"):
        return None
    if variant == "channels_last" and len(shape) < 4:
        return None
    running = {key: changed.pop(key) for key in ("threads", "compile") if key in changed}
    return Setup(shape=shape, tensors=200 if size.startswith("200") else 1, **changed), running


def options_of(stone):
    """The options that a stone is measured with where they are not its defaults."""
    names = {option.name for option in stone.card.options}
    return OPTIONS.get(stone.name) or ({"padding": 1} if {"padding", "kernel_size"} <= names else {})


def wanted(stone):
    """Size, variant, what to run and how, and where the stone refuses it why, for every row that makes sense."""
    for size, shape in sizes(stone).items():
        for variant in VARIANTS:
            found = settings(stone, size, shape, variant)
            if found is None:
                continue
            setup, running = found
            try:
                yield size, variant, subject(stone, options_of(stone), setup), running, ""
            except (OptionError, Refusal) as error:
                yield size, variant, None, running, str(error)


def cases(stone):
    """All cases of a stone, with what they are: size, variant, direction."""
    for size, variant, what, running, refusal in wanted(stone):
        if refusal:
            continue  # the page names it
        for direction in DIRECTIONS if what.has_backward else DIRECTIONS[:1]:
            label = f"{stone.name} {size} {variant}".strip()
            yield size, variant, replace(case(what, direction, label=label, vs=beside(stone, what)), **running)


def beside(stone, what):
    """What a stone stands beside: its peer, or what one would train in its place; and what gives the same outputs."""
    usual = "peer" if peer_of(what) else OTHERWISE.get(stone.name) or OTHERWISE.get(stone.kind)
    return [name for name in dict.fromkeys((usual, SAME.get(stone.name))) if name]


def is_same(stone, name):
    """Whether the reference ``name`` gives the outputs of the stone."""
    peer = stone.card.peer
    return name == SAME.get(stone.name) or (peer is not None and peer.same and name == peer.target.format(d=2))
