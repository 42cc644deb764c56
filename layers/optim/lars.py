r"""LARS: a learning rate for each layer, in proportion to the length of its weights (You, Gitman & Ginsburg 2017, arXiv
1708.03888, algorithm 1).

What a step may do to a tensor of weights w depends on how long w is. With the gradient g, the weight decay β, the
trust coefficient η and the learning rate γ, norms taken over the whole tensor,
$$\lambda = \eta\,\frac{\|w\|}{\|g\| + \beta\|w\| + \varepsilon},\qquad
v \leftarrow \mu v + \gamma\lambda\,(g + \beta w),\qquad w \leftarrow w - v.$$
``momentum_order="torch"`` keeps γ out of v, as torch's SGD: v ← μv + λ(g + βw), w ← w − γv; it differs once γ changes.
λ is 1 where ‖w‖ or ‖g‖ is 0: by the formula, weights that begin at zero would stay there. ``clip`` is LARC, of NVIDIA's
apex: γλ but no more than γ, by λ ← min(λ/γ, 1). ``exclude`` says which tensors are stepped by SGD as they are.

    optimizer = LARS(model.parameters(), lr=2.0, weight_decay=5e-4)
"""

from __future__ import annotations

from torch import Tensor

from layers.card import Card, Flops, Identity, Option, Paper, Peer, Race, Rule, Stat
from layers.checked_optimizer import CheckedOptimizer, Group, Params, State, excludes_numbers
from layers.lars_proofs import (
    clipped,
    excluded,
    from_zero,
    growth,
    loss_scale,
    no_longer,
    orders,
    step_length,
    weight_scale,
)
from layers.lars_step import move, rates
from layers.weights import Weight

card = Card(
    title="LARS, layer-wise adaptive rate scaling",
    paper=Paper(
        authors="You, Gitman, Ginsburg",
        title="Large batch training of convolutional networks",
        year=2017,
        arxiv="1708.03888",
    ),
    impl="LARS",
    role="optimizer",
    formula="λ = η‖w‖/(‖g‖ + β‖w‖ + ε),  v ← μv + λ(g + βw),  w ← w − γv",
    summary="Gradient descent in which each tensor moves by a share of its own length, however long its gradient is.",
    options=(
        Option(
            name="lr",
            type=float,
            default=1.0,
            ge=0,
            help="γ; with the default η the paper takes 2 for batches of 512, 22 for 32,768",
            source="timm",
        ),
        Option(name="momentum", type=float, default=0.9, ge=0, lt=1, help="μ", source="section 5"),
        Option(
            name="dampening",
            type=float,
            default=0.0,
            ge=0,
            le=1,
            help="of all gradients but the first, as in torch's SGD",
            source="torch.optim",
        ),
        Option(
            name="nesterov",
            type=bool,
            default=False,
            help="step along λ(g + βw) + μv; needs momentum, no dampening",
            source="torch.optim",
        ),
        Option(
            name="weight_decay", type=float, default=5e-4, ge=0, help="β, inside the scaled step", source="section 5"
        ),
        Option(name="trust_coefficient", type=float, default=1e-3, gt=0, help="η", source="table 4; apex has 0.02"),
        Option(name="eps", type=float, default=1e-8, ge=0, help="ε; the paper has none", source="apex, timm"),
        Option(name="clip", type=bool, default=False, help="LARC: no rate above γ, by λ ← min(λ/γ, 1)"),
        Option(
            name="momentum_order",
            type=str,
            default="torch",
            choices=("torch", "paper"),
            help="paper: v holds γ, so that steps follow a change of γ late",
        ),
        Option(
            name="exclude",
            type=str,
            default="ndim<=1",
            choices=("none", "ndim<=1", "no_decay"),
            help="plain SGD for no tensor; for vectors (biases, γ and β of norms), undecayed; where weight_decay is 0",
        ),
        Option(name="maximize", type=bool, default=False, help="climb instead of descending", source="torch.optim"),
        Option(
            name="foreach",
            type=bool,
            default=None,
            optional=True,
            help="take the norms of all tensors in one call; none does",
            source="torch.optim",
        ),
    ),
    rules=(
        Rule(
            "not nesterov or momentum > 0 and dampening == 0",
            "nesterov=true needs momentum > 0 and dampening=0; not momentum={momentum}, dampening={dampening}",
            "nesterov",
        ),
    ),
    state=(
        Stat("momentum_buffer", ("*",), given="momentum", help="v"),
        Stat("step", (), given="momentum and dampening", help="how many steps were taken, float32 on the CPU"),
    ),
    flops=Flops(
        "(4 + (5 if momentum else 2) + (2 if weight_decay else 0) + (2 if nesterov else 0))*E",
        "0",
    ),
    executed=Flops(
        "(4 + (5 + (2 if weight_decay else 0) if momentum else 2 + (weight_decay > 0))"
        " + (2 + (weight_decay > 0) if nesterov else 0))*E + 7 + (1 if momentum and dampening else 0)",
        "0",
    ),
    explained="λ takes 7 operations per tensor. Without momentum, and for Nesterov's step, decay is a factor of w. Not "
    "stated where λ is 1, or may be, which saves a multiplication.",
    stated="not clip and (exclude != 'no_decay' or weight_decay > 0)",
    traffic=Flops("(7 if momentum else 5)*E*B", "0"),
    identities=(
        Identity(
            says="each step is γη‖w‖ long",
            proof="step_length",
            options={"momentum": 0.0, "weight_decay": 0.0, "eps": 0.0},
        ),
        Identity(
            says="with decay no step is longer than γη‖w‖",
            proof="no_longer",
            options={"momentum": 0.0, "weight_decay": 0.1, "eps": 0.0},
        ),
        Identity(
            says="‖wₜ‖ ≤ ‖w₀‖(1 + γη)ᵗ (equation 7): a gradient along −w attains it",
            proof="growth",
            options={"momentum": 0.0, "weight_decay": 0.0, "eps": 0.0},
        ),
        Identity(
            says="a factor of the loss, another for each step, changes nothing without decay",
            proof="loss_scale",
            options={"weight_decay": 0.0, "eps": 0.0},
        ),
        Identity(
            says="where the loss does not see how long w is, c·w₀ makes the path c times as large, of SGD it does not",
            proof="weight_scale",
            options={"weight_decay": 0.0, "eps": 0.0},
        ),
        Identity(says="both orders of momentum are one while γ is constant", proof="orders", options={"lr": 0.3}),
        Identity(says="vectors are trained by torch's SGD, without decay", proof="excluded"),
        Identity(says="so too with Nesterov's momentum", proof="excluded", options={"nesterov": True}),
        Identity(says="so too with dampening", proof="excluded", options={"dampening": 0.5}),
        Identity(says="weights of zero leave it by a step of SGD", proof="from_zero"),
        Identity(
            says="where λ > γ clipping leaves SGD",
            proof="clipped",
            options={"clip": True, "lr": 1e-3, "trust_coefficient": 10.0},
        ),
    ),
    races=(
        Race(
            says="from 0 a step of SGD, since λ is 1 there; then x grows by 1 + γη a step however small the gradient, "
            "the bound of equation 7: travel is 0.9997 · 1.001⁹⁹⁹",
            problem="decay",
            measure="travel",
            expected=2.713395459596,
            steps=1000,
            within=1e-9,
            options={"exclude": "none", "momentum": 0.0, "eps": 0.0, "trust_coefficient": 1.0},
        ),
    ),
    notes=(
        "Algorithm 1 has no guard: weights of zero have λ = 0 and never train. Every implementation has one. Here λ is "
        "1 where ‖w‖ or ‖g‖ is 0 and decay is kept, as in torchlars, timm and MLPerf's code; apex and flash leave it "
        "out there.",
        "Algorithm 1 excludes nothing. timm and flash leave parameters with weight_decay=0 as they are "
        "(exclude=no_decay; timm's always_adapt is exclude=none), MLPerf biases and norms by name, without decay, "
        "kozistr's optimizer what has one axis (exclude=ndim<=1). Plain SGD takes them by the full γ.",
        "ε beside the norms: none in the paper, 1e-8 in apex, torchlars, timm and flash, 1e-7 in MLPerf's code, whose "
        "`0.0 or K.epsilon()` is never 0. flash keeps η and ε beside the groups: a state_dict lacks them.",
        "v holds γ in the paper and in MLPerf's code, and does not in the others. They differ once γ changes: after a "
        "drop by ten a step is ten times shorter at once, or over the next twenty.",
        "The code of apex, torchlars and timm writes the scaled gradient into p.grad, and so breaks its accumulation. "
        "Scaled losses must be unscaled before: with decay λ is not free of the factor.",
        "kozistr's LARS leaves β‖w‖ out of λ and starts v with the unscaled gradient: its first step is 90 times as "
        "long as w for g = 100 w, instead of 1e-3.",
        "In table 2 of the paper the columns “.b” and “.w” are swapped: 1.86 for conv1.b, 5.546 for conv2.b, … 20.2 "
        "for fc8.b are the lengths of weights that are drawn with AlexNet's deviations (1.867, 5.543, …, 20.24), and "
        "6.4 for fc6.w is the bias 0.1·√4096. The ratio of 1345 in the text is that of a bias; those of weights are "
        "8.48 (conv1) to 148 (conv4). The last layer is fc8, not fc6.",
        "The formula with ‖m‖ and (1 − β₁)(g + λx) that is quoted as LARS restates it in the paper on LAMB.",
    ),
    peer=Peer("torch.optim:Adam", {"foreach": "True"}, same=False),
    examples=(
        {},
        {"exclude": "none", "momentum": 0.0, "weight_decay": 0.1, "maximize": True},
        {"clip": True, "lr": 0.1, "trust_coefficient": 0.02, "nesterov": True},
        {"momentum_order": "paper", "dampening": 0.3, "lr": 2.0, "foreach": False},
        {"exclude": "no_decay", "weight_decay": 0.0, "lr": 0.02, "momentum": 0.5},
        {"exclude": "none", "eps": 0.0, "trust_coefficient": 0.01, "momentum_order": "paper", "nesterov": True},
    ),
)


class LARS(CheckedOptimizer):
    """LARS, and with ``clip`` LARC. Gradients are read and never written.

    The state is ``momentum_buffer`` unless momentum is 0, shaped like the parameter, float32 for half precision, and
    with dampening ``step``. Norms are over a whole tensor, of half precision accumulated in float32, whose range ‖g‖
    must not leave; they are read back once per step. ``lr`` may be a tensor of one element; at 0 nothing moves, and in
    the paper's order v neither. Raises OptionError for refused options, as `CheckedOptimizer`.
    """

    card = card

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        clip: bool = False,
        momentum_order: str = "torch",
        exclude: str = "ndim<=1",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "clip": clip,
            "momentum_order": momentum_order,
            "exclude": exclude,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, options)

    def _step(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        if group["momentum_order"] == "paper" and not float(group["lr"]):
            return
        move(group, params, grads, states, rates(group, params, grads))


def excludes(weight: Weight) -> str:
    """Return why the steps of a parameter of a model are not scaled by default; empty for tensors of two axes or more.

    It is trained all the same, unless its numbers are not real floating-point ones.
    """
    if reason := excludes_numbers(weight.parameter):
        return reason
    return "a vector: trained by plain SGD without decay, unless exclude=none" if weight.parameter.dim() <= 1 else ""


__all__ = [
    "LARS", "clipped", "excluded", "excludes", "from_zero", "growth", "loss_scale", "no_longer", "orders",
    "step_length", "weight_scale",
]  # fmt: skip
