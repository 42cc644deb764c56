"""What dynamic region-aware convolution promises beyond other layers: no m-fold work, hard choices, operators."""

import copy
import itertools

import pytest
import torch
from harness import assert_near, assert_same, normal, run
from torch.nn import functional as F

from layers import region_factors, region_passes
from layers.conv.drconv import DRConv2d
from layers.observe import observing
from layers.region_factors import Maker
from layers.region_passes import Windows, define
from layers.regions import choice, operator, region_convolution
from profiles.counting.flops import Counting
from profiles.counting.workspace import workspace

C, OUTPUTS, M = 4, 3, 3
GEOMETRIES = [
    Windows((3, 3), (1, 1), (1, 1), (1, 1)),
    Windows((1, 1), (1, 1), (0, 0), (1, 1)),
    Windows((2, 3), (2, 1), (0, 2), (1, 1)),
    Windows((3, 2), (3, 2), (4, 1), (2, 3)),
    Windows((1, 1), (2, 3), (1, 0), (1, 1)),
    Windows((6, 7), (1, 1), (0, 0), (1, 1)),
]


def tensors(windows, seed=0, guide=None, outputs=OUTPUTS):
    """x, guide and what filters are made from for ``windows``."""
    x = normal((2, C, 6, 7), seed=seed)
    kernel, stride, padding, dilation = windows
    sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    shapes = ((2, M * M, *kernel), (M * C * outputs, M, 1, 1), (M * C * outputs,))
    maker = Maker(*(normal(shape, seed=seed + 3 + i) for i, shape in enumerate(shapes)))
    return x, normal((2, M, *size), seed=seed + 2) if guide is None else guide.expand(2, M, *size), maker


@pytest.mark.parametrize("windows", GEOMETRIES)
@pytest.mark.parametrize(
    "wants", [(True, True, True), (False, True, False), (True, False, False), (False, False, True)]
)
def test_the_passes_compute_the_definition(windows, wants):
    x, guide, maker = tensors(windows)
    leaves = [t.requires_grad_(wanted) for t, wanted in zip((x, maker.filters(C), guide), wants, strict=True)]
    regions = choice(guide)
    y = define(*leaves, regions, windows)
    upstream = normal(y.shape, seed=7)
    wanted = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], upstream))
    x, filters, guide = (leaf.detach() for leaf in leaves)
    assert_near(region_passes.forward(x, filters, regions, windows), y.detach(), 1e-13)
    gradients = region_passes.backward(upstream, x, filters, guide, regions, windows, wants)
    for found, alive in zip(gradients, wants, strict=True):
        assert (found is not None) == alive
        if alive:
            assert_near(found, next(wanted), 1e-12)


@pytest.mark.parametrize("outputs", [OUTPUTS, 400])  # sample by sample, and both at once, which the weights outnumber
@pytest.mark.parametrize("windows", GEOMETRIES)
@pytest.mark.parametrize("wants", [(True,) * 5, *(tuple(i == j for i in range(5)) for j in range(5))])
def test_the_passes_without_filters_compute_the_definition(windows, wants, outputs):
    x, guide, maker = tensors(windows, outputs=outputs)
    leaves = [t.requires_grad_(wanted) for t, wanted in zip((x, *maker, guide), wants, strict=True)]
    regions = choice(guide)
    y = define(x, maker.filters(C), guide, regions, windows)
    upstream = normal(y.shape, seed=7)
    wanted = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], upstream))
    x, *parts, guide = (leaf.detach() for leaf in leaves)
    assert_near(region_factors.forward(x, Maker(*parts), regions, windows), y.detach(), 1e-13)
    gradients = region_factors.backward(upstream, x, Maker(*parts), guide, regions, windows, wants)
    for found, alive in zip(gradients, wants, strict=True):
        assert (found is not None) == alive
        if alive:
            assert_near(found, next(wanted), 1e-12)


@pytest.mark.parametrize("only", range(M))
@pytest.mark.parametrize("windows", GEOMETRIES[:2])  # without filters and by filters
def test_a_region_without_positions_costs_nothing_and_its_filters_get_no_gradient(only, windows):
    guide = torch.zeros(M, 1, 1, dtype=torch.float64)
    guide[only] = 1
    x, guide, maker = tensors(windows, guide=guide)
    maker.weight.requires_grad_()
    y = region_convolution(x, maker, guide, choice(guide), windows)
    kernels = maker.filters(C)[only].permute(0, 3, 2, 1).unflatten(3, windows.kernel)
    pairs = zip(x, kernels, strict=True)
    alone = torch.cat([F.conv2d(image[None], kernel, padding=windows.padding) for image, kernel in pairs])
    assert_near(y, alone, 1e-13)
    (found,) = torch.autograd.grad(y.sum(), maker.weight)
    assert [bool(each.any()) for each in found.chunk(M)] == [region == only for region in range(M)]


def products(f):
    """The operations that products of matrices in ``f`` execute, those of the region engine."""
    with Counting() as counting:
        f()
    return counting.count.by_op["mm"]


@pytest.mark.parametrize("train", [True, False])
def test_inference_multiplies_by_the_filters_that_are_chosen_alone(train):
    x = normal((2, C, 6, 7), dtype=torch.float32)
    for m, kernel, deep in ((1, 3, 2), (2, 3, 3), (8, 3, 9), (1, 1, 1), (2, 1, 1), (8, 1, 9)):  # m + 1, or the taps
        layer = DRConv2d(C, OUTPUTS, kernel, padding=kernel // 2, regions=m).train(train)
        with torch.no_grad():
            assert products(lambda layer=layer: layer(x)) == 2 * (2 * 6 * 7) * OUTPUTS * (deep * C)


@pytest.mark.parametrize(("kernel", "deep", "whole"), [(3, 6, 5 + 1), (1, 1, 5 + 2)])
def test_backward_is_m_fold_for_the_guide_alone(kernel, deep, whole):
    x = normal((2, C, 6, 7), dtype=torch.float32).requires_grad_()
    layer = DRConv2d(C, OUTPUTS, kernel, padding=kernel // 2, regions=5)
    one = 2 * (2 * 6 * 7) * OUTPUTS * (deep * C)
    assert products(layer(x).sum().backward) == whole * one
    layer.guide.requires_grad_(False)
    layer.squeeze.requires_grad_(False)
    assert products(layer(x.detach()).sum().backward) == one


def test_inference_never_holds_the_outputs_of_all_regions():
    layer, x = DRConv2d(8, 8, padding=1, regions=16), normal((8, 8, 32, 32), dtype=torch.float32)
    every = 16 * x.nbytes
    with torch.no_grad():
        assert workspace(lambda: layer(x), "cpu") < every / 2


def test_evaluation_has_a_backward():
    layer, x = DRConv2d(C, OUTPUTS, regions=M).eval().requires_grad_(False), normal((2, C, 6, 7), dtype=torch.float32)
    (found,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    assert found.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_the_regions_of_float64(dtype):
    layer, x = DRConv2d(C, OUTPUTS, padding=1).to(dtype), normal((8, C, 24, 24), dtype=dtype)
    wide = copy.deepcopy(layer).double()
    with observing() as seen, torch.no_grad():
        layer(x)
    assert_same(seen["region"], wide.guide(x.double()).argmax(1))
    assert seen["guide"].dtype == seen["filters"].dtype == torch.float32


def test_autocast_keeps_guide_and_filters_wide():
    layer, x = DRConv2d(C, OUTPUTS), normal((2, C, 6, 7), dtype=torch.float32)
    with observing() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert (y.dtype, seen["guide"].dtype, seen["filters"].dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_another_dtype_than_that_of_the_weights_is_refused_by_name():
    with pytest.raises(RuntimeError, match=r"DRConv2d has weights of type torch.float32, not torch.float64"):
        DRConv2d(C)(normal((2, C, 6, 7)))


def test_torchs_first_filters_are_as_large_as_the_card_says():
    torch.manual_seed(0)
    made = DRConv2d(64).filters(normal((2, 64, 9, 9), dtype=torch.float32))
    assert 0.3 < made.std() < 0.4


def test_a_checkpoint_of_the_published_order_is_loaded_as_the_card_says():
    layer = DRConv2d(C, OUTPUTS, padding=1, regions=M).double()
    weight, bias = normal((M * OUTPUTS * C, M, 1, 1), seed=1), normal((M * OUTPUTS * C,), seed=2)
    with torch.no_grad():
        layer.expand.weight.copy_(weight.view(M, OUTPUTS, C, M).transpose(1, 2).reshape(layer.expand.weight.shape))
        layer.expand.bias.copy_(bias.view(M, OUTPUTS, C).transpose(1, 2).flatten())
    x = normal((1, C, 6, 7))
    hidden = layer.squeeze(F.adaptive_avg_pool2d(x, 3)).sigmoid()
    kernels = F.conv2d(hidden, weight, bias, groups=M).view(M * OUTPUTS, C, 3, 3)
    every = F.conv2d(x, kernels, padding=1).view(M, OUTPUTS, 6, 7)
    wanted = every.gather(0, layer.guide(x).argmax(1)[:, None].expand(1, OUTPUTS, 6, 7))
    assert_near(layer(x), wanted, 1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own forward mode
def test_batched_gradients_and_maps_over_samples_are_right():
    layer, x = DRConv2d(C, OUTPUTS, padding=1, regions=M).double(), normal((2, C, 6, 7)).requires_grad_()
    y = layer(x)
    upstreams = normal((3, *y.shape), seed=7)
    (found,) = torch.autograd.grad(y, x, upstreams, is_grads_batched=True, retain_graph=True)
    wanted = torch.stack([torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in upstreams])
    assert_near(found, wanted, 1e-12)
    assert_near(torch.func.vmap(lambda each: layer(each[None])[0])(x), y, 1e-12)
    _, slope = torch.func.jvp(layer, (x.detach(),), (upstreams[0].sum(1, keepdim=True).expand(x.shape),))
    along = (wanted * upstreams[0].sum(1, keepdim=True)).sum((1, 2, 3, 4))
    assert_near((upstreams * slope).sum((1, 2, 3, 4)), along, 1e-12)


def test_the_operator_keeps_torchs_rules():
    windows = GEOMETRIES[3]
    x, guide, maker = tensors(windows)
    leaves = [t.requires_grad_() for t in (x, *maker, guide)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # compiling is a promise of every layer
    torch.library.opcheck(operator, (*leaves, choice(guide), *map(list, windows)), test_utils=checks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_layer_has_one_operation_for_all_regions():
    layer, found = DRConv2d(C, OUTPUTS, padding=1, regions=M).double(), []

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for x, record in itertools.product(
        (normal((2, C, 6, 7)), normal((3, C, 6, 7))), (torch.no_grad, torch.enable_grad)
    ):
        with record():
            assert_same(compiled(x), layer(x))
    torch._dynamo.reset()
    assert any("stones.regions" in name for name in found)
    assert not any("unfold" in name or "matmul" in name for name in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("size", [7, 15])
def test_a_compiled_layer_learns_on_maps_on_either_side_of_the_threshold(size):
    layer, x = DRConv2d(C, OUTPUTS, padding=1, regions=M).double(), normal((2, C, size, size))
    torch._dynamo.reset()
    compiled, leaves = (
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        [x.requires_grad_(), *layer.parameters()],
    )
    found, wanted = (torch.autograd.grad(f(x).sin().sum(), leaves) for f in (compiled, layer))
    torch._dynamo.reset()
    for name, gradient, same in zip(("x", *dict(layer.named_parameters())), found, wanted, strict=True):
        assert_near(gradient, same, 1e-12, what=name)


def test_frozen_guide_and_frozen_filters_leave_the_other_gradients_alone():
    layer, x = DRConv2d(C, OUTPUTS, padding=1, regions=M).double(), normal((2, C, 6, 7))
    whole = run(layer, x).parameters
    for frozen in ("guide", "squeeze", "expand"):
        other = copy.deepcopy(layer)
        other.get_submodule(frozen).requires_grad_(False)
        for name, gradient in run(other, x).parameters.items():
            if name.startswith(frozen):
                assert gradient is None
            else:
                assert_near(gradient, whole[name], 1e-12, what=name)
