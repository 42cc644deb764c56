"""What the cards of several stones share, so that it is spelt, bounded and explained alike. Data, as cards are."""

from __future__ import annotations

from layers.card import Option, Rule

# Sentences that many stones share.
FOLDED = (
    "The definition centres, scales and shifts each element; here γ, β and the statistics are folded into one scale "
    "and one shift per plane, so that forward and backward take 7 operations per element, plus those on N×C numbers."
)

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
