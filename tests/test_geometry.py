"""`check-gradients`: what the claims imply of the gradient holds, nothing else does, a wrong backward is found."""

import math

import pytest
import torch
from claims import failed, lying

from layers.catalog import stone, stones
from profiles.checks import invariance
from profiles.checks.behind import Behind
from profiles.checks.carriers import CARRIERS
from profiles.checks.cells import BROKEN, HOLDS
from profiles.checks.geometry import Conditions, check
from profiles.checks.gradients import GRADIENT_PROPERTIES, RULES, STEPS, STRIDE, descent
from profiles.checks.transformations import DELTA, PROPERTIES
from profiles.errors import Refusal
from profiles.target import resolve

CLAIMING = [found for found in stones().values() if found.card.claims]
GROWTH = ["sgd-growth", "momentum-growth", "adam-growth", "decay-growth"]
INSTANT = [name for name in GRADIENT_PROPERTIES if name not in GROWTH]
SCALE_FREE = ["gn", "ln", "weight-norm", "weight-standardization"]


@pytest.mark.parametrize("target", CLAIMING, ids=lambda target: target.name)
def test_what_the_claims_imply_holds_and_nothing_else(target):
    rows = check(target, properties=INSTANT)
    assert [row for row in rows if row.verdict == "failed"] == []
    assert len(rows) == len(target.card.claims) * len(INSTANT) * len(CARRIERS)
    for row in rows:
        assert (row.verdict == "n/a") == (row.deviation is None)
        assert (row.counterexample is None) == (row.holds in (True, None))
        assert row.holds is not None or row.verdict == "n/a"


@pytest.mark.parametrize("target", CLAIMING, ids=lambda target: target.name)
def test_growth_is_as_the_claims_imply(target):
    rows = check(target, properties=GROWTH, carriers=["linear"])
    assert failed(rows) == set()
    assert {row.verdict for row in rows if row.property == "adam-growth"} <= {"measured", "n/a"}


def test_every_property_follows_from_an_invariance_of_the_weight():
    for column in GRADIENT_PROPERTIES.values():
        assert column.invariance in PROPERTIES
        assert column.invariance.startswith("w-")


@pytest.mark.parametrize(
    ("name", "holding"),
    [
        ("weight-norm", {"orthogonal", "orthogonal-total", "inverse-scale"}),
        ("weight-standardization", {"orthogonal", "orthogonal-total", "inverse-scale", "zero-mean"}),
        ("cen-conv", {"zero-mean"}),
        ("bn", {"orthogonal", "orthogonal-total", "inverse-scale"}),
        ("ln", {"orthogonal-total", "inverse-scale", "common-mode"}),
        ("mean-only-bn", set()),
        ("torch.nn:Conv2d", set()),
    ],
)
def test_techniques_have_the_geometry_that_the_papers_say(name, holding):
    rows = check(resolve(name), Conditions(), properties=INSTANT, carriers=["linear"])
    assert {row.verdict for row in rows} == {"measured"}
    assert {row.property for row in rows if row.holds} == holding
    assert all(row.deviation < 1e-12 for row in rows if row.holds)
    assert all(row.deviation > 10 * BROKEN for row in rows if not row.holds)


def test_a_gradient_that_does_not_shrink_is_the_counterexample_of_homogeneous_techniques():
    (row,) = check(resolve("torch.nn:Conv2d"), properties=["inverse-scale"], carriers=["conv"])
    assert row.deviation == pytest.approx(DELTA - 1)
    assert row.counterexample.found == pytest.approx(DELTA * row.counterexample.wanted)


def test_the_counterexample_is_the_gradient_that_autograd_gives():
    (row,) = check(resolve("torch.nn:Conv2d"), properties=["zero-mean"], carriers=["linear"])
    found = row.counterexample
    trial = Behind(resolve("torch.nn:Conv2d"), Conditions(), CARRIERS["linear"], found.seed)
    weight, x = trial.scenes[0].weight, trial.scenes[0].x
    slope = trial.gradient(weight)
    upstream = torch.linalg.lstsq(x.T, slope.T).solution  # of y = W x the gradient is rᵀ x
    torch.testing.assert_close(upstream.T @ x, slope)
    torch.testing.assert_close(trial.gradient(3 * weight), slope)
    assert found.found == pytest.approx(float(slope.sum(1)[found.index[0]]))
    assert row.deviation == pytest.approx(
        float((slope.sum(1).abs() / (math.sqrt(slope.shape[1]) * slope.norm(dim=1))).max())
    )


def optimized(trial, make):
    """The weights that an optimizer of torch makes of the gradients of ``trial``."""
    parameter = torch.nn.Parameter(trial.scenes[0].weight.clone())
    optimizer, weights = make(parameter), []
    for step in range(STEPS):
        parameter.grad = trial.gradient(parameter.detach(), step)
        optimizer.step()
        weights.append(parameter.detach().clone())
    return weights


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("sgd", lambda p, rate, _: torch.optim.SGD([p], rate)),
        ("momentum", lambda p, rate, _: torch.optim.SGD([p], rate, momentum=0.9)),
        ("decay", lambda p, rate, _: torch.optim.SGD([p], rate, weight_decay=STRIDE**2 / rate)),
        ("adam", lambda p, rate, length: torch.optim.Adam([p], rate * length / math.sqrt(p.numel()))),
    ],
)
def test_the_descents_are_those_of_the_optimizers_of_torch(rule, make):
    trial = Behind(stone("gn"), Conditions({"groups": 3}), CARRIERS["conv"])
    weights, slopes, rate = descent(trial, RULES[rule])
    length = float(slopes[0].norm())
    wanted = optimized(trial, lambda parameter: make(parameter, rate, length))
    assert len(weights) == STEPS + 1
    assert rate * length == pytest.approx(STRIDE * float(weights[0].norm()))
    torch.testing.assert_close(weights[1:], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCALE_FREE)
def test_plain_and_heavy_ball_descent_lengthen_a_scale_free_weight(name):
    rows = check(stone(name), properties=["sgd-growth", "momentum-growth"], carriers=["conv"])
    assert {(row.expected, row.holds) for row in rows} == {(True, True)}


@pytest.mark.parametrize("name", SCALE_FREE)
def test_adam_and_weight_decay_shorten_a_scale_free_weight(name):
    rows = check(stone(name), properties=["adam-growth", "decay-growth"], carriers=["linear", "conv"])
    for row in rows:
        assert row.holds is False
        assert row.expected is (None if row.property == "adam-growth" else False)
        found = row.counterexample
        assert found.found < found.wanted
        assert 1 <= found.index[0] <= STEPS
        assert row.deviation == pytest.approx(1 - found.found / found.wanted)


def test_for_the_gradient_stored_statistics_are_constants_even_where_they_follow():
    rows = [row for row in check(stone("bn"), properties=INSTANT, carriers=["conv"]) if row.mode == "eval"]
    assert {row.holds for row in rows if row.history == "frozen"} == {False}
    of_following = [row for row in rows if row.history == "follow"]
    assert [row.property for row in of_following if row.holds] == ["inverse-scale"]
    assert all(row.expected is row.holds for row in rows)


def test_nothing_is_implied_where_the_published_backward_is_not_the_derivative():
    for name in ("batch-renorm", "adanorm"):
        rows = check(stone(name), carriers=["linear"], properties=INSTANT)
        assert {(row.expected, row.verdict) for row in rows} == {(None, "measured")}


def test_an_output_that_the_weight_cannot_change_is_not_applicable():
    rows = check(stone("ghost-bn"), properties=INSTANT)
    assert {row.carrier for row in rows if row.verdict == "n/a"} == {"linear"}
    assert all("does not change with the weight" in row.reason for row in rows if row.verdict == "n/a")


def test_a_false_claim_fails_by_what_it_implies(tmp_path):
    liar = lying(tmp_path, "weight-norm", '"w-vec-scale",', '"w-vec-recenter",')
    rows = check(liar, carriers=["linear", "conv"])
    assert failed(rows) == {"orthogonal", "zero-mean"}
    for row in rows:
        if row.verdict == "failed":
            missing = row.property == "orthogonal"
            assert row.expected is not missing
            assert row.reason.startswith("holds, but" if missing else "follows from the claims, but")


class Wrong(torch.autograd.Function):
    """The input as it is; its gradient, with a share of that of the channel before."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad + 0.1 * grad.roll(1, 1)


@pytest.mark.parametrize("name", ["gn", "bn", "weight-standardization", "weight-norm"])
def test_a_wrong_backward_is_found_though_the_output_is_right(name, monkeypatch):
    layer = stone(name).load()
    if stone(name).kind == "norm":
        forward = layer.forward
        monkeypatch.setattr(layer, "forward", lambda self, x: forward(self, Wrong.apply(x)))
    else:
        effective = layer.effective_weight
        monkeypatch.setattr(layer, "effective_weight", lambda self: _leaking(effective(self), self.weight))
    weights = [column for column in PROPERTIES if column.startswith("w-")]
    assert failed(invariance.check(stone(name), properties=weights, carriers=["linear"])) == set()
    found = failed(check(stone(name), properties=["orthogonal-total", "sgd-growth"], carriers=["linear"]))
    assert found == {"orthogonal-total", "sgd-growth"}


def _leaking(effective, weight):
    """The effective weight, with a share of the plain gradient beside its own."""
    return effective + 0.1 * (weight - weight.detach())


def test_a_statistic_taken_for_a_constant_is_found(monkeypatch):
    layer = stone("pixel-norm").load()

    def forward(self, x):
        scale = (x.detach().square().mean(1, keepdim=True) + self.eps).rsqrt()
        return x * scale

    monkeypatch.setattr(layer, "forward", forward)
    assert failed(invariance.check(stone("pixel-norm"), carriers=["linear"])) == set()
    rows = check(stone("pixel-norm"), carriers=["linear"])
    assert failed(rows) == {"orthogonal-total", "sgd-growth", "momentum-growth"}
    assert {row.holds for row in rows if row.property == "inverse-scale"} == {True}


def test_a_class_is_measured_as_its_stone(tmp_path):
    source = tmp_path / "own.py"
    source.write_text(
        "import torch\n\n\nclass Direction(torch.nn.Conv2d):\n    def forward(self, x):\n"
        "        weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None]\n"
        "        return self._conv_forward(x, weight, self.bias)\n\n\n"
        "class Detached(torch.nn.Conv2d):\n    def forward(self, x):\n        return super().forward(x).detach()\n\n\n"
        "class Broken(torch.nn.Module):\n    def forward(self, x):\n        y = x.exp()\n"
        "        y.mul_(2)\n        return y\n"
    )
    rows = check(resolve(f"{source}:Direction"), properties=INSTANT)
    twin = check(stone("weight-norm"), properties=INSTANT)
    assert [row.holds for row in rows] == [row.holds for row in twin]
    assert {row.verdict for row in rows} == {"measured"}
    with pytest.raises(Refusal, match="does not change with the weight"):
        check(resolve(f"{source}:Detached"))
    with pytest.raises(Refusal, match="has no gradient: one of the variables"):
        check(resolve(f"{source}:Broken"))


def test_a_hidden_eps_is_not_taken_for_a_broken_geometry(tmp_path):
    source = tmp_path / "hidden.py"
    source.write_text(
        "import torch\n\n\nclass Standard(torch.nn.Module):\n    def forward(self, x):\n"
        "        x = x - x.mean(0)\n        return x / (x.square().mean(0) + 1e-5).sqrt()\n"
    )
    rows = {row.property: row for row in check(resolve(f"{source}:Standard"), carriers=["linear"])}
    for name in ("orthogonal", "orthogonal-total", "inverse-scale", "sgd-growth"):
        assert rows[name].deviation < rows[name].within <= BROKEN
        assert rows[name].holds
    assert rows["orthogonal"].deviation > HOLDS
    assert rows["zero-mean"].within == HOLDS


def test_what_is_no_layer_or_claims_nothing_is_refused():
    for name in ("bn-only", "svb"):
        with pytest.raises(Refusal, match=stone(name).card.role):
            check(stone(name))
    with pytest.raises(Refusal, match="did you mean zero-mean"):
        check(stone("gn"), properties=["zero-means"])
    with pytest.raises(Refusal, match="does not depend on its input"):
        check(resolve("torch.nn:Dropout"), Conditions({"p": 1.0}))


def test_progress_sees_every_row_and_the_generator_nothing():
    before, seen = torch.get_rng_state(), []
    rows = check(stone("pono"), properties=INSTANT[:2], progress=seen.append)
    assert seen == rows == check(stone("pono"), properties=INSTANT[:2])
    assert [(row.carrier, row.property) for row in rows] == [(c, p) for c in CARRIERS for p in INSTANT[:2]]
    assert torch.equal(torch.get_rng_state(), before)
