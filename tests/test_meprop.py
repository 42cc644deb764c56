"""meProp: what is special about it, and the convolution of the same rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers.backward.meprop import MePropConv2d, MePropLinear
from layers.card import OptionError
from layers.convert import convert, fold


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(layer, x, upstream=None):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return torch.autograd.grad(
        y, (leaf, *layer.parameters()), normal(*y.shape, seed=7) if upstream is None else upstream
    )


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"k": 3}, 3),
        ({"k": 1}, 1),
        ({}, 1),
        ({"ratio": 0.26}, 3),
        ({"ratio": 0.01}, 1),
        ({"k": 0}, 12),
        ({"k": 99}, 12),
        ({"ratio": None}, 12),
        ({"ratio": 1.0}, 12),
    ],
)
def test_so_many_rows_of_the_weight_get_a_gradient_and_every_bias(options, kept):
    _, of_weight, of_bias = gradients(MePropLinear(7, 12, **options, dtype=torch.float64), normal(5, 7))
    assert int(of_weight.any(1).sum()) == kept
    assert of_bias.all()


def test_the_rows_are_those_of_the_largest_sums_of_magnitudes():
    upstream = torch.tensor([[3.0, 0, -2, 0], [-3.0, 5, -2, 0.5]], dtype=torch.float64)  # sums 6, 5, 4, 0.5
    layer = MePropLinear(3, 4, k=2, dtype=torch.float64)
    of_x, of_weight, _ = gradients(layer, normal(2, 3), upstream)
    assert of_weight.any(1).tolist() == [True, True, False, False]
    torch.testing.assert_close(of_x, upstream[:, :2] @ layer.weight[:2])


def test_per_example_each_row_has_its_own():
    upstream = torch.tensor([[3.0, 1, -2], [-1.0, 4, 0.5]], dtype=torch.float64)
    layer = MePropLinear(5, 3, k=1, unified=False, dtype=torch.float64)
    of_x, *_ = gradients(layer, normal(2, 5), upstream)
    torch.testing.assert_close(of_x, torch.stack([3 * layer.weight[0], 4 * layer.weight[1]]))


def test_axes_between_batch_and_channels_are_examples_too():
    layer, x, upstream = MePropLinear(7, 12, k=3, dtype=torch.float64), normal(2, 5, 7), normal(2, 5, 12, seed=7)
    of_x, *others = gradients(layer, x, upstream)
    of_rows, *wanted = gradients(layer, x.flatten(0, 1), upstream.flatten(0, 1))
    torch.testing.assert_close(of_x.flatten(0, 1), of_rows)
    torch.testing.assert_close(others, wanted)


def test_a_zero_gradient_gives_zeros():
    for found in gradients(MePropLinear(7, 12, k=3, dtype=torch.float64), normal(5, 7), torch.zeros(5, 12).double()):
        assert not found.any()


def test_half_precision_is_selected_by_sums_in_float32():
    upstream = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)
    upstream[:, 1] = 1.0078125  # 1 + 2⁻⁷: sums in bfloat16 stop at 256 alike
    _, of_weight, _ = gradients(MePropLinear(3, 2, k=1, dtype=torch.bfloat16), torch.ones(4096, 3).bfloat16(), upstream)
    assert of_weight.any(1).tolist() == [False, True]


@pytest.mark.parametrize("make", [MePropLinear, MePropConv2d])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": -1}, r"k=-1 is out of range: it must be an integer ≥ 0 or none"),
        ({"ratio": 0.0}, r"ratio=0\.0 is out of range"),
        ({"ratio": 1.5}, r"ratio=1\.5 is out of range"),
        ({"k": 3, "ratio": 0.5}, r"k=3 and ratio=0\.5 both say how many outputs are kept; give one"),
    ],
)
def test_bad_options_are_refused_by_name(make, options, words):
    with pytest.raises(OptionError, match=words):
        make(4, **options)


def test_double_backward_is_refused_unless_all_is_kept():
    for layer, refused in ((MePropLinear(4, k=2), True), (MePropConv2d(4, k=2), True), (MePropLinear(4, k=4), False)):
        x = torch.ones(2, 4, 3, 3)[(...,) if isinstance(layer, MePropConv2d) else (..., 0, 0)].requires_grad_()
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        if refused:
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(first.sum(), x)
        else:
            assert torch.autograd.grad(first.sum(), x)[0].any()


CONVOLUTIONS = [
    {"k": 3},
    {"k": 3, "unified": False},
    {"ratio": 0.5, "stride": 2, "padding": 1, "groups": 3},
    {"k": 5, "padding": 2, "dilation": 2, "padding_mode": "circular", "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_has_the_dense_gradients_of_what_is_kept(options):
    layer, x = MePropConv2d(6, 9, **options, dtype=torch.float64), normal(4, 6, 7, 6)
    y = layer(x)
    plain = fold(nn.Sequential(layer))[0]
    torch.testing.assert_close(plain(x), y)
    upstream = normal(*y.shape, seed=7)
    k = layer.k or math.floor(layer.ratio * 9 + 0.5)
    sizes = upstream.abs().sum((0, 2, 3), keepdim=True).expand_as(upstream) if layer.unified else upstream.abs()
    kept = torch.where(sizes >= sizes.sort(1, descending=True).values[:, k - 1 : k], upstream, 0)
    found, wanted = gradients(layer, x, upstream), gradients(plain, x, kept)
    torch.testing.assert_close(found[:2], wanted[:2])
    if layer.bias is not None:
        torch.testing.assert_close(found[2], upstream.sum((0, 2, 3)))


def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def test_convert_replaces_linear_layers_and_convolutions_and_keeps_their_parameters():
    model = small()
    x, parameters = torch.randn(3, 1, 8, 8), list(model.parameters())
    before = model(x)
    assert convert(model, "meprop", k=2) is model
    assert [type(layer) for layer in model if list(layer.parameters())] == [MePropConv2d, MePropLinear, MePropLinear]
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), before)
    F.cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
    assert [int(layer.weight.grad.flatten(1).any(1).sum()) for layer in (model[0], model[3], model[5])] == [2, 2, 2]


def test_fold_gives_torchs_layers_back_with_the_same_parameters():
    model = convert(small(), "meprop", k=2).eval()
    x, before = torch.randn(3, 1, 8, 8), list(model[3].parameters())
    y = model(x)
    fold(model)
    assert [type(layer) for layer in model if list(layer.parameters())] == [nn.Conv2d, nn.Linear, nn.Linear]
    assert all(ours is theirs for ours, theirs in zip(model[3].parameters(), before, strict=True))
    assert torch.equal(model(x), y)
    assert not model[3].training


def test_convert_leaves_the_last_layer_dense_where_only_says_so():
    model = convert(small(), "meprop", only=["0", "3"], ratio=0.25)
    assert type(model[5]) is nn.Linear
    assert model[3].options["ratio"] == 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": -2}, "0: k=-2 is out of range"),
        ({"out_channels": 3}, "out_channels: every layer of the model keeps its own"),
        ({"only": "1"}, r"only: '1' has no torch\.nn\.Linear or torch\.nn\.Conv2d for meprop"),
        ({"kk": 3}, "did you mean k"),
    ],
)
def test_convert_refuses_in_words_before_anything_is_changed(options, words):
    model = small()
    modules = list(model.modules())
    with pytest.raises(OptionError, match=words):
        convert(model, "meprop", **options)
    assert list(model.modules()) == modules


def test_a_rule_that_replaces_no_layer_is_not_converted():
    with pytest.raises(OptionError, match="omd-modulation stands in the place of no layer of torch"):
        convert(small(), "omd-modulation")


def test_checkpoints_of_torch_load():
    plain, layer = nn.Linear(5, 3), MePropLinear(5, 3)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(layer(x), plain(x))


def test_training_by_a_sixteenth_of_the_gradient_still_descends():
    torch.manual_seed(0)
    x, target = torch.randn(64, 20), torch.randint(0, 4, (64,))
    model = nn.Sequential(MePropLinear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
