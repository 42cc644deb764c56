"""What is special to AdaX and AdaX-W: their two forms, long runs, half precision, and slices."""

import io
import math

import pytest
import torch
from stepping import assert_equal, gradient, normal, run, weights

import layers.elementwise_optimizer
from layers.adax_optimizer import from_published
from layers.card import OptionError
from layers.optim.adax import AdaX, excludes
from layers.optim.adaxw import AdaXW
from layers.weights import weights as weights_of

BOTH = pytest.mark.parametrize("optimizer", [AdaX, AdaXW])
FORMS = pytest.mark.parametrize("form", [{}, {"fused": False}, {"normalized": False}], ids=str)


class Published(torch.optim.Optimizer):
    """The operations of the authors' code in their order."""

    def __init__(self, params, lr, weight_decay, decoupled):
        super().__init__(params, {"lr": lr, "betas": (0.9, 1e-4), "eps": 1e-12, "weight_decay": weight_decay})
        self.decoupled = decoupled

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        for p in group["params"]:
            if p.grad is None:
                continue
            g = p.grad if self.decoupled else p.grad.add(p, alpha=decay)
            s = self.state[p] or {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p] = s
            s["step"] += 1
            s["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
            s["exp_avg_sq"].mul_(1 + beta2).addcmul_(g, g, value=beta2)
            denominator = s["exp_avg_sq"].sqrt().add_(group["eps"])
            rate = group["lr"] * math.sqrt((1 + beta2) ** s["step"] - 1)
            if self.decoupled:
                p.add_(-torch.mul(p, group["lr"] * decay))
            p.addcdiv_(s["exp_avg"], denominator, value=-rate)


def pairs(optimizer, dtype=torch.float32, **options):
    """Equal parameters, one list with the published optimizer and one with ours."""
    params, other = weights(dtype), weights(dtype)
    published = Published(params, 5e-3, 5e-2, optimizer is AdaXW)
    return (params, published), (other, optimizer(other, lr=5e-3, weight_decay=5e-2, **options))


def unit_steps(optimizer, parameter, steps):
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_normalization_the_bits_are_those_of_the_published_code(optimizer, dtype):
    (params, published), (other, ours) = pairs(optimizer, dtype, normalized=False)
    assert_equal(run(ours, other, 40), run(published, params, 40))


@BOTH
def test_a_state_of_the_published_code_goes_on_in_the_normalized_form(optimizer):
    (params, published), (other, ours) = pairs(optimizer, torch.float64)
    run(published, params, 30)
    for parameter, found in zip(other, params, strict=True):
        parameter.data.copy_(found)
    with pytest.raises(OptionError, match="its groups have betas"):
        ours.load_state_dict(published.state_dict())
    ours.load_state_dict(from_published(published.state_dict()))
    assert_equal(run(ours, other, 10, 30), run(published, params, 10, 30), 1e-12)
    published.state[params[1]]["exp_avg_sq"][0] = math.inf
    with pytest.raises(OptionError, match="parameter 1 has overflowed at step 40"):
        from_published(published.state_dict())


@BOTH
def test_the_state_of_adam_is_refused(optimizer):
    params = weights()
    adam = torch.optim.Adam(params)
    run(adam, params, 1)
    with pytest.raises(OptionError, match="its groups have betas"):
        optimizer(params).load_state_dict(adam.state_dict())


@BOTH
def test_changing_the_form_between_steps_is_refused(optimizer):
    params = weights()
    ours = optimizer(params)
    run(ours, params, 1)
    ours.param_groups[0]["normalized"] = False
    with pytest.raises(OptionError, match="no raw_exp_avg_sq: it is of another optimizer, or of other options"):
        run(ours, params, 1)


def test_the_published_recurrence_stands_still_at_step_931_where_ours_goes_on_or_refuses():
    parameter, options = torch.zeros(3, requires_grad=True), {"beta2": 0.1, "weight_decay": 0.0}
    v = torch.zeros(())
    for _ in range(931):
        v.mul_(1.1).addcmul_(torch.ones(()), torch.ones(()), value=0.1)
    assert v.isinf()
    for form in ({}, {"fused": False}):
        optimizer = AdaX([parameter], **options, **form)
        unit_steps(optimizer, parameter, 931)
        before = parameter.detach().clone()
        unit_steps(optimizer, parameter, 1)
        torch.testing.assert_close(before - parameter, torch.full((3,), 1.5e-3), rtol=1e-2, atol=0)
    raw = AdaX([parameter], **options, normalized=False)
    unit_steps(raw, parameter, 930)
    with pytest.raises(OptionError, match=r"normalized=False: at step 931 .* train with normalized=True"):
        unit_steps(raw, parameter, 1)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", [{}, {"fused": False}], ids=str)
@pytest.mark.parametrize("step", [74_262, 275_000, 400_000, 887_273, 7_098_179, 2**24 - 2])
def test_steps_neither_vanish_nor_explode_however_late(optimizer, dtype, form, step):
    """With a zero gradient too, whose v̂ is 0."""
    parameter = torch.zeros(4, dtype=dtype, requires_grad=True)
    ours = optimizer([parameter], **form)
    parameter.grad = torch.tensor([1.0, 1e-3, -1.0, 0.0], dtype=dtype)
    ours.step()
    ours.state[parameter]["step"].fill_(step)
    before, m = parameter.detach().clone(), ours.state[parameter]["exp_avg"].clone()
    ours.step()
    m += 0.1 * (parameter.grad - m)
    lr = ours.param_groups[0]["lr"]
    wanted = (-lr * m / ours.state[parameter]["exp_avg_sq"].sqrt().clamp(min=1e-9)).to(dtype)
    torch.testing.assert_close(parameter.detach() - before, wanted, rtol=2e-2, atol=1e-7)
    assert parameter[3] == 0


@BOTH
def test_moments_of_half_precision_do_not_stall(optimizer):
    """In bfloat16 1.0001 is 1, and the published v would be 0.03 instead of 0.22 after 2000 gradients of 1."""
    parameter = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    raw = optimizer([parameter], normalized=False, weight_decay=0.0)
    unit_steps(raw, parameter, 2000)
    v = torch.full((2,), 1.0001**2000 - 1)
    torch.testing.assert_close(raw.state[parameter]["raw_exp_avg_sq"], v, rtol=1e-3, atol=0)
    mean = optimizer([parameter], weight_decay=0.0)
    unit_steps(mean, parameter, 300)
    parameter.grad = torch.full_like(parameter, 3)
    for _ in range(300):
        mean.step()
    torch.testing.assert_close(mean.state[parameter]["exp_avg_sq"], torch.full((2,), 5.0), rtol=0.02, atol=0)


@BOTH
@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_saved_optimizer_of_half_precision_continues_bit_for_bit(optimizer, form, dtype):
    params = weights(dtype)
    ours = optimizer(params, **form)
    run(ours, params, 3)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    other = [parameter.detach().clone().requires_grad_() for parameter in params]
    fresh = optimizer(other)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert {s.dtype for s in fresh.state[other[0]].values()} == {torch.float32}
    assert_equal(run(fresh, other, 5, 3), run(ours, params, 5, 3))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [{"fused": False}, {"fused": False, "foreach": False}, {"normalized": False}], ids=str)
def test_long_parameters_are_stepped_in_slices_alike(optimizer, form, dtype, monkeypatch):
    """Also those that are no whole number of slices, or channels_last, beside short ones that share a slice."""
    results = []
    for length in (1 << 30, 64):
        monkeypatch.setattr(layers.elementwise_optimizer, "SLICE", length)
        params = weights(dtype, shapes=((7, 11), (3,), (2,), (0, 3), (), (5, 5), (16,), (3, 5, 4, 2)))
        params[-1] = params[-1].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        results.append(run(optimizer(params, **form), params, 3))
    assert_equal(*results)


@pytest.mark.parametrize(
    ("foreach", "batches"), [(None, [[7, 3, 5], [16], [4]]), (False, [[7], [3], [5], [16], [4]])], ids=str
)
def test_a_batch_of_slices_is_no_longer_than_the_cache_and_joined_only_if_wanted(foreach, batches, monkeypatch):
    seen = []

    class Watched(AdaX):
        def _update(self, group, t, p, g, *state):
            seen.append([each.numel() for each in p])
            super()._update(group, t, p, g, *state)

    monkeypatch.setattr(layers.elementwise_optimizer, "SLICE", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    params = weights(torch.float32, shapes=((7,), (3,), (5,), (4, 5)))
    run(Watched(params, fused=False, foreach=foreach), params, 1)
    assert seen == batches


@BOTH
def test_the_gradient_scaler_skips_a_step_that_overflowed(optimizer):
    params = weights(torch.float32)
    ours, scaler = optimizer(params), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [parameter.detach().clone() for parameter in params]
    scaler.scale(torch.zeros(()))
    for i, parameter in enumerate(params):
        parameter.grad = gradient(parameter, i, 0)
    params[2].grad[0, 0] = math.inf
    scaler.step(ours)
    scaler.update()
    assert_equal(params, before)
    assert not ours.state
    scale = scaler.get_scale()
    for i, parameter in enumerate(params):
        parameter.grad = scale * gradient(parameter, i, 0)
    scaler.step(ours)
    fresh = [parameter.clone().requires_grad_() for parameter in before]
    assert_equal(params, run(optimizer(fresh), fresh, 1), 1e-6)


@BOTH
@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_what_is_not_offered_is_refused_by_name(optimizer, name):
    with pytest.raises(OptionError, match=f"{name}=True: {optimizer.__name__} does not offer it"):
        optimizer([{"params": weights(), name: True}])


def test_real_parameters_alone_are_taken():
    module = torch.nn.Linear(2, 2)
    module.phase = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    reasons = {weight.name: excludes(weight) for weight in weights_of(module)}
    assert reasons["phase"].startswith("complex")
    assert reasons["weight"] == reasons["bias"] == ""
    with pytest.raises(OptionError, match="phase is complex"):
        AdaX(module.named_parameters())


def test_parameters_of_several_dtypes_and_ages_share_a_group():
    params = [normal((3, 4), 1).float().requires_grad_(), normal((5,), 2).requires_grad_()]
    params += [normal((2, 2), 3).bfloat16().requires_grad_(), torch.zeros(0, requires_grad=True)]
    apart = [parameter.detach().clone().requires_grad_() for parameter in params]
    joint, each = AdaX(params), [AdaX([parameter]) for parameter in apart]
    for step in range(4):
        for i, (p, q) in enumerate(zip(params, apart, strict=True)):
            p.grad = q.grad = None if (step + i) % 3 == 0 else gradient(p, i, step)
        joint.step()
        for optimizer in each:
            optimizer.step()
    assert_equal(params, apart)
    assert {int(joint.state[parameter]["step"]) for parameter in params} == {2, 3}
