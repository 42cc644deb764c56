"""What the cards of several stones share, so that it is spelt, bounded and explained alike. Data, as cards are."""

from __future__ import annotations

from layers.card import Flops, Identity, Option, Peer, Rule
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
from layers.pyramid import PYRAMID_SYMBOLS as PYRAMID_SYMBOLS
from layers.search_options import SPARSE_GRAPH as SPARSE_GRAPH
from layers.sparse_options import KEPT as KEPT
from layers.sparse_options import KEPT_RULES as KEPT_RULES
from layers.sparse_options import KEPT_SYMBOLS as KEPT_SYMBOLS

# Sentences that many stones share.
FOLDED = (
    "The definition centres, scales and shifts each element; here γ, β and the statistics are folded into one scale "
    "and one shift per plane, so that forward and backward take 7 operations per element, plus those on N×C numbers."
)

FILTERS = (
    "Beside the convolution the definition is a few operations per weight; here the moments of a filter take 5 and one "
    "multiply-add per weight 2, forward, and 7 again backward, plus those on O numbers. fvcore counts the convolution, "
    "by one per multiply-add, and what its handles know of the rest."
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

# Options, symbols and rules of every two-dimensional convolution: those of torch.nn.Conv2d; WINDOWED, what those have
# too that know no groups, no bias and no padding but by zeros. I is the number of weights
# of one output channel, HO×WO the positions of the output, Q those of all samples, P the elements of the padded input,
# kept those of it and of the input that torch keeps for backward, unpad its additions there to undo the padding.
WINDOWED = (
    Option(
        name="out_channels", type=int, default=None, optional=True, ge=1, help="output channels; none: as many as in"
    ),
    Option(name="kernel_size", type=int, default=3, axes=2, ge=1, help="height and width of the kernel"),
    Option(name="stride", type=int, default=1, axes=2, ge=1, help="step between windows"),
    Option(name="padding", type=int, default=0, axes=2, ge=0, help="added on each side", source="torch.nn"),
    Option(name="dilation", type=int, default=1, axes=2, ge=1, help="step between the elements of a window"),
)
CONVOLUTION = (
    *WINDOWED,
    Option(name="groups", type=int, default=1, ge=1, help="groups of channels that are convolved by themselves"),
    Option(name="bias", type=bool, default=True, help="learn a bias per output channel", source="torch.nn"),
    Option(
        name="padding_mode",
        type=str,
        default="zeros",
        choices=("zeros", "reflect", "replicate", "circular"),
        help="what is added",
        source="torch.nn",
    ),
)
WINDOWED_SYMBOLS = {
    "O": "C if out_channels is None else out_channels",
    "KH": "axis(kernel_size, 0)",
    "KW": "axis(kernel_size, 1)",
    "HO": "(H + 2*axis(padding, 0) - axis(dilation, 0)*(KH - 1) - 1) // axis(stride, 0) + 1",
    "WO": "(W + 2*axis(padding, 1) - axis(dilation, 1)*(KW - 1) - 1) // axis(stride, 1) + 1",
    "Q": "N*HO*WO",
}
CONVOLUTION_SYMBOLS = {
    **WINDOWED_SYMBOLS,
    "I": "C // groups * KH * KW",
    "P": "N*C*(H + 2*axis(padding, 0))*(W + 2*axis(padding, 1))",
    "kept": "E if padding_mode == 'zeros' else P if padding_mode == 'circular' else E + P",
    "unpad": "0 if padding_mode == 'zeros' else "
    "2*P*((axis(padding, 0) > 0) + (axis(padding, 1) > 0)) if padding_mode == 'circular' else P - E",
}
WINDOWED_RULES = (
    Rule("H >= 1 and W >= 1", "a convolution needs at least 1 position, the input has {H}×{W}"),
    Rule(
        "HO >= 1 and WO >= 1",
        "kernel_size={kernel_size} with dilation={dilation} is larger than the input of {H}×{W} with padding={padding}",
        "kernel_size",
    ),
)
CONVOLUTION_RULES = (
    Rule("C % groups == 0", "groups={groups} does not divide {C} channels; its divisors are {divisors_of_C}", "groups"),
    Rule(
        "O % groups == 0",
        "groups={groups} does not divide out_channels={O}; its divisors are {divisors_of_O}",
        "out_channels",
    ),
    *WINDOWED_RULES,
    Rule(
        "padding_mode != 'reflect' or H > axis(padding, 0) and W > axis(padding, 1)",
        "padding_mode=reflect needs padding={padding} smaller than the input of {H}×{W}",
        "padding",
    ),
    Rule(
        "padding_mode != 'circular' or H >= axis(padding, 0) and W >= axis(padding, 1)",
        "padding_mode=circular needs padding={padding} no larger than the input of {H}×{W}",
        "padding",
    ),
)
# Of the algorithms, whose workspace is stated for zeros as padding: HP×WP is the padded input, HG×WG what the algorithm
# is given, met the elements of all windows that are no padding. In bytes: packed, filters with their axes in another
# order; turned and turned_back, input and output as they change between channels-first and channels-last.
ALGORITHM_SYMBOLS = {
    **CONVOLUTION_SYMBOLS,
    "HP": "H + 2*axis(padding, 0)",
    "WP": "W + 2*axis(padding, 1)",
    "zeros": "1 if padding_mode == 'zeros' and (HP > H or WP > W) else 0",
    "HG": "H if padding_mode == 'zeros' else HP",
    "WG": "W if padding_mode == 'zeros' else WP",
    "pointwise": "1 if KH*KW == 1 and axis(stride, 0)*axis(stride, 1) == 1 and zeros == 0 else 0",
    "turned": "E*B if C > 1 and S > 1 else 0",
    "turned_back": "Q*O*B if O > 1 and HO*WO > 1 else 0",
    "packed": "O*I*B if KH*KW > 1 and C > groups else 0",
    "met": "inside(HG, KH, axis(stride, 0), 0 if HG > H else axis(padding, 0), axis(dilation, 0)) * "
    "inside(WG, KW, axis(stride, 1), 0 if WG > W else axis(padding, 1), axis(dilation, 1))",
}
# Of those among them that go tap by tap: packed has the order of taps, and the gradients skip what meets padding.
TAPS = Option(
    name="taps",
    type=str,
    default="all",
    choices=("all", "one"),
    help="multiply by all taps at once, or add up one after the other",
    source="one: arXiv 1709.03395",
)
TAPWISE_SYMBOLS = {**ALGORITHM_SYMBOLS, "packed": "O*I*B if KH*KW > 1 and O*C > groups*groups else 0"}
TAPWISE_BACKWARD = "4*N*met*O*(C // groups) + N*met*C + (Q*O - O if bias else 0) + unpad"
CONVOLUTION_TRAFFIC = Flops("B*(E + O*I + Q*O)", "B*(2*E + 2*O*I + Q*O)")
_LIKE_TORCH = {
    "in_channels": "C",
    "out_channels": "O",
    "kernel_size": "kernel_size",
    "stride": "stride",
    "padding": "padding",
    "dilation": "dilation",
    "groups": "groups",
    "bias": "bias",
    "padding_mode": "padding_mode",
}
CONVOLUTION_PEER = Peer("torch.nn:Conv2d", _LIKE_TORCH, same=False)
ALGORITHM_PEER = Peer("torch.nn:Conv2d", _LIKE_TORCH)

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

# What the optimizers on the Grassmannian share. A parameter group may set every option for itself.
GRASSMANN = (
    Option(
        name="grad_clip",
        type=float,
        default=0.1,
        gt=0,
        optional=True,
        help="ν, the longest tangent gradient of a filter; none does not clip",
        source="the authors' code",
    ),
    Option(
        name="omega", type=float, default=0.1, ge=0, help="ω of the penalty ω/2 ‖YYᵀ − 1‖²", source="the authors' code"
    ),
    Option(
        name="groups", type=int, default=1, ge=1, help="groups of the convolutions: filters are orthogonal within one"
    ),
    Option(name="manifold", type=bool, default=True, help="rows are points of G(1, I); false: Nesterov SGD instead"),
    Option(name="weight_decay", type=float, default=0.0, ge=0, help="of Nesterov SGD, where manifold is false"),
    Option(name="maximize", type=bool, default=False, help="climb instead of descending", source="torch.optim"),
    Option(
        name="foreach",
        type=bool,
        default=None,
        optional=True,
        help="join the rows of equal length of several parameters, small ones on the CPU; none does",
        source="torch.optim",
    ),
)
GRASSMANN_RULES = (
    Rule(
        "not manifold or weight_decay == 0",
        "weight_decay={weight_decay}: rows on the Grassmannian have norm 1 and do not decay; set it in the groups with "
        "manifold=False",
        "weight_decay",
    ),
)
GRASSMANN_IDENTITIES = (
    Identity(says="every row has norm 1 after a step", proof="unit_length"),
    Identity(says="the momentum is tangent at its row, ⟨y, τ⟩ = 0", proof="momentum_is_tangent"),
    Identity(says="transport keeps lengths and inner products", proof="transport_keeps_products"),
    Identity(says="transport of d along d (equation 8) is equation 9", proof="transport_of_the_direction"),
    Identity(says="exp_y(d) is ‖d‖ away from y", proof="distance"),
    Identity(says="exp_{−y}(−d) = −exp_y(d): −y is the same point as y", proof="odd"),
    Identity(says="the part of the gradient along a row changes nothing", proof="radial_part"),
    Identity(says="rotating the weights of all rows and gradients rotates the result", proof="rotation"),
    Identity(says="ω is the gradient of ω/2 ‖YYᵀ − 1‖²", proof="penalty"),
    Identity(says="with manifold=False it is torch.optim.SGD with Nesterov's momentum", proof="plain_groups"),
)
GRASSMANN_NOTES = (
    "The constructor of the published code ignores omega: its defaults say 0, so only a parameter group can set it.",
    "The published code adds the gradient of the penalty to p.grad itself, so that a second reader of p.grad sees it.",
    "Its buffers are made in the default dtype on the CPU, 2-d for 4-d parameters, and its unit() adds 1e-8 to the "
    "norm, so that rows have norm 1 to 1e-8 only.",
    "It recreates the optimizer at each drop of the learning rate, which forgets the momentum; here a scheduler keeps "
    "it. Where lr is 0 rows stand still, momentum or not.",
    "Rows move as if the gradient had been taken at p/‖p‖. From other norms the first gradient carries a factor "
    "1/‖p‖: start from unit_rows_.",
    "Where something else changes rows between steps (svb, a decoupled omd), the momentum is no longer tangent and "
    "rows have norm 1 only nearly, until it has decayed: take ω for orthogonality.",
    "Batch normalization is odd in a filter: y and −y are one point of the manifold but not the same function.",
)
