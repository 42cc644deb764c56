"""What the cards of the optimizers on the Grassmannian share. Data, as cards are."""

from __future__ import annotations

from layers.card import Identity, Option, Rule

# A parameter group may set every option for itself.
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
