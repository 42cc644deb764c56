"""What is special to AdaBound and AMSBound: the base learning rate, the bounds, the published code, the two forms."""

import copy
import math

import pytest
import torch
from stepping import assert_equal, attempt, run, weights

from layers import adabound_optimizer
from layers.card import OptionError
from layers.optim.adabound import AdaBound
from layers.optim.amsbound import AMSBound

BOTH = pytest.mark.parametrize("optimizer", [AdaBound, AMSBound])
SHAPES = ((6, 4, 3, 2), (5,))


class Published(torch.optim.Optimizer):
    """The operations of the authors' code, whose bounds know the learning rates of the constructor."""

    def __init__(self, params, lr, weight_decay, amsbound, decoupled):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.base, self.amsbound, self.decoupled = lr, amsbound, decoupled

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        lr, decay = group["lr"], group["weight_decay"]
        for p in group["params"]:
            g = p.grad if self.decoupled else p.grad.add(p, alpha=decay)
            s = self.state[p] or {"t": 0, **{name: torch.zeros_like(p) for name in ("m", "v", "most")}}
            self.state[p] = s
            s["t"] += 1
            t = s["t"]
            s["m"].mul_(0.9).add_(g, alpha=0.1)
            s["v"].mul_(0.999).addcmul_(g, g, value=0.001)
            torch.maximum(s["most"], s["v"], out=s["most"])
            root = (s["most"] if self.amsbound else s["v"]).sqrt().add_(1e-8)
            size = torch.full_like(root, lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)).div_(root)
            final = 0.1 * lr / self.base
            size.clamp_(final * (1 - 1 / (1e-3 * t + 1)), final * (1 + 1 / (1e-3 * t))).mul_(s["m"])
            shrunk = p * decay if self.decoupled else 0.0
            p.sub_(size).sub_(shrunk)


def halved_each_five(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)


def scheduled(optimizer, params, steps, first=0, scheduler=None):
    scheduler = scheduler or halved_each_five(optimizer)
    for step in range(first, first + steps):
        run(optimizer, params, 1, step)
        scheduler.step()
    return [parameter.detach().clone() for parameter in params]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_moments_are_the_same_where_there_is_no_kernel_of_adam(optimizer, dtype, monkeypatch):
    params, other = weights(dtype), weights(dtype)
    ours = optimizer(params, weight_decay=0.1)
    found = run(ours, params, 5)
    monkeypatch.setattr(adabound_optimizer, "FUSED", ())
    plain = optimizer(other, weight_decay=0.1)
    within = 4 * torch.finfo(dtype).eps
    assert_equal(found, run(plain, other, 5), within)
    for p, q in zip(params, other, strict=True):
        assert_equal(ours.state[p].values(), plain.state[q].values(), within)


@BOTH
@pytest.mark.parametrize("decay", [{}, {"weight_decay": 0.02}], ids=str)
def test_the_steps_are_those_of_the_published_code_under_a_schedule(optimizer, decay):
    params, other = weights(), weights()
    published = Published(other, 0.02, decay.get("weight_decay", 0.0), optimizer is AMSBound, decoupled=False)
    assert_equal(scheduled(optimizer(params, lr=0.02, **decay), params, 30), scheduled(published, other, 30), 1e-12)


@BOTH
def test_the_decoupled_decay_is_that_of_the_published_code_while_the_rate_is_constant(optimizer):
    params, other = weights(), weights()
    published = Published(other, 0.02, 0.05, optimizer is AMSBound, decoupled=True)
    assert_equal(
        run(optimizer(params, lr=0.02, weight_decay=0.05, decoupled=True), params, 30),
        run(published, other, 30),
        1e-12,
    )


@BOTH
def test_the_decoupled_decay_is_scheduled_with_the_learning_rate(optimizer):
    params = weights(shapes=SHAPES)
    ours = optimizer(params, weight_decay=0.5, decoupled=True)
    ours.param_groups[0]["lr"] /= 10
    before = [parameter.detach().clone() for parameter in params]
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    ours.step()
    assert_equal(params, [0.95 * each for each in before], 1e-12)


@BOTH
def test_training_resumed_under_another_learning_rate_goes_on_as_it_was(optimizer):
    """The bounds of the published code are those of the learning rate of the new constructor."""
    params = weights(shapes=SHAPES)
    ours = optimizer(params, lr=0.01)
    scheduler = halved_each_five(ours)
    scheduled(ours, params, 12, scheduler=scheduler)
    other = copy.deepcopy(params)
    fresh = optimizer(other, lr=0.3)
    fresh.load_state_dict(copy.deepcopy(ours.state_dict()))
    again = halved_each_five(fresh)
    again.load_state_dict(scheduler.state_dict())
    assert fresh.param_groups[0]["base_lr"] == 0.01
    expected = scheduled(ours, params, 12, 12, scheduler)
    assert_equal(scheduled(fresh, other, 12, 12, again), expected)
    assert ours.param_groups[0]["lr"] == pytest.approx(0.01 / 16)


@BOTH
def test_a_copy_in_the_middle_of_a_schedule_keeps_its_base(optimizer):
    params = weights(shapes=SHAPES)
    ours = optimizer(params, lr=0.01)
    scheduled(ours, params, 12)
    other, twin = copy.deepcopy((params, ours))
    assert twin.param_groups[0]["base_lr"] == 0.01 != twin.param_groups[0]["lr"]
    assert_equal(run(twin, other, 3, 12), run(ours, params, 3, 12))


@BOTH
def test_each_group_has_the_base_that_it_was_added_with(optimizer):
    params = [torch.zeros(2, requires_grad=True) for _ in range(5)]
    ours = optimizer([{"params": params[0], "lr": 0.3}, {"params": params[1]}], lr=0.01)
    ours.param_groups[1]["lr"] = 0.002
    ours.add_param_group({"params": params[2]})
    ours.add_param_group({"params": params[3], "lr": 0.05, "base_lr": 0.5})
    ours.add_param_group({"params": params[4], "lr": 0.001, "initial_lr": 0.02})
    assert [group["base_lr"] for group in ours.param_groups] == [0.3, 0.01, 0.01, 0.5, 0.02]


def test_an_older_state_has_the_base_that_its_schedule_left_there():
    params = weights(shapes=SHAPES)
    state = AdaBound(params, lr=0.01).state_dict()
    (group,) = state["param_groups"]
    del group["base_lr"]
    other = AdaBound(params, lr=0.3)
    other.load_state_dict({**state, "param_groups": [{**group, "initial_lr": 0.04}]})
    assert other.param_groups[0]["base_lr"] == 0.04
    other.load_state_dict(state)
    assert other.param_groups[0]["base_lr"] == 0.3


@BOTH
def test_a_learning_rate_of_zero_needs_a_base(optimizer):
    for make in (
        lambda: optimizer(weights(), lr=0.0),
        lambda: optimizer([{"params": weights(), "lr": 0.0}]),
        lambda: optimizer(weights(), lr=torch.tensor(0.0)),
    ):
        with pytest.raises(OptionError, match=r"lr=0.0 cannot be the base of a schedule: give base_lr"):
            make()


@BOTH
def test_a_warm_up_from_zero_meets_the_run_that_began_at_its_end(optimizer):
    """Its first step moves nothing, and sees the gradient."""
    params, other = weights(shapes=SHAPES), weights(shapes=SHAPES)
    warm, ready = optimizer(params, lr=0.0, base_lr=0.01), optimizer(other, lr=0.01)
    before = [parameter.detach().clone() for parameter in params]
    assert_equal(run(warm, params, 1), before)
    run(ready, other, 1)
    warm.param_groups[0]["lr"] = 0.01
    for parameter, start in zip(other, before, strict=True):
        parameter.data.copy_(start)
    assert_equal(run(warm, params, 5, 1), run(ready, other, 5, 1))


@BOTH
@pytest.mark.parametrize("scheduler", [
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 4),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=9, cycle_momentum=False),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
], ids=["lambda", "one-cycle", "cosine"])  # fmt: skip
def test_schedulers_scale_the_steps_and_never_the_base(optimizer, scheduler):
    params, other = weights(shapes=SHAPES), weights(shapes=SHAPES)
    ours, constant = optimizer(params, lr=0.01), optimizer(other, lr=0.01)
    made = scheduler(ours)
    for step in range(8):
        starts = [[parameter.detach().clone() for parameter in each] for each in (params, other)]
        factor = ours.param_groups[0]["lr"] / 0.01
        moved = [
            [end - start for end, start in zip(run(o, p, 1, step), s, strict=True)]
            for o, p, s in zip((ours, constant), (params, other), starts, strict=True)
        ]
        made.step()
        assert_equal(moved[0], [factor * each for each in moved[1]], 1e-11)
    assert ours.param_groups[0]["base_lr"] == 0.01


def test_the_bound_that_takes_over_and_when_depends_on_the_scale_of_gradients():
    scales = torch.tensor([10, 1, 0.1, 0.02, 0.005, 0.001], dtype=torch.float64)
    parameter = torch.zeros_like(scales).requires_grad_()
    ours, parameter.grad = AdaBound([parameter], eps=0.0), scales.clone()
    found = {}
    for t in range(1, 1003):
        before = parameter.detach().clone()
        ours.step()
        sizes = (before - parameter.detach()) / (scales * (1 - 0.9**t))
        adam = 1e-3 / scales / (1 - 0.9**t)
        for i, (size, unbound) in enumerate(zip(sizes.tolist(), adam.tolist(), strict=True)):
            if abs(size / unbound - 1) > 1e-9:
                found.setdefault(i, (t, "lower" if size > unbound else "upper"))
    assert [found[i] for i in range(6)] == [
        (4, "lower"), (14, "lower"), (112, "lower"), (1001, "lower"), (1001, "upper"), (112, "upper")
    ]  # fmt: skip


def reddi(parameter, optimizer, steps, first=0):
    """The mean regret of so many steps: the loss is 4x in every third, −x in the others, on [−1, 1]."""
    regret = 0.0
    for step in range(first, first + steps):
        slope = 4.0 if step % 3 == 0 else -1.0
        regret += slope * (parameter.item() + 1)
        parameter.grad = torch.full_like(parameter, slope)
        optimizer.step()
        parameter.data.clamp_(-1, 1)
    return regret / steps


@BOTH
def test_without_division_by_the_root_of_t_regret_stays(optimizer):
    """Late, when the bounds are one: 7η∞/3 for each step, since x goes round −1, −1 + η∞, −1 + 2η∞."""
    ends = {}
    for form in ("code", "paper"):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        ours = optimizer([x], lr=0.5, beta1=0.0, form=form)
        reddi(x, ours, 1)
        ours.state[x]["step"].fill_(2**23)
        x.data.fill_(-1.0)
        reddi(x, ours, 3)
        ends[form] = reddi(x, ours, 300)
    assert ends["code"] == pytest.approx(7 * 0.1 / 3, rel=1e-3)
    assert ends["paper"] == pytest.approx(7 * 0.1 / 3 / 2**11.5, rel=1e-3)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{"gamma": 1e-300}, {"eps": 0.0}, {"base_lr": 1e30}, {"final_lr": 1e-30}], ids=str)
@pytest.mark.parametrize("step", [0, 2**24 - 2])
def test_extreme_options_and_late_steps_stay_finite(optimizer, dtype, options, step):
    """With a gradient of zero too, whose v is 0."""
    parameter = torch.zeros(3, dtype=dtype, requires_grad=True)
    ours, parameter.grad = optimizer([parameter], **options), torch.tensor([1.0, -1e-3, 0.0], dtype=dtype)
    ours.step()
    ours.state[parameter]["step"].fill_(max(1, step))
    ours.step()
    assert parameter.isfinite().all()
    assert parameter[2] == 0


@BOTH
@pytest.mark.parametrize("name", ["gamma", "final_lr"])
def test_what_the_published_code_divides_by_or_stands_still_with_is_refused(optimizer, name):
    with pytest.raises(OptionError, match=f"{name}=0.0 is out of range"):
        optimizer(weights(), **{name: 0.0})


def test_the_state_of_the_published_code_is_refused_in_words():
    params = weights(shapes=SHAPES)
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1]}
    _, refusal = attempt(lambda: AdaBound(params).load_state_dict({"state": {}, "param_groups": [group]}))
    assert "its groups have betas" in refusal


def test_amsbound_goes_on_only_from_a_state_that_has_the_maximum():
    params = weights(shapes=SHAPES)
    plain = AdaBound(params)
    run(plain, params, 1)
    ours = AMSBound(params)
    ours.load_state_dict(plain.state_dict())
    with pytest.raises(OptionError, match="no max_exp_avg_sq"):
        run(ours, params, 1)
