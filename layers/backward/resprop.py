r"""ReSprop, reuse sparsified back propagation: gradients that barely changed are those of the step before (Goli &
Aamodt 2020, CVPR, pp. 1548–1558, doi 10.1109/CVPR42600.2020.00162; details after the authors' code).

The forward is a convolution. Backward, with G = ∂L/∂y (N, O, HO, WO), h (O, HO, WO) the gradient of one sample of the
step before and τ a threshold,
$$\hat G_n = h + M_n \odot (G_n - h),\qquad M_n = [\,|G_n - h| > \tau\,],$$
∂L/∂x and ∂L/∂W are the convolution's for Ĝ, ∂L/∂b is Σ G. Then τ is divided by ``factor`` where fewer elements than the
density 1 − ``reuse_sparsity`` were kept, multiplied by it where more were, and h becomes G_i, i a sample of the batch.
W-ReSprop (``warmup``) asks for the density 1 in epochs 0 and 1, and for 1 − e/10 in epoch e until the final one.

Linearity splits it: the gradients of h are computed once for all samples, 1/N of a dense backward, those of
M ⊙ (G − h) are sparse. On dense kernels single elements save nothing; whole samples or output channels do:
``structure`` keeps those of largest Σ|G − h|, which is our extension, not the paper's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from layers.card import Card, Claim, Flops, Identity, Paper, Rule, Stat
from layers.convolution import Convolution, autocast, options_among
from layers.gemm_convolution import Geometry
from layers.moments import snapshot, wide_dtype
from layers.observe import observe
from layers.resprop_proofs import (
    any_structure,
    everything_new,
    forgotten,
    nothing_new,
    plain_output,
    split,
    whole_bias,
)
from layers.reused import Past, Schedule, bounds, keep_local, reusing
from layers.shared import (
    ALGORITHM_PEER,
    CONVOLUTION,
    CONVOLUTION_RULES,
    CONVOLUTION_SYMBOLS,
    CONVOLUTION_TRAFFIC,
    REUSE,
    REUSE_NOTES,
)
from layers.sparse_backward import is_traced

card = Card(
    title="ReSprop, reuse sparsified back propagation",
    paper=Paper(
        authors="Goli, Aamodt",
        title="ReSprop: Reuse Sparsified Backpropagation",
        year=2020,
        venue="CVPR 2020",
    ),
    impl="ReSpropConv2d",
    formula="y = W * x + b;  Ĝ = h + [|G − h| > τ] (G − h),  h a sample of the previous G",
    summary="A convolution whose backward reuses one sample's gradient of the step before where little has changed.",
    options=(
        *CONVOLUTION,
        *REUSE,
    ),
    derived={
        **CONVOLUTION_SYMBOLS,
        "plain": "1 if reuse_sparsity <= margin else 0",
        "by_element": "1 if structure == 'element' else 0",
        "given": "E if padding_mode == 'zeros' else P",  # other padding is done before
        "HR": "HO if N > 0 else 0",  # remembered: an empty batch is not
        "WR": "WO if N > 0 else 0",
        "some": "max(1, ((1 - reuse_sparsity + margin)*(N if structure == 'sample' else O) + 0.5) // 1)",
    },
    rules=(
        *CONVOLUTION_RULES,
        Rule("not warmup or epoch is not None", "warmup counts epochs: give epoch, the steps of one", "epoch"),
        Rule(
            "epoch is None or structure == 'element'",
            "structure={structure} keeps the same share in every step: leave epoch={epoch} out",
            "structure",
        ),
    ),
    statistics=(Stat("threshold", (), "τ", given="not plain and by_element", help="τ of this step"),),
    buffers=(
        Stat(
            "prev_grad",
            ("O", "HR", "WR"),
            "O×HO×WO",
            given="not plain",
            help="h; no positions before the first step",
        ),
        Stat("exponent", (), given="not plain", help="log of τ/threshold_init to the base factor"),
        Stat("steps", (), given="not plain", help="training steps"),
    ),
    params="O*I + (O if bias else 0)",
    flops=Flops(
        "2*Q*O*I + (Q*O if bias else 0)",
        "(Q*O - O if bias else 0) + (4*Q*O*I if plain else "
        "4*O*I*HO*WO*((1 - reuse_sparsity + margin)*N + 1) + 5*Q*O + E) // 1",
    ),
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + (0 if plain or not by_element else 2)",
        "(Q*O - O if bias else 0) + unpad + (3*O*HO*WO if train and not plain else 0) + "
        "(4*Q*O*I if plain else 4*Q*O*I + 3*Q*O + (7 if warmup else 4) if by_element else "
        "4*O*I*HO*WO + 3*Q*O + O*I + 2*given + (4*some*HO*WO*O*I if structure == 'sample' else "
        "4*Q*I*(some if groups == 1 else O) - given // max(1, N)))",
    ),
    explained="The definition splits the gradients: those of h once for all samples, 4·O·I·HO·WO, and those of the "
    "kept differences. By elements nothing of that is saved here: dense kernels multiply the zeros, the whole dense "
    "backward is executed and the comparison comes on top. Whole samples or channels are split. fvcore counts the "
    "forward, a multiply-add as 1.",
    saved="4*kept + (0 if plain else 4*O*HO*WO + 16)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=(Claim(holds=(), why="The forward is a convolution: no scale and no shift goes unseen."),),
    identities=(
        Identity(says="every output is the convolution's", options={"padding": 1}, proof="plain_output"),
        Identity(says="τ → 0: the dense gradients", options={"threshold_init": 1e-25}, proof="everything_new"),
        Identity(
            says="τ → ∞: ∂L/∂x_n is h's for all n, ∂L/∂W that of (Σ_n x_n, h)",
            options={"threshold_init": 1e25},
            proof="nothing_new",
        ),
        Identity(says="h = 0: G outside |G| > τ set to zero", options={"threshold_init": 0.5}, proof="forgotten"),
        Identity(
            says="gradients of h, once, + gradients of M ⊙ (G − h) = gradients of Ĝ",
            options={"threshold_init": 0.5},
            proof="split",
        ),
        Identity(
            says="samples: Ĝ is G for the most changed ones, h for the others",
            options={"structure": "sample", "reuse_sparsity": 0.6},
            proof="any_structure",
        ),
        Identity(
            says="channels: Ĝ is G for the most changed ones, h for the others",
            options={"structure": "channel", "reuse_sparsity": 0.6},
            proof="any_structure",
        ),
        Identity(says="∂L/∂b is the whole gradient's", options={"threshold_init": 1e25}, proof="whole_bias"),
    ),
    notes=REUSE_NOTES,
    peer=ALGORITHM_PEER,
    caution="By elements, the published rule, dense kernels multiply what is reused like the rest: its speed-up is "
    "that of a simulated accelerator. structure=sample and channel, which save time here, are not the paper's.",
    examples=(
        {"threshold_init": 0.5},
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "threshold_init": 1.0, "factor": 1.5},
        {
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (1, 0),
            "groups": 4,
            "bias": False,
            "reuse_sparsity": 0.3,
            "threshold_init": 0.5,
            "epoch": 2,
            "warmup": True,
        },
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular", "sample_seed": 3},
        {"structure": "sample", "reuse_sparsity": 0.5, "padding": 1},
        {"structure": "channel", "reuse_sparsity": 0.7, "margin": 0.05},
        {"structure": "channel", "groups": 2, "kernel_size": 1},
        {"reuse_sparsity": 0.0},
    ),
    exact_gradient="reuse_sparsity <= margin",
    derivable="reuse_sparsity <= margin",
)


class ReSpropConv2d(Convolution):
    """A convolution (N, C, H, W) → (N, O, HO, WO) with ReSprop's backward.

    Args: those of torch.nn.Conv2d; ``reuse_sparsity`` in [0, 1); ``threshold_init`` > 0; ``factor`` > 1; ``margin`` in
    [0, 1); ``epoch``, steps of one, or None; ``warmup``; ``structure``; ``sample_seed``. Parameters are torch's.
    State, all in the state_dict, so that a resumed training goes on bit by bit; none at density 1: buffers
    ``prev_grad`` h (O, HO, WO), with no positions until the first backward; ``exponent`` (), τ = threshold_init ·
    factor^exponent; ``steps`` (). A backward of a training forward writes them, with what its forward read: going back
    twice, or checkpointing, changes nothing. Evaluation differentiates by the same rule and writes nothing, as does an
    empty batch. Outputs of another size than h take a dense step and start a new h: best
    before compiling, as in compiled code it starts from 0. Nothing waits for the device.
    Raises OptionError for refused options, ValueError for inputs that do not fit, RuntimeError in double backward: the
    published gradient is no function's derivative.
    """

    reuse_sparsity: float
    threshold_init: float
    factor: float
    margin: float
    epoch: int | None
    warmup: bool
    structure: str
    sample_seed: int
    prev_grad: Tensor | None
    exponent: Tensor | None
    steps: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        reuse_sparsity: float = 0.9,
        threshold_init: float = 1e-7,
        factor: float = 2.0,
        margin: float = 0.0,
        epoch: int | None = None,
        warmup: bool = False,
        structure: str = "element",
        sample_seed: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)
        reuses = self.density < 1
        self.register_buffer("prev_grad", self.weight.new_zeros(self.out_channels, 0, 0) if reuses else None)
        for name in ("exponent", "steps"):
            made = torch.zeros((), dtype=torch.long, device=self.weight.device)
            self.register_buffer(name, made if reuses else None)

    @property
    def density(self) -> float:
        """The share of gradients that is to be kept."""
        return 1.0 if self.reuse_sparsity <= self.margin else 1.0 - self.reuse_sparsity + self.margin

    def threshold(self) -> Tensor:
        """Return τ (), in float32 or the wider dtype of the weight; 0 where nothing is reused."""
        if self.exponent is None:
            return self.weight.new_zeros(())
        return self._schedule().threshold(self.exponent, wide_dtype(self.weight.dtype))

    def forget(self) -> None:
        """Drop h, so that the next step is dense: after a change of the loss's scale. τ and the steps stay."""
        if self.prev_grad is not None:
            self.prev_grad.resize_(self.out_channels, 0, 0)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.prev_grad is not None and self.structure == "element":
            observe(threshold=self.threshold())
        if self.prev_grad is None or is_traced() or not torch.is_grad_enabled():
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        x, padding = self.padded(input)
        x, weight, bias = autocast(x, weight, bias)
        geometry = Geometry(self.kernel_size, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]
        positions = geometry.output(*x.shape[2:])
        fits = self.prev_grad.shape[1:] == positions
        if self.training and not fits and len(x):
            self._start(positions)
        return reusing(x, weight, bias, self._past(fits), geometry, self._schedule())

    def _start(self, positions: tuple[int, int]) -> None:
        """Make h, of zeros, the size of the output: the same tensor, which others may hold, but in compiled code.

        There what a graph has made cannot be written by its backward, so that h is 0 after this step.
        """
        assert self.prev_grad is not None
        size = (self.out_channels, *positions)
        if torch.compiler.is_compiling():
            self.prev_grad = self.prev_grad.new_zeros(size)
        else:
            with torch.no_grad():
                self.prev_grad.resize_(size).zero_()

    def _past(self, fits: bool) -> Past:
        """What this step goes by, as copies, and where the next is to be written in training."""
        assert self.prev_grad is not None
        assert self.exponent is not None
        assert self.steps is not None
        kept = (self.prev_grad, self.exponent, self.steps)
        into = (self.prev_grad if fits or not torch.compiler.is_compiling() else None, self.exponent, self.steps)
        return Past(snapshot(kept[0]), snapshot(kept[1]), snapshot(kept[2]), fits, into if self.training else None)

    def _schedule(self) -> Schedule:
        own = {name: getattr(self, name) for name in Schedule._fields if name != "bounds"}
        return Schedule(**own, bounds=bounds(self.threshold_init, self.factor))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: object) -> None:
        """Take the positions of h from what is loaded."""
        saved = state_dict.get(f"{prefix}prev_grad")
        if self.prev_grad is not None and saved is not None and saved.dim() == 3 and len(saved) == self.out_channels:
            with torch.no_grad():
                self.prev_grad.resize_(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


REPLACES: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ReSpropConv2d}

__all__ = [
    "REPLACES", "ReSpropConv2d", "any_structure", "card", "everything_new", "forgotten", "keep_local", "nothing_new",
    "plain_output", "split", "whole_bias",
]  # fmt: skip
