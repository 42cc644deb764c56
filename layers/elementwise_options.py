"""Options, identities and notes that cards of element-wise optimizers share. Data, as cards are."""

from __future__ import annotations

from layers.card import Identity, Option, Race, Rule

ELEMENTWISE = (
    Option(name="maximize", type=bool, default=False, help="climb instead of descending", source="torch.optim"),
    Option(
        name="foreach",
        type=bool,
        default=None,
        optional=True,
        help="step short parameters together; none does",
        source="torch.optim",
    ),
)

BETA1 = Option(name="beta1", type=float, default=0.9, ge=0, lt=1, help="β₁, of the first moment")
ADAX = (
    BETA1,
    Option(
        name="beta2", type=float, default=1e-4, gt=0, lt=1, help="β₂; with 0 nothing would move", source="section 4"
    ),
    Option(
        name="eps",
        type=float,
        default=1e-12,
        gt=0,
        help="ε, beside the root of v, not of v̂",
        source="the authors' code",
    ),
)
ADAX_FORMS = (
    Option(
        name="normalized",
        type=bool,
        default=True,
        help="keep v̂ = v/((1 + β₂)ᵗ − 1); false: v, by the operations of the authors' code, until it overflows",
    ),
    *ELEMENTWISE,
    Option(
        name="fused",
        type=bool,
        default=True,
        help="take torch's kernel of Adam where there is one: float32, float64, normalized, on CPU and CUDA",
        source="torch.optim",
    ),
)
ADAX_IDENTITIES = (
    Identity(says="v̂ is v/((1 + β₂)ᵗ − 1): the steps are those of the authors' recurrence", proof="published"),
    Identity(says="torch's fused kernel and plain operations make the same steps", proof="kernel"),
    Identity(says="it is Adam with β₂ replaced by 1 − wₜ at each step, and no bias to correct (t = ∞)", proof="adam"),
    Identity(
        says="the first step is −η(1 − β₁) sign g",
        proof="first_step",
        options={"eps": 1e-30, "weight_decay": 0.0},
    ),
    Identity(
        says="v̂ = Σᵢ β₂(1 + β₂)ᵗ⁻ⁱ gᵢ²/((1 + β₂)ᵗ − 1): of the gradients the oldest weighs most",
        proof="long_memory",
        options={"beta2": 0.1, "weight_decay": 0.0},
    ),
    Identity(
        says="β₂ → 0 makes v̂ the mean of all g², as AdaGrad's sum with η√t",
        proof="mean_square",
        options={"beta2": 1e-11, "weight_decay": 0.0},
    ),
    Identity(
        says="a positive factor for each number, of all its gradients, changes nothing at ε → 0",
        proof="scale",
        options={"eps": 1e-30, "weight_decay": 0.0},
    ),
    Identity(
        says="one gradient, and zeros after it, move by −ηG sign g in all, G = 2.8555 by default",
        proof="impulse",
        options={"eps": 1e-30, "weight_decay": 0.0},
    ),
    Identity(
        says="without momentum G is 1",
        proof="impulse",
        options={"beta1": 0.0, "eps": 1e-30, "weight_decay": 0.0},
    ),
    Identity(
        says="at step 10⁷, where (1 + β₂)ᵗ is 10⁴³⁴, a step is −ηm/√v̂",
        proof="late_step",
        options={"weight_decay": 0.0},
    ),
)
ADAX_RACES = (
    Race(
        says="one gradient moves by Σₜ (1 − β₁)β₁ᵗ⁻¹ √((1 − (1 + β₂)⁻ᵗ)(1 + β₂)/β₂) learning rates in all",
        problem="impulse",
        measure="travel",
        expected=2.855543514904,
        steps=500,
        within=1e-9,
    ),
    Race(
        says="it finds the better end, −1, where Adam with β₂ = 1/17 ends at the other",
        problem="reddi",
        measure="x0",
        expected=-1.0,
        steps=1000,
    ),
    Race(
        says="while the gradient decays as λᵗ, λ = 0.9997, it moves by Σₜ m/√v̂ learning rates: m = (1 − β₁)λ(λᵗ − β₁ᵗ)"
        "/(λ − β₁), v̂ = β₂q(1 − qᵗ)/((1 − q)(1 − (1 + β₂)⁻ᵗ)) with q = λ²/(1 + β₂)",
        problem="decay",
        measure="travel",
        expected=2351.626620669,
        steps=3000,
        within=1e-9,
    ),
    Race(
        says="and its steps vanish too, as m/√v̂ of that formula, where Adam's tend to 0.634 learning rates",
        problem="decay",
        measure="pace",
        expected=0.586209857991,
        steps=3000,
        within=1e-9,
    ),
)
ADAX_NOTES = (
    "The authors' v grows as (1 + β₂)ᵗ: with gradients of size 1 it leaves float32 at step 887,273 and float16 at "
    "110,904 for β₂ = 1e-4 (at step 931 for 0.1). From then on every step is exactly 0, without a word; at step "
    "7,098,179 Python's own (1 + β₂)ᵗ raises OverflowError. With normalized=False these are refused in words.",
    "In bfloat16 v is wrong at once, since 1.0001 is rounded to 1: after 2,000 gradients of size 1 it is 0.03 instead "
    "of 0.22. Here the moments of half-precision parameters are float32.",
    "The newest gradient weighs wₜ = β₂/((1 + β₂)ᵗ − 1), less than float32 resolves from step 74,262 on by default: v̂ "
    "stands still from there in every form, and the steps follow m alone. That is the method, a long memory.",
    "The authors' code accepts β₂ = 0, with which nothing ever moves.",
    "ε stands beside √v, so beside √v̂ it is ε/√((1 + β₂)ᵗ − 1): 100 ε at the first step, and vanishing later. It is "
    "kept above the root of the smallest normal number, so that a number without gradient is never 0/0.",
    "The docstrings of the authors' code say lr=1e-3 and eps=1e-8; its defaults are 1.5e-3 (AdaX-W: 5e-3) and 1e-12.",
)

ADABOUND = (
    Option(
        name="lr", type=float, default=1e-3, ge=0, help="η; 0 to begin with needs base_lr", source="the authors' code"
    ),
    BETA1,
    Option(name="beta2", type=float, default=0.999, ge=0, lt=1, help="β₂, of the second moment", source="section 5"),
    Option(
        name="final_lr", type=float, default=0.1, gt=0, help="η∞, to which both bounds tend", source="the authors' code"
    ),
    Option(
        name="gamma",
        type=float,
        default=1e-3,
        gt=0,
        lt=1,
        help="γ, how fast they do; the paper's bounds have 1 − β₂ in its place",
        source="the authors' code",
    ),
    Option(name="eps", type=float, default=1e-8, ge=0, help="ε, beside the root of v", source="the authors' code"),
    Option(
        name="weight_decay",
        type=float,
        default=0.0,
        ge=0,
        help="λ, added to g as λp",
        source="the authors' code",
    ),
    Option(
        name="decoupled",
        type=bool,
        default=False,
        help="take λp·η/η₀ from p instead (AdaBoundW of the authors' code)",
    ),
    Option(
        name="base_lr",
        type=float,
        default=None,
        optional=True,
        gt=0,
        help="η₀, the learning rate to which final_lr belongs; none takes lr when the group is added",
    ),
    Option(
        name="form",
        type=str,
        default="code",
        choices=("code", "paper"),
        help="paper: m and v are not corrected for their start, and steps are divided by √t",
    ),
    *ELEMENTWISE,
)
ADABOUND_RULES = (
    Rule(
        "lr > 0 or base_lr is not None",
        "lr={lr} cannot be the base of a schedule: give base_lr, the learning rate that final_lr={final_lr} belongs to",
        "lr",
    ),
)
ADABOUND_IDENTITIES = (
    Identity(
        says="γ → 0 leaves the step sizes of Adam (amsgrad for AMSBound)",
        proof="adam",
        options={"gamma": 1e-30, "eps": 1e-30, "lr": 0.01},
    ),
    Identity(
        says="t → ∞ makes it gradient descent with the learning rate η∞(1 − β₁) and the momentum β₁",
        proof="momentum",
        options={"gamma": 0.9},
    ),
    Identity(says="every step size is between the bounds", proof="within_bounds"),
    Identity(says="the bounds take over at once where they are near", proof="within_bounds", options={"gamma": 0.9}),
    Identity(
        says="a schedule scales both bounds with the learning rate: η → cη makes steps c times as long",
        proof="schedule",
    ),
    Identity(
        says="late steps of the paper's form are those of the code with a schedule of η/√t",
        proof="paper_form",
        options={"form": "paper"},
    ),
    Identity(
        says="by a constant gradient a step size is max(η/|g|, lower bound): Adam ends at t = η/(γ(η∞|g| − η))",
        proof="hand_over",
        options={"beta1": 0.0, "eps": 0.0},
    ),
    Identity(
        says="decoupled, gradients of zero leave p₀(1 − λ)ᵗ",
        proof="decay",
        options={"decoupled": True, "weight_decay": 0.01},
    ),
)
ADABOUND_NOTES = (
    "With the defaults it is the lower bound that takes over, at t ≈ η/(η∞ γ rms g): for gradients of rms 10 at step "
    "4, of 1 at 14, of 0.1 at 112, of 0.02 at 1001; below 0.01 the upper bound clips instead (0.005: step 1001, 0.001: "
    "112). It depends on the scale of the gradients, and with gradients of size 1 Adam is left after 14 steps, not at "
    "the end of training: “not sensitive to its hyperparameters” (the authors' README) is not so.",
    "The authors' code divides by no √t, the paper's algorithm does, and does not correct m and v for their start "
    "(form=paper). A schedule of η/√t does the same to the code, since it scales the bounds too. Without one, and "
    "without momentum, the mean regret on the example of Reddi, Kale & Kumar tends to 7η∞/3, not to 0: x goes round in "
    "three steps, −1, −1 + η∞, −1 + 2η∞.",
    "The authors' code keeps the base learning rates beside the groups: a copy fails (AttributeError: base_lrs), a "
    "group that is added later is silently never updated, training resumed under another lr has other bounds, and lr=0 "
    "divides by zero. Here base_lr is an option of each group, copied and saved with it.",
    "The authors' code accepts γ = 0 (it divides by zero) and η∞ = 0 (nothing moves). Both are refused here.",
    "AdaBoundW, in the authors' code but not exported by their package, takes λp from p, not ηλp as AdamW: a decay of "
    "5e-2 shrinks by 5 percent a step. Here λ is scaled as a schedule scales η, by η/η₀, which the code does not: "
    "without a schedule they are the same, and η = 0 moves nothing.",
    "The proof of the regret bound is known to be flawed (Savarese 2019, arXiv 1908.04457).",
)
