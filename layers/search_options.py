"""The options of the dynamic sparse graph beside those of its convolution. Data, as cards are."""

from __future__ import annotations

from layers.option import Option

SPARSE_GRAPH = (
    Option(
        name="sparsity",
        type=float,
        default=0.5,
        ge=0,
        lt=1,
        help="γ, share of the outputs that is masked; 0 keeps all, without a search",
        source="the paper, whose loss is negligible below 0.6",
    ),
    Option(
        name="selection",
        type=str,
        default="oracle",
        choices=("oracle", "drs", "random"),
        help="what is searched: the outputs themselves, their projections, or random numbers",
        source="ours: drs, the paper's, costs one more convolution",
    ),
    Option(
        name="threshold",
        type=str,
        default="first",
        choices=("first", "each"),
        help="θ is that of sample 0 for all samples, or each sample's own",
        source="first: the paper",
    ),
    Option(
        name="k",
        type=int,
        default=None,
        optional=True,
        ge=1,
        help="columns of R, at most I; none: 4 ln O / (ε²/2 − ε³/3) for ε = eps_jl",
    ),
    Option(
        name="eps_jl",
        type=float,
        default=0.5,
        gt=0,
        lt=1,
        help="ε of the Johnson-Lindenstrauss bound that gives k",
        source="public code",
    ),
    Option(name="s", type=float, default=3.0, ge=1, help="a share of 1/s of R is not 0", source="the paper"),
    Option(
        name="project_every",
        type=int,
        default=50,
        ge=1,
        help="training steps from one projection of W to the next; the first projects",
        source="the paper",
    ),
    Option(
        name="eps",
        type=float,
        default=1e-3,
        gt=0,
        help="added to the variance of the batch normalization, inside the root",
        source="public code",
    ),
)
