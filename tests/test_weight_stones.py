"""The stones of weights on the edge cases of a filter: derivatives, half precision, start, state, geometry."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
from harness import assert_near
from kernels import STONES, kernel, reparametrized, with_weight
from torch import nn
from torch.nn.utils import parametrize

from layers import catalog
from layers.card import OptionError
from layers.observe import observing
from layers.weight.cen_conv import CenConv2d
from layers.weight.weight_norm import WeightNormConv2d
from layers.weight.weight_standardization import WSConv2d
from layers.weights import weights


@pytest.mark.parametrize("name", STONES)
def test_first_and_second_derivatives_of_every_parametrization(name):
    for layer in (nn.Conv1d(4, 4, 3, groups=2), nn.ConvTranspose1d(4, 6, 2, groups=2)):
        reparametrized(name, layer.double())
        owner = layer.parametrizations["weight"]
        tensors = [t.detach().clone().requires_grad_() for t in owner.parameters()]
        names = [n for n, _ in owner.named_parameters()]

        def used(*values, owner=owner, names=names):
            return torch.func.functional_call(owner, dict(zip(names, values, strict=True)), ())

        assert torch.autograd.gradcheck(used, tensors)
        assert torch.autograd.gradgradcheck(used, tensors)


@pytest.mark.parametrize("name", STONES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_one_rounding_away_from_float64(name, dtype):
    rounded = kernel((16, 32, 3, 3), 0.02, 0.5, dtype)
    layer = with_weight(STONES[name](32, 16), rounded)
    wide = copy.deepcopy(layer).double()
    assert layer.effective_weight().dtype == dtype
    assert_near(layer.effective_weight().double(), wide.effective_weight(), torch.finfo(dtype).eps)
    conv = reparametrized(name, with_weight(nn.Conv2d(32, 16, 3), rounded))
    assert_near(conv.weight.double(), copy.deepcopy(conv).double().weight, torch.finfo(dtype).eps)


def test_a_filter_of_zeros_is_nan_or_divided_by_eps():
    layer = WeightNormConv2d(4)
    layer.weight.data[1] = 0
    assert layer.effective_weight()[1].isnan().all()
    assert layer.effective_weight()[0].isfinite().all()
    bounded = WeightNormConv2d(4, eps=1e-6)
    bounded.weight.data[1] = 0
    bounded.effective_weight().sum().backward()
    assert bounded.effective_weight()[1].abs().max() == 0
    assert all(p.grad.isfinite().all() for p in (bounded.weight, bounded.gain))


@pytest.mark.parametrize("name", ["weight-standardization", "scaled-ws", "cen-conv"])
def test_filters_of_one_weight_are_refused_as_layer_and_parametrization(name):
    with pytest.raises(OptionError, match=r"a filter of 1 weight .*: use a larger kernel or fewer groups"):
        STONES[name](4, kernel_size=1, groups=4)
    with pytest.raises(OptionError, match="a filter of 1 weight cannot be centred"):
        reparametrized(name, nn.Conv1d(4, 8, 1, groups=4))
    with pytest.raises(OptionError, match=r"BatchNorm2d has a weight of shape \(4,\): a weight of 2 or more axes"):
        reparametrized(name, nn.BatchNorm2d(4))


@pytest.mark.parametrize("name", STONES)
def test_what_a_parametrization_is_not_for_is_refused_by_name(name):
    kind = importlib.import_module(catalog.stone(name).module).parametrization
    for layer, words in (
        (nn.LazyLinear(4), "LazyLinear has no shapes yet: run it once first"),
        (torch.ones(3, 4), f"{kind.__name__} takes the layer, not its weight \\(a Tensor\\)"),
        (nn.ReLU(), "ReLU has no weight: a weight of 2 or more axes"),
        (nn.Conv2d(3, 4, 3, dtype=torch.complex64), "complex64: it must be real"),
    ):
        with pytest.raises(OptionError, match=words):
            kind(layer)
    layer = nn.Linear(6, 4)
    for other, tensor, shape in ((layer, "bias", r"\(4,\)"), (nn.Linear(4, 6), "weight", r"\(6, 4\)")):
        with pytest.raises(OptionError, match=r"was made for a weight of shape \(4, 6\), not of " + shape):
            parametrize.register_parametrization(other, tensor, kind(layer))
    reparametrized(name, layer)
    with pytest.raises(OptionError, match=r"shape \(4, 6\), not of \(5, 6\)"):
        layer.weight = torch.ones(5, 6)


def test_classifying_the_parameters_of_a_model_computes_no_parametrization():
    kinds = (nn.Linear(6, 4), nn.Conv1d(6, 4, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Embedding(5, 4))
    model = nn.Sequential(*map(nn.utils.parametrizations.spectral_norm, kinds))
    before = copy.deepcopy(model.state_dict())
    found = [weight for weight in weights(model) if weight.kind != "bias"]
    assert [weight.kind for weight in found] == ["linear", "conv", "transposed", "other"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(OptionError, match=r"0\.weight has no shape yet: run the model once first"):
        weights(nn.Sequential(nn.LazyConv2d(3, 3)))


def test_layers_start_as_their_init_says():
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3)
    for name, kind in STONES.items():
        torch.manual_seed(0)
        assert torch.equal(kind(6, 8).weight, plain.weight), name
    torch.manual_seed(0)
    assert_near(WeightNormConv2d(6, 8).effective_weight(), plain.weight, 1e-6)
    whole = WeightNormConv2d(6, 8, norm="tensor")
    assert_near(whole.gain, whole.weight.norm(), 1e-6)
    drawn = WeightNormConv2d(64, 64, init="paper")
    assert drawn.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert (drawn.gain == 1).all()
    assert (drawn.bias == 0).all()
    assert CenConv2d(64, 64, init="normal").weight.std().item() == pytest.approx(1, rel=0.02)
    drawn.gain.data += 1
    drawn.reset_parameters()
    assert (drawn.gain == 1).all()
    kept = WeightNormConv2d(6, 8)
    kept.reset_parameters()
    assert_near(kept.gain.flatten(), kept.weight.flatten(1).norm(dim=1), 1e-6)


def test_parametrizations_start_as_their_init_says_and_then_take_what_is_assigned():
    for name, options, std in (("weight-norm", {"init": "paper"}, 0.05), ("cen-conv", {"init": "normal"}, 1.0)):
        layer = reparametrized(name, nn.Conv2d(64, 64, 3), **options)
        owner = layer.parametrizations["weight"]
        learnt = owner.original1 if name == "weight-norm" else owner.original
        assert learnt.std().item() == pytest.approx(std, rel=0.02)
        layer.weight = 0.3 * torch.ones(64, 64, 3, 3)
        assert (learnt == 0.3).all()


def test_statistics_are_seen_and_have_the_size_of_the_outputs():
    for name, kind in STONES.items():
        layer = kind(12, 8, groups=4)
        with observing() as seen:
            layer(torch.randn(2, 12, 5, 5))
        card = catalog.stone(name).card
        values = card.symbols((2, 12, 5, 5), layer.options)
        assert {n: tuple(t.shape) for n, t in seen.items()} == {
            s.name: s.at(values) for s in card.statistics if s.at(values)
        }
    with observing() as seen:
        WeightNormConv2d(3, norm="tensor").effective_weight()
    assert seen["length"].shape == ()


def test_the_reasons_for_leaving_a_layer_alone():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 4, 3),
            "depthwise": nn.Conv2d(4, 4, 1, groups=4),
            "linear": nn.Linear(4, 4),
            "norm": nn.BatchNorm2d(4),
            "stone": WSConv2d(4),
        }
    )
    kernels = {weight.name: weight for weight in weights(model)}
    for name in STONES:
        excludes = importlib.import_module(catalog.stone(name).module).excludes
        reasons = {key: excludes(weight) for key, weight in kernels.items()}
        assert reasons["conv.weight"] == ""
        assert all(reasons[key] for key in ("conv.bias", "norm.weight", "stone.weight"))
        assert bool(reasons["linear.weight"]) == bool(reasons["depthwise.weight"]) == (name != "weight-norm")


@pytest.mark.parametrize(("name", "options"), [("weight-norm", {}), ("weight-standardization", {"eps": 0.0})])
def test_the_norm_of_a_weight_only_grows_under_sgd_with_momentum_and_not_with_decay(name, options):
    def norms(**settings):
        torch.manual_seed(0)
        layer = STONES[name](4, 4, bias=False, **options).double()
        x, wanted = torch.randn(8, 4, 5, 5, dtype=torch.float64), torch.randn(8, 4, 3, 3, dtype=torch.float64)
        optimizer = torch.optim.SGD([layer.weight], lr=0.5, **settings)
        found = [layer.weight.detach().flatten(1).norm(dim=1)]
        for _ in range(60):
            optimizer.zero_grad()
            (layer(x) - wanted).square().mean().backward()
            optimizer.step()
            found.append(layer.weight.detach().flatten(1).norm(dim=1))
        return torch.stack(found).diff(dim=0)

    assert (norms() >= 0).all()
    assert (norms(momentum=0.9) >= 0).all()
    assert (norms(momentum=0.9, weight_decay=0.1) < 0).any()


def test_stones_fold_to_plain_convolutions_that_can_be_pickled():
    x = torch.randn(2, 12, 6, 5)
    for kind in STONES.values():
        layer = kind(12, 8, (3, 2), padding=(1, 0), groups=2, padding_mode="reflect", bias=False).eval()
        plain = layer.fold()
        assert (type(plain), plain.training, plain.bias) == (nn.Conv2d, False, None)
        assert_near(pickle.loads(pickle.dumps(plain))(x), layer(x), 1e-6)


@pytest.mark.parametrize("name", STONES)
def test_parametrized_layers_compile_whole_and_run_under_autocast(name):
    layer = reparametrized(name, nn.Conv2d(4, 6, 3))
    x = torch.randn(2, 4, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_near(compiled(x), layer(x), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert_near(layer(x).float(), layer.float()(x).float(), 2e-2)
