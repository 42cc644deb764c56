"""What the cards of convolutions share: options, symbols, rules, workspaces. Data, as cards are."""

from __future__ import annotations

from layers.card import Claim, Flops, Option, Peer, Rule

# Options, symbols and rules of every two-dimensional convolution: those of torch.nn.Conv2d; WINDOWED, what those have
# too that know no groups, no bias and no padding but by zeros. I is the number of weights of one output channel, HO×WO
# the positions of the output, Q those of all samples, P the elements of the padded input, kept those of it and of the
# input that torch keeps for backward, unpad its additions there to undo the padding.
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
# Of the algorithms: definition, backward of those that lower x to patches, and the one row of the invariance table.
ALGORITHM_FLOPS = Flops("2*Q*O*I + (Q*O if bias else 0)", "4*Q*O*I + (Q*O - O if bias else 0)")
LOWERED_FLOPS = Flops(
    "2*Q*O*I + (Q*O if bias else 0)",
    "4*Q*O*I + O*I*together + (Q*O - O if bias else 0) + (0 if pointwise else N*C*met) + unpad",
)
ALGORITHM_CLAIMS = (Claim(holds=(), why="It is a convolution: no scale and no shift of weights or data goes unseen."),)
# Of the algorithms, whose workspace is stated for zeros as padding: HP×WP is the padded input, HG×WG what the algorithm
# is given, met the elements of all windows that are no padding. In bytes: packed, filters with their axes in another
# order; turned and turned_back, input and output as they change between channels-first and channels-last. The gradients
# of those that lower take images together, of up to 2²¹ numbers.
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
    "columns": "max(1, C*KH*KW*HO*WO)",
    "together": "(N + max(1, 2097152 // columns) - 1) // max(1, 2097152 // columns)",
    "met": "inside(HG, KH, axis(stride, 0), 0 if HG > H else axis(padding, 0), axis(dilation, 0)) * "
    "inside(WG, KW, axis(stride, 1), 0 if WG > W else axis(padding, 1), axis(dilation, 1))",
}
# Of those among them that go tap by tap: packed has the order of taps, and the gradients skip what meets padding. Of
# those that make partial results, kn2row and kn2col: made are the taps they multiply by, partial the bytes they need.
TAPS = Option(
    name="taps",
    type=str,
    default="all",
    choices=("all", "one"),
    help="multiply by all taps at once, or add up one after the other",
    source="one: arXiv 1709.03395",
)
TAPWISE_SYMBOLS = {**ALGORITHM_SYMBOLS, "packed": "O*I*B if KH*KW > 1 and O*C > groups*groups else 0"}
PARTIAL_SYMBOLS = {
    **TAPWISE_SYMBOLS,
    "made": "KH*KW if taps == 'all' else meeting(HG, KH, axis(stride, 0), 0 if HG > H else axis(padding, 0), "
    "axis(dilation, 0))*meeting(WG, KW, axis(stride, 1), 0 if WG > W else axis(padding, 1), axis(dilation, 1))",
    "partial": "0 if pointwise else (KH*KW if taps == 'all' else 1)*O*HG*WG*B",
}
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
WINDOWED_PEER = Peer(
    "torch.nn:Conv2d",
    {
        "in_channels": "C",
        "out_channels": "O",
        "kernel_size": "kernel_size",
        "stride": "stride",
        "padding": "padding",
        "dilation": "dilation",
        "bias": "False",
    },
    same=False,
)
ALGORITHM_PEER = Peer("torch.nn:Conv2d", _LIKE_TORCH)
