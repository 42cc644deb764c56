"""What the cards of several stones share, so that it is spelt, bounded and explained alike. Data, as cards are."""

from __future__ import annotations

from layers.card import Option, Rule
from layers.convolution_options import ALGORITHM_CLAIMS as ALGORITHM_CLAIMS
from layers.convolution_options import ALGORITHM_FLOPS as ALGORITHM_FLOPS
from layers.convolution_options import ALGORITHM_PEER as ALGORITHM_PEER
from layers.convolution_options import ALGORITHM_SYMBOLS as ALGORITHM_SYMBOLS
from layers.convolution_options import CONVOLUTION as CONVOLUTION
from layers.convolution_options import CONVOLUTION_PEER as CONVOLUTION_PEER
from layers.convolution_options import CONVOLUTION_RULES as CONVOLUTION_RULES
from layers.convolution_options import CONVOLUTION_SYMBOLS as CONVOLUTION_SYMBOLS
from layers.convolution_options import CONVOLUTION_TRAFFIC as CONVOLUTION_TRAFFIC
from layers.convolution_options import LOWERED_FLOPS as LOWERED_FLOPS
from layers.convolution_options import PARTIAL_SYMBOLS as PARTIAL_SYMBOLS
from layers.convolution_options import TAPS as TAPS
from layers.convolution_options import TAPWISE_BACKWARD as TAPWISE_BACKWARD
from layers.convolution_options import TAPWISE_SYMBOLS as TAPWISE_SYMBOLS
from layers.convolution_options import WINDOWED as WINDOWED
from layers.convolution_options import WINDOWED_PEER as WINDOWED_PEER
from layers.convolution_options import WINDOWED_RULES as WINDOWED_RULES
from layers.convolution_options import WINDOWED_SYMBOLS as WINDOWED_SYMBOLS
from layers.elementwise_options import ADABOUND as ADABOUND
from layers.elementwise_options import ADABOUND_IDENTITIES as ADABOUND_IDENTITIES
from layers.elementwise_options import ADABOUND_NOTES as ADABOUND_NOTES
from layers.elementwise_options import ADABOUND_RULES as ADABOUND_RULES
from layers.elementwise_options import ADAX as ADAX
from layers.elementwise_options import ADAX_FORMS as ADAX_FORMS
from layers.elementwise_options import ADAX_IDENTITIES as ADAX_IDENTITIES
from layers.elementwise_options import ADAX_NOTES as ADAX_NOTES
from layers.elementwise_options import ADAX_RACES as ADAX_RACES
from layers.elementwise_options import BETA1 as BETA1
from layers.elementwise_options import ELEMENTWISE as ELEMENTWISE
from layers.grassmann_options import GRASSMANN as GRASSMANN
from layers.grassmann_options import GRASSMANN_IDENTITIES as GRASSMANN_IDENTITIES
from layers.grassmann_options import GRASSMANN_NOTES as GRASSMANN_NOTES
from layers.grassmann_options import GRASSMANN_RULES as GRASSMANN_RULES
from layers.pyramid import PYRAMID_SYMBOLS as PYRAMID_SYMBOLS
from layers.reuse_options import REUSE as REUSE
from layers.reuse_options import REUSE_NOTES as REUSE_NOTES
from layers.search_options import SPARSE_GRAPH as SPARSE_GRAPH
from layers.sparse_options import KEPT as KEPT
from layers.sparse_options import KEPT_RULES as KEPT_RULES
from layers.sparse_options import KEPT_SYMBOLS as KEPT_SYMBOLS

# Sentences that many stones share.
FOLDED = (
    "The definition centres, scales and shifts each element; here γ, β and the statistics are folded into one scale "
    "and one shift per plane, so that forward and backward take 7 operations per element, plus those on N×C numbers."
)

LOOKED_AT = (
    "look: on maps of 2048 positions and more 3 operations per statistic tell whether a mean is far above the spread; "
    "then the data are normalized again less their means, since sums of them would keep few digits."
)
FOLDED_UNLESS_SMALL = (
    "Up to 2¹⁸ elements torch's kernels take the moments, apply them, and do the backward of the definition. Above, γ, "
    "β and the statistics are folded into one scale and one shift per channel or plane, so that forward and backward "
    "take 7 operations per element, plus those on N×C numbers."
)

FILTERS = (
    "Beside the convolution the definition is a few operations per weight; here a filter takes 4 to 7 per weight "
    "forward, its mean and variance or its length and what is made of them, and 7 backward, plus those on O numbers. "
    "fvcore counts the convolution, by one per multiply-add, and what its handles know of the rest."
)

POSITION_PASSES = (
    "The data are first shifted by their own first channel, so that a large mean costs no digits; backward "
    "standardizes again instead of keeping y. Rows take kernels that count a little otherwise."
)

# How the norms of one position take an input.
POSITION_SYMBOLS = {"rows": "1 if nhwc or S == 1 or C == 1 else 0"}

# Options that many stones share, so that they are spelt, bounded and explained alike.
EPS = Option(name="eps", type=float, default=1e-5, gt=0, help="added to the variance, inside the root")
AFFINE = Option(name="affine", type=bool, default=True, help="learn γ (weight) and β (bias) per channel")
MOMENTUM = Option(
    name="momentum",
    type=float,
    default=0.1,
    ge=0,
    le=1,
    optional=True,
    help="weight of the new value in the running statistics; none averages all batches alike",
    source="torch.nn",
)
SLOW_MOMENTUM = Option(
    name="momentum",
    type=float,
    default=0.01,
    ge=0,
    le=1,
    optional=True,
    help="weight of the new value in the running statistics; none averages all batches alike",
    source="the authors' code, which keeps 0.99 of the old value",
)
ALPHA = Option(
    name="alpha",
    type=float,
    default=0.0,
    ge=0,
    le=1,
    help="share of the example's own statistics in evaluation; 0 takes the running ones alone",
    source="the authors' code",
)
GROUPS = Option(
    name="groups", type=int, default=32, ge=1, help="groups of channels, in order", source="Wu & He 2018, section 4"
)
CHANNELS_PER_GROUP = Option(
    name="channels_per_group",
    type=int,
    default=None,
    optional=True,
    ge=1,
    help="K, instead of groups = C/K",
    source="Wu & He 2018, table 4",
)
GROUPS_DIVIDE = Rule(
    "C % G == 0",
    "groups={G} does not divide {C} channels: {C} channels divide into {divisors_of_C} groups",
    "groups",
)
GROUPS_OF = "groups if channels_per_group is None else max(1, C // channels_per_group)"
K_DIVIDES = Rule(
    "channels_per_group is None or C % channels_per_group == 0",
    "channels_per_group={channels_per_group} does not divide {C} channels; its divisors are {divisors_of_C}",
    "channels_per_group",
)
K_ALONE = Rule(
    "channels_per_group is None or groups == 32 or groups * channels_per_group == C",
    "groups={groups} and channels_per_group={channels_per_group} contradict each other for {C} channels; give one",
    "channels_per_group",
)

# Upsampling by channels that become positions.
SCALE = Option(
    name="scale", type=int, default=2, ge=1, help="r, rows and columns of the output for one of the input; 1 keeps it"
)
ORDER = Option(
    name="order",
    type=str,
    default="crd",
    choices=("crd", "dcr"),
    help="of the scale² channels of an output channel: one after the other (crd), or every O-th (dcr)",
    source="torch.nn.PixelShuffle; ONNX's and TensorFlow's default is dcr",
)
POSITIONS_NEEDED = Rule("H >= 1 and W >= 1", "a convolution needs at least 1 position, the input has {H}×{W}")

# Of pooling modules.
POOLED_POSITIONS = Rule("H >= 1 and W >= 1", "pooling needs at least 1 position, the input has {H}×{W}")
ALIGN_CORNERS = Option(
    name="align_corners",
    type=bool,
    default=True,
    help="corner pixels of a grid lie on those of the map",
    source="the authors' code",
)

# Rows of the invariance table that several stones have. That of batch normalization comes back wherever channels are
# standardized over a batch, that of instance normalization where each plane is standardized by itself (convolutions
# only: on a linear layer a plane is one value), the third where the channels of each position are.
BN_ROW = (
    "w-scale",
    "w-vec-scale",
    "x-scale",
    "x-recenter@linear,conv",
    "w-scale-group",
    "x-recenter-scalar@linear,conv",
    "x-recenter-image@linear",
    "pre-bias",
    "pre-bias-common",
)
IN_ROW = (
    "w-scale",
    "w-vec-scale",
    "x-scale",
    "x-recenter@conv",
    "case-scale",
    "w-scale-group",
    "x-recenter-scalar@conv",
    "cases-scale",
    "ghost-scale",
    "case-recenter@conv",
    "pre-bias",
    "pre-bias-common",
)
POSITION_ROW = (
    "w-scale",
    "w-recenter",
    "x-scale",
    "case-scale",
    "w-recenter-scalar",
    "cases-scale",
    "ghost-scale",
    "pre-bias-common",
)
