"""The operation counter against counts done by hand, where other tools are wrong or silent."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from profiles.counting.backward import loss
from profiles.counting.flops import Counting

N, C, H, W = 2, 8, 5, 4
E = N * C * H * W


def counted(function, *tensors):
    with Counting() as counting:
        function(*tensors)
    assert not counting.count.uncounted
    return counting.count


def both(module, x):
    """Forward and backward counts of ``module`` on ``x``."""
    with Counting() as forward:
        y = module(x)
    scalar = loss(y, torch.ones_like(y))
    with Counting() as backward:
        scalar.backward()
    return forward.count, backward.count


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_convolution_counts_its_groups_in_every_pass(groups):
    conv = nn.Conv2d(C, 16, 3, padding=1, groups=groups, bias=False)
    forward, backward = both(conv, torch.randn(N, C, H, W, requires_grad=True))
    macs = N * 16 * H * W * (C // groups) * 9
    assert (forward.macs, forward.flops) == (macs, 2 * macs)
    assert (backward.macs, backward.flops) == (2 * macs, 4 * macs)


def test_convolution_without_input_gradient_costs_one_pass_less():
    _, backward = both(nn.Conv2d(C, 16, 3, bias=False), torch.randn(N, C, H, W))
    assert backward.macs == N * 16 * (H - 2) * (W - 2) * C * 9


def test_transposed_convolution():
    conv = nn.ConvTranspose2d(C, 6, 3, stride=2, bias=False)
    forward, backward = both(conv, torch.randn(N, C, H, W, requires_grad=True))
    assert forward.macs == N * H * W * C * 6 * 9
    assert backward.macs == 2 * forward.macs


def test_softmax_and_its_backward():
    x = torch.randn(N * H * W, C, requires_grad=True)
    forward, backward = both(nn.Softmax(1), x)
    assert forward.by_op == {"_softmax": E + 2 * E + 2 * (E - E // C)}
    assert backward.by_op == {"_softmax_backward_data": 3 * E + (E - E // C)}


def test_the_softmax_of_attention_is_one():
    assert counted(lambda: torch.ops.aten._safe_softmax(torch.randn(E // C, C), 1)).flops == 5 * E - 2 * (E // C)


def test_a_normalized_weight_counts_its_norms_and_its_scaling():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(C, 16, 1, bias=False))
    forward, backward = both(conv, torch.randn(N, C, H, W))
    assert forward.by_op["_weight_norm_interface"] == 3 * 16 * C + 16
    assert backward.by_op["_weight_norm_interface_backward"] == 5 * 16 * C + 3 * 16
    assert not forward.uncounted
    assert not backward.uncounted


def test_bias_is_an_addition_not_a_mac():
    conv = nn.Conv2d(C, 16, 1)
    forward, _ = both(conv, torch.randn(N, C, H, W, requires_grad=True))
    assert forward.macs == N * 16 * H * W * C
    assert forward.flops == 2 * forward.macs + N * 16 * H * W


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.matmul, [(4, 5), (8, 5, 7)], 8 * 4 * 5 * 7),  # fvcore: 140, eight times too low
        (lambda a: a[:1] @ a.mT, [(8, 5, 7)], 8 * 5 * 7 * 5),
        (lambda a, b: torch.einsum("nchw,ndhw->ncd", a, b), [(3, 17, 13, 11)] * 2, 3 * 17 * 17 * 13 * 11),
        (F.linear, [(6, 5), (7, 5)], 6 * 5 * 7),
    ],
    ids=["unfold-matmul", "broadcast", "einsum", "linear"],
)  # fmt: skip
def test_matrix_products(function, shapes, macs):
    count = counted(function, *(torch.randn(shape) for shape in shapes))
    assert (count.macs, count.flops) == (macs, 2 * macs)


def test_dead_code_is_executed_and_counted():
    a = torch.randn(6, 6)
    assert counted(lambda a: (a @ a, a @ a)[1], a).macs == 2 * 6**3


@pytest.mark.parametrize(
    ("module", "forward", "backward"),
    [
        (nn.GroupNorm(4, C), 7 * E + 2 * N * 4, 11 * E - 2 * C),
        (nn.GroupNorm(4, C, affine=False), 5 * E + 2 * N * 4, 7 * E),
        (nn.LayerNorm([C, H, W]), 7 * E + 2 * N, 11 * E - 2 * C * H * W),
        (nn.BatchNorm2d(C, track_running_stats=False), 7 * E + 2 * C, 11 * E - 2 * C),
        (nn.BatchNorm2d(C).eval(), 2 * E + 5 * C, 4 * E - 2 * C),
        (nn.BatchNorm2d(C, affine=False).eval(), 2 * E + 4 * C, E),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_fused_normalizations_count_as_their_definition(module, forward, backward):
    first, second = both(module, torch.randn(N, C, H, W, requires_grad=True))
    assert (first.flops, second.flops) == (forward, backward)
    assert (first.status, second.status) == ("complete", "complete")


def test_a_handwritten_normalization_costs_what_the_fused_one_costs():
    x = torch.randn(N, C, H, W)

    def by_hand(x):
        centred = x - x.mean((2, 3), keepdim=True)
        return centred * (centred.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()

    assert counted(by_hand, x).flops == counted(lambda x: F.group_norm(x, C), x).flops


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x + x, E),
        (lambda x: x.add(x, alpha=2), 2 * E),
        (lambda x: torch.addcmul(x, x, x), 2 * E),
        (lambda x: x.sum(), E - 1),
        (lambda x: x.mean(1), E),
        (lambda x: x.clamp(0, 1), 2 * E),
        (lambda x: F.relu(x), E),
        (lambda x: F.pixel_shuffle(x, 2), 0),
        (lambda x: x.flatten().clone()[::2], 0),
        (lambda x: torch._foreach_mul([x, x], 2.0), 2 * E),
        (lambda x: torch.zeros(3, dtype=torch.long).add_(1), 0),
    ],
    ids=range(11),
)  # fmt: skip
def test_elementwise_and_free_operations(function, flops):
    assert counted(function, torch.randn(N, C, H, W)).flops == flops


def test_an_operation_without_formula_is_named():
    with Counting() as counting:
        torch.linalg.eigvals(torch.eye(3))
    assert counting.count.status == "partial"
    assert "linalg_eig" in counting.count.uncounted


@pytest.mark.parametrize(
    ("decompose", "shape", "flops"),
    [
        (torch.linalg.eigh, (5, 5), 9 * 5**3),
        (torch.linalg.eigh, (3, 4, 4), 3 * 9 * 4**3),
        (lambda a: torch.linalg.svd(a, full_matrices=False), (7, 4), 6 * 7 * 4**2 + 20 * 4**3),
        (torch.linalg.svdvals, (2, 4, 7), 2 * (6 * 7 * 4**2 + 20 * 4**3)),
        (torch.linalg.qr, (9, 3), 4 * 9 * 3**2 - 4 * 3**3 // 3),
    ],
)
def test_decompositions_count_nominally_and_each_matrix_of_a_batch(decompose, shape, flops):
    matrix = torch.randn(shape)
    matrix = matrix @ matrix.mT if decompose is torch.linalg.eigh else matrix
    with Counting() as counting:
        decompose(matrix)
    assert (counting.count.flops, counting.count.status) == (flops, "complete")


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adamax", "NAdam"])
def test_a_step_over_lists_of_tensors_counts_what_the_loop_over_them_does(kind):
    def step(foreach):
        parameters = [nn.Parameter(torch.ones(10)) for _ in range(3)]
        made = getattr(torch.optim, kind)(parameters, lr=0.1, weight_decay=0.01, foreach=foreach)
        for parameter in parameters:
            parameter.grad = torch.ones(10)
        made.step()
        return counted(made.step)

    assert step(True).flops == step(False).flops > 0


def test_an_operation_in_place_on_a_list_counts_its_first_argument():
    tensors = [torch.ones(3, 4), torch.ones(5)]
    assert counted(torch._foreach_mul_, tensors, tensors).flops == 17
    assert counted(torch._foreach_add_, tensors, tensors).by_op == {"_foreach_add_": 17}


@pytest.mark.parametrize("foreach", [True, False])
def test_plain_groups_of_a_grassmannian_optimizer_are_counted_in_both_ways(foreach):
    from layers.optim.sgd_g import SGDG

    parameter = nn.Parameter(torch.ones(10))
    made = SGDG([parameter], manifold=False, momentum=0.9, foreach=foreach)
    parameter.grad = torch.ones(10)
    made.step()
    assert counted(made.step).flops == 60  # (m ← βm + g: 2), (g + βm: 2), (p − ηd: 2) for each of 10
