"""What is special about batch-renorm and mabn: schedules by a counter in the state, rings, stopped gradients."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import references
import torch
from batches import C, N, data, double, near, number, train_step

from layers.norm.batch_renorm import D_END, R_END, START, BatchRenorm
from layers.norm.bn import BatchNorm
from layers.norm.mabn import MovingAverageBatchNorm
from layers.observe import observing

# Batch renormalization.


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [
        (0, 1, 0),
        (START, 1, 0),
        ((START + D_END) // 2, 1 + 2 * (D_END - START) / (R_END - START) / 2, 2.5),
        (D_END, 1 + 2 * (D_END - START) / (R_END - START), 5),
        (R_END, 3, 5),
        (10**6, 3, 5),
    ],
)
def test_the_paper_schedule_opens_the_limits(step, r_max, d_max):
    near(torch.stack(double(BatchRenorm).limits(number(step))), number([r_max, d_max]))


def test_the_schedule_ends_at_the_limits_that_were_chosen():
    layer = double(BatchRenorm, r_max=1.5, d_max=0.5)
    for step, r_max in ((0, 1.0), ((START + R_END) // 2, 1.25), (R_END, 1.5)):
        near(layer.limits(number(step))[0], number(r_max))


def test_a_schedule_of_other_steps_opens_the_limits_then():
    layer = double(BatchRenorm, start=2, r_end=6, d_end=4)
    for step, limits in ((2, [1, 0]), (3, [1.5, 2.5]), (4, [2, 5]), (6, [3, 5])):
        near(torch.stack(layer.limits(number(float(step)))), number([float(limit) for limit in limits]))


@pytest.mark.parametrize("step", [0, START + 1, 12_345, D_END, R_END + 1])
def test_the_counter_in_the_state_drives_the_schedule(step):
    layer = double(BatchRenorm)
    layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": torch.tensor(step)})
    state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    p = SimpleNamespace(**layer.options, weight=layer.weight, bias=layer.bias, training=True, **state)
    x = data(9).requires_grad_()
    wanted, _ = references.batch_renorm(x, p)
    gradient = torch.autograd.grad(wanted, x, data(50))[0]
    y = layer(x)
    near(y, wanted)
    near(torch.autograd.grad(y, x, data(50))[0], gradient)
    assert int(layer.num_batches_tracked) == step + 1


def test_the_first_steps_of_the_paper_schedule_are_bn():
    renorm, bn = double(BatchRenorm), double(BatchNorm, eps=1e-3)
    for seed in range(3):
        assert all(torch.allclose(*pair) for pair in zip(train_step(renorm, seed), train_step(bn, seed), strict=True))


def test_r_and_d_use_the_statistics_before_the_step_and_stay_in_their_limits():
    layer = double(BatchRenorm, 1.1, 0.2, "none", momentum=1.0)
    for seed in range(3):
        mean, std = layer.running_mean.clone(), layer.running_std.clone()
        with observing() as seen:
            layer(data(seed))
        near(seen["r"], (seen["std"] / std).clamp(1 / 1.1, 1.1))
        near(seen["d"], ((seen["mean"] - mean) / std).clamp(-0.2, 0.2))
        near(layer.running_std, seen["std"])


def test_a_running_std_below_the_root_of_eps_counts_as_that():
    layer = double(BatchRenorm, 1e9, 1e9, "none")
    with torch.no_grad():
        layer.running_std.zero_()
    x = data()
    near(layer.eval()(x), x / math.sqrt(layer.eps))
    near(layer.train()(x), x / math.sqrt(layer.eps))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_does_not_read_the_statistics_again_after_their_update():
    """With a plain copy in place of the snapshot its backward recomputes r and d from the new ones, in silence."""
    torch._dynamo.reset()
    eager = double(BatchRenorm, 1.5, 0.4, "none", momentum=0.3)
    for seed in range(6):
        train_step(eager, seed)
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, backend="inductor", fullgraph=True)
    for seed in range(6, 8):
        near(train_step(compiled, seed), train_step(eager, seed))


def test_one_value_per_channel_is_admitted():
    layer = double(BatchRenorm, schedule="none")
    with observing() as seen:
        y = layer(data(shape=(1, C)))
    near(y[0], seen["d"])


def test_batch_renorm_in_evaluation_tracks_training_of_small_drifting_batches_better_than_bn():
    """The paper's point: with batches of 2, what training computes is what evaluation will compute."""
    gap = {}
    for name, layer in (("brn", double(BatchRenorm, schedule="none", momentum=0.1)), ("bn", double(BatchNorm))):
        for seed in range(60):
            x = (
                torch.randn(2, C, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                + 0.01 * seed
            )
            evaluated = copy.deepcopy(layer).eval()(x)
            gap[name] = (layer(x) - evaluated).square().mean().item()
    assert gap["brn"] < 0.1 * gap["bn"]


# Moving average batch normalization.


def averaged(steps, window, warmup, renorm_after, clip, momentum=0.02, eps=1e-5):
    """Outputs and input gradients of a training (γ = 1, β = 0), with growing lists in place of rings."""
    ones = torch.ones(C, 1, 1, dtype=torch.float64)
    chis, psis, square, found = [], [], ones, []
    for t in range(1, steps + 1):
        x, g = data(t), data(t + 50)
        chis.append(x.square().mean((0, 2, 3), keepdim=True)[0])
        late = t > window and t >= warmup
        level = sum(chis[-window:]) / window if late else chis[-1]
        r = ((level + eps) / (square + eps)).sqrt().clamp(1 / clip, clip) if t > max(renorm_after, warmup) else ones
        square = (1 - momentum) * square + momentum * level
        z, g = x / (level + eps).sqrt(), g * r
        psis.append((g * z).mean((0, 2, 3), keepdim=True)[0])
        psi = sum(psis[-window:]) / window if late else psis[-1]
        found.append((r * z, (g - z * psi) / (level + eps).sqrt()))
    return found


@pytest.mark.parametrize(
    ("window", "warmup", "renorm_after", "clip"),
    [(3, 0, 0, 5.0), (3, 5, 7, 1.1), (1, 0, 4, 1.5), (4, 2, 100, 5.0), (2, 9, 0, 1.2)],
)
def test_the_rings_of_mabn_over_a_training_equal_lists(window, warmup, renorm_after, clip):
    layer = double(MovingAverageBatchNorm, N, window * N, warmup=warmup, renorm_after=renorm_after, clip=clip)
    for t, wanted in enumerate(averaged(12, window, warmup, renorm_after, clip), 1):
        near(train_step(layer, t), wanted)
    assert int(layer.num_batches_tracked) == 12


def test_the_gradient_of_mabn_is_exact_until_the_averages_begin():
    layer = double(MovingAverageBatchNorm, N, 2 * N, warmup=4)
    for t in range(1, 7):
        exact = copy.deepcopy(layer)
        x = data(t).requires_grad_()
        z = x / (x.square().mean((0, 2, 3), keepdim=True) + layer.eps).sqrt()
        wanted = torch.autograd.grad(z, x, data(t + 50))[0]
        assert torch.allclose(train_step(exact, t)[1], wanted) == (t < 4)
        train_step(layer, t)


def test_averaging_m_batches_divides_the_variance_of_the_statistic_by_m():
    levels = {}
    for window in (1, 8):
        layer = double(MovingAverageBatchNorm, 2, 2 * window, warmup=0, renorm_after=10**6)
        for seed in range(408):
            x = torch.randn(2, C, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            ratio = (x / layer(x)).detach()[0, :, 0, 0]
            levels.setdefault(window, []).append(ratio.square())
    variances = {window: torch.stack(found[8::8]).var(0).mean().item() for window, found in levels.items()}
    assert 4 < variances[1] / variances[8] < 16


def test_two_forwards_before_their_backwards_keep_their_own_slots():
    apart, together = (double(MovingAverageBatchNorm, N, 3 * N, warmup=0) for _ in range(2))
    for seed in (1, 2):
        train_step(apart, seed)
    (together(data(1).requires_grad_()) * data(51)).sum().add(
        (together(data(2).requires_grad_()) * data(52)).sum()
    ).backward()
    near(together.ring_psi, apart.ring_psi)
    assert apart.ring_psi[1:].all()


def test_psi_is_kept_when_only_the_parameters_need_a_gradient():
    layer, other = (double(MovingAverageBatchNorm, N, 3 * N) for _ in range(2))
    (layer(data(1)) * data(51)).sum().backward()
    train_step(other, 1)
    assert other.ring_psi[1].all()
    near(layer.ring_psi, other.ring_psi)


def test_a_step_without_backward_leaves_psi_alone_and_moves_the_rest():
    layer = double(MovingAverageBatchNorm, N, 3 * N)
    with torch.no_grad():
        layer(data())
    assert not layer.ring_psi.any()
    assert layer.ring_chi[1].all()
    assert int(layer.num_batches_tracked) == 1


def test_a_second_derivative_of_mabn_is_refused_with_respect_to_every_input():
    layer = double(MovingAverageBatchNorm, N, N)
    x, upstream = data().requires_grad_(), data(50).requires_grad_()
    (first,) = torch.autograd.grad(layer(x), x, upstream, create_graph=True)
    for inputs in ([x], [upstream], [layer.weight], [x, upstream]):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(first.sin().sum(), inputs, retain_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()
