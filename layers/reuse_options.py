"""The options of ReSprop, and what reading notes, paper and public code say of it. Data, as cards are."""

from __future__ import annotations

from layers.card import Option

REUSE = (
    Option(
        name="reuse_sparsity",
        type=float,
        default=0.9,
        ge=0,
        lt=1,
        help="share of the gradients that is reused; 0 is the plain convolution",
        source="the paper's headline",
    ),
    Option(
        name="threshold_init",
        type=float,
        default=1e-7,
        gt=0,
        help="τ of the first step, scaled as gradients are",
        source="the authors' code",
    ),
    Option(
        name="factor",
        type=float,
        default=2.0,
        gt=1,
        help="that τ is multiplied or divided by after each step",
        source="the authors' code",
    ),
    Option(
        name="margin",
        type=float,
        default=0.0,
        ge=0,
        lt=1,
        help="added to the density 1 − reuse_sparsity",
        source="ours: the authors' code adds 0.05",
    ),
    Option(
        name="epoch",
        type=int,
        default=None,
        optional=True,
        ge=1,
        help="steps of an epoch, whose first and last are dense, and which warmup counts in; none: neither",
    ),
    Option(
        name="warmup",
        type=bool,
        default=False,
        help="W-ReSprop: density 1 in epochs 0 and 1, then 1 − e/10 down to the final one",
    ),
    Option(
        name="structure",
        type=str,
        default="element",
        choices=("element", "sample", "channel"),
        help="what is kept: single elements by τ, or the share of samples, or of output channels, of largest "
        "Σ|G − h|, which is faster",
        source="the paper's: element",
    ),
    Option(name="sample_seed", type=int, default=0, ge=0, help="decides which samples are remembered"),
)
REUSE_NOTES = (
    "The notes' “learning rate warm up” of W-ReSprop is of the reuse SPARSITY: density 1, then less and less over "
    "the first epochs. The authors' main.py also changes the rate, the other way: 4 times the base rate in epochs "
    "0 to 6, then 0.1^(epoch // 30). RS, “reuse strategy”, reads reuse sparsity.",
    "Angles, the notes' figure 2: 37.07° = arccos √(2/π) is the angle of a Gaussian vector of many elements to its "
    "SIGN vector, and of one to its largest 19–20 %. Keeping the largest 50, 30, 20, 10, 5, 1 % gives 15.5, 27.7, "
    "36.3, 48.5, 58.1, 73.1°. It says “far from orthogonal”, and is not what reuse gives.",
    "One sample of the step before is at 82 to 92° from the gradients of this one, on average, at steps 2, 50 and 300 "
    "of a small network of ours: practically orthogonal, though in an easy problem those of its own class are at 20 to "
    "50°. Random vectors of d elements are 90° ± 57.3°/√d apart. What makes Ĝ like G is M: keeping 10 % gives 11 to "
    "59°; the largest 10 % of G alone give 7 to 46°, closer.",
    "“10× fewer operations, 2.7× faster”, the abstract's, is Amdahl's law with f = 0.6996 of the time in backward "
    "convolutions: 1/((1 − f) + f/10), without the 1/N for h; with f = 2/3 it is 2.5×. Its 8.0× and 7.2× are those "
    "of a simulated accelerator, not of a GPU.",
    "The authors' `--sparsity 10`, called reuse-sparsity, is the share that is KEPT, and 5 points are added: about "
    "85 % are reused. Here reuse_sparsity is the share reused, margin=0.05 their points.",
    "Their τ, asked for density 1, is halved in every step once a single G equals h: after 127 halvings it is 0 in "
    "float32, and 0·2 = 0 for ever. Here it is threshold_init · factor^n, within 1e-30 … 1e30, and stays where "
    "density 1 is asked for.",
    "τ never settles: steps by 2 oscillate about the target (2 to 21 % for 10 %). It is absolute: scaling the loss "
    "by c takes log2(c) steps. With a gradient scaler call forget() when the scale has changed, or h is too large.",
    "Which sample is remembered is no draw of a generator but an equidistributed sequence of the seed and the "
    "number of the step: nothing of torch's random state is used and a resumed training goes on bit by bit.",
    "The authors keep h, τ and the epoch in globals, one set per GPU (at most 8), lost on resume; they index h by "
    "randint(1, number of LAYERS − 1), so sample 0 is never reused and small batches raise IndexError.",
    "Under DDP rank 0's buffers are everybody's, as always; `keep_local(model)` before wrapping leaves each rank "
    "its own, as published.",
    "A layer used twice in a graph has one h: both uses read that of before, the one that goes back last is kept.",
    "Accuracy: in 400 steps of a small network dense had 57–70 %, ReSprop at density 0.3 29–36 %, at 0.1 18–21 %.",
)
