"""What the dynamic sparse graph promises beyond other layers: which outputs it keeps, and when it projects W."""

import copy

import pytest
import torch
from harness import assert_near, assert_same, normal, run
from torch.nn import functional as F

from layers.backward.dsg import DSGConv2d
from layers.card import OptionError
from layers.observe import observing
from layers.search import Search, draw_projection, kept, thresholds

C = 6


def made(seed=0, **options):
    torch.manual_seed(seed)
    return DSGConv2d(C, **{"padding": 1, **options}, dtype=torch.float64)


def masked(layer, x):
    """The output, the mask and θ."""
    with observing() as seen:
        y = layer(x)
    return y, seen["mask"], seen["theta"]


def columns(outputs, inputs, k, eps):
    """The columns of R for a weight (outputs, inputs)."""
    return Search(torch.empty(outputs, inputs), k, eps, 3.0, 1).projection.shape[1]


def test_the_largest_outputs_of_sample_0_are_kept_less_the_threshold_itself():
    layer, x = made(sparsity=0.75), normal((3, C, 5, 4))
    _, mask, theta = masked(layer, x)
    scores = layer.conv(x)[0].flatten().sort(descending=True)
    assert theta.item() == scores.values[C * 20 // 4 - 1]
    assert set(mask[0].flatten().nonzero().flatten().tolist()) == set(scores.indices[: C * 20 // 4 - 1].tolist())


@pytest.mark.parametrize("threshold", ["first", "each"])
def test_a_shared_threshold_makes_kept_shares_vary_and_own_ones_do_not(threshold):
    _, mask, theta = masked(made(threshold=threshold, sparsity=0.8), normal((8, C, 9, 7)))
    counts = mask.flatten(1).sum(1)
    assert len(theta) == (8 if threshold == "each" else 1)
    assert counts[0] == kept(0.8, C * 63) - 1
    assert (counts == counts[0]).all() == (threshold == "each")


def test_sample_0_decides_for_all_in_evaluation_too_unless_each_has_its_own_threshold():
    x = normal((4, C, 5, 4))
    other = torch.cat([9 * x[:1] + 4, x[1:]])
    for threshold, alike in (("first", False), ("each", True)):
        layer = made(threshold=threshold, sparsity=0.8).eval()
        assert torch.equal(layer(x)[1:], layer(other)[1:]) == alike


@pytest.mark.parametrize("options", [{}, {"selection": "drs", "k": 5}, {"selection": "random"}, {"threshold": "each"}])
@pytest.mark.parametrize("train", [True, False])
def test_no_position_that_is_masked_has_an_output_and_every_other_has_one(options, train):
    layer, x = made(sparsity=0.6, **options).train(train), normal((4, C, 5, 7))
    with torch.no_grad():
        layer.norm.bias.fill_(3.0)
    with observing() as seen:
        y = layer(x)
    assert not y[~seen["mask"]].any()
    assert (y[seen["mask"]] != 0).all()


def test_without_the_second_mask_the_zeros_of_the_first_would_not_be_zeros():
    layer, x = made(sparsity=0.6), normal((4, C, 5, 7))
    _, mask, _ = masked(copy.deepcopy(layer), x)
    assert (layer.norm((layer.conv(x) * mask).relu())[~mask] != 0).all()


@pytest.mark.parametrize(("sparsity", "count", "wanted"), [(0.9, 10, 1), (0.9, 100, 10), (0.5, 7, 3), (0.99, 99, 0)])
def test_the_number_that_is_kept_is_that_of_decimals(sparsity, count, wanted):
    assert kept(sparsity, count) == wanted


def test_a_sparsity_that_keeps_nothing_is_refused_with_the_number_of_outputs():
    layer = made(sparsity=0.99)
    with pytest.raises(OptionError, match=r"sparsity=0.99 keeps none of the 72 outputs") as refused:
        layer(normal((2, C, 3, 4)))
    assert refused.value.option == "sparsity"
    assert layer(normal((2, C, 4, 5))).shape == (2, C, 4, 5)


def test_an_output_of_1_position_and_a_batch_of_1_work():
    y, mask, _ = masked(made(padding=0), normal((2, C, 3, 3)))
    assert y.shape == mask.shape == (2, C, 1, 1)
    assert mask[0].sum() == 2
    y, mask, _ = masked(made(), normal((1, C, 2, 3)))
    assert mask.sum() == 17
    assert y[mask].any()


def test_equal_outputs_are_all_dropped():
    layer = made(kernel_size=1, padding=0)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
    y, mask, _ = masked(layer, torch.ones(2, C, 3, 3, dtype=torch.float64))
    assert not mask.any()
    assert not y.any()


def test_k_follows_the_bound_and_is_at_most_the_weights_of_a_filter():
    assert [columns(outputs, 5000, None, 0.5) for outputs in (64, 128, 256, 512)] == [199, 232, 266, 299]
    assert columns(64, 54, None, 0.5) == columns(64, 54, 1000, 0.5) == 54
    assert columns(64, 54, 7, 0.5) == 7
    assert columns(1, 54, None, 0.5) == 1


@pytest.mark.parametrize("s", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_entries_of_r_are_ternary_in_their_shares(s, dtype):
    torch.manual_seed(0)
    drawn = draw_projection(torch.empty(300, 400, dtype=dtype), s)
    root = torch.tensor(s, dtype=torch.float64).sqrt().to(dtype)
    for value, share in ((root, 0.5 / s), (-root, 0.5 / s)):
        assert (drawn == value).double().mean().item() == pytest.approx(share, abs=0.01)
    assert set(drawn.double().unique().tolist()) <= {-root.item(), 0.0, root.item()}


@pytest.mark.parametrize("threshold", ["first", "each"])
def test_with_all_columns_orthogonal_the_search_is_the_oracle(threshold):
    layer = made(selection="drs", k=1000, threshold=threshold)
    size = layer.search.projection.shape[0]
    layer.search.projection.copy_(torch.linalg.qr(normal((size, size))).Q * size**0.5)
    oracle = made(threshold=threshold)
    oracle.load_state_dict({n: t for n, t in layer.state_dict().items() if not n.startswith("search")})
    x = normal((3, C, 5, 4))
    found, wanted = masked(layer, x), masked(oracle, x)
    assert torch.equal(found[1], wanted[1])
    assert_near(found[0], wanted[0], 1e-12)


def test_w_is_projected_in_the_first_and_every_nth_training_step_and_never_in_evaluation():
    layer, x = made(selection="drs", k=5, project_every=3), normal((3, C, 5, 4))
    moved = []
    for _ in range(7):
        layer.eval()(x)
        before = layer.search.reduced.clone()
        with torch.no_grad():
            layer.conv.weight.mul_(1.5)
        layer.train()(x)
        moved.append(not torch.equal(layer.search.reduced, before))
        if moved[-1]:
            assert_near(layer.search.reduced, layer.search.projected(layer.conv.weight), 1e-15)
    assert moved == [True, False, False, True, False, False, True]


def test_a_projection_by_hand_is_used_at_once():
    layer, x = made(selection="drs", k=5).eval(), normal((3, C, 5, 4))
    before = masked(layer, x)[1]
    with torch.no_grad():
        layer.conv.weight.copy_(normal(layer.conv.weight.shape, seed=5))
    assert torch.equal(masked(layer, x)[1], before)
    layer.search.refresh(layer.conv.weight)
    assert not torch.equal(masked(layer, x)[1], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("selection", ["oracle", "drs"])
def test_half_precision_keeps_what_float64_keeps(dtype, selection):
    layer, x = made(selection=selection).to(dtype), normal((4, C, 16, 16), dtype=dtype)
    mask = masked(copy.deepcopy(layer), x)[1]
    wide = masked(layer.double(), x.double())[1]
    assert (mask != wide).double().mean() < 1e-3


def test_autocast_keeps_what_float32_keeps():
    layer, x = made().float(), normal((4, C, 16, 16), dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = masked(copy.deepcopy(layer), x)[1]
    assert_same(mask, masked(layer, x.float())[1])


def test_random_masks_follow_torchs_seed_and_differ_between_calls():
    layer, x = made(selection="random").eval(), normal((3, C, 5, 4))
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(masked(layer, x)[1])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_not_a_number_does_not_vanish_behind_the_mask():
    layer, x = made(sparsity=0.9).eval(), normal((3, C, 5, 4))
    x[2, 0, 2, 2] = torch.nan
    y = layer(x)
    assert y[2, :, 1:4, 1:4].isnan().all()
    assert not y[:2].isnan().any()


@pytest.mark.parametrize("selection", ["oracle", "drs"])
def test_the_mask_of_an_empty_batch_is_empty_and_nothing_is_projected(selection):
    layer = made(selection=selection, k=5)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        layer.conv.weight.mul_(2)
    y, mask, theta = masked(layer, normal((0, C, 5, 4)))
    assert y.shape == mask.shape == (0, C, 5, 4)
    assert theta.tolist() == [0.0]
    if selection == "drs":
        assert_same(layer.search.reduced, before["search.reduced"])


def test_thresholds_are_the_largest_but_so_many():
    scores = torch.tensor([[5.0, 1, 4, 2, 3, 0], [0, 0, 9, 0, 0, 8]])
    assert thresholds(scores, 0.5, each=True).tolist() == [3.0, 0.0]
    assert thresholds(scores, 0.5, each=False).tolist() == [3.0]


def test_gradients_are_those_of_the_dense_block_times_the_mask():
    layer, x = made(sparsity=0.6), normal((4, C, 5, 7))
    _, mask, _ = masked(copy.deepcopy(layer), x)
    found = run(copy.deepcopy(layer), x)
    leaf = x.clone().requires_grad_()
    z = F.relu(F.conv2d(leaf, layer.conv.weight, padding=1) * mask)
    y = F.batch_norm(z, None, None, layer.norm.weight, layer.norm.bias, True, 0.1, layer.norm.eps) * mask
    y.backward(normal(y.shape, seed=7))
    assert_near(found.x, leaf.grad, 1e-10)
    assert_near(found.parameters["conv.weight"], layer.conv.weight.grad, 1e-10)
