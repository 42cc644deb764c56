"""Options, identities and notes that cards of element-wise optimizers share. Data, as cards are."""

from __future__ import annotations

from layers.card import Identity, Option

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
