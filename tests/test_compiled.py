"""Compiling the layers of a model by one switch: equal results, the same names, eager where there is no compiler."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from layers import catalog
from layers.compiled import compile_layers, uncompile_layers
from layers.norm.bn import BatchNorm
from layers.norm.gn import GroupNorm
from layers.norm.pono import PositionalNorm
from layers.pool.mixed_pooling import MixedPooling
from profiles.outputs import first_tensor
from profiles.subject import Setup, subject

# Dynamo looks at the gradient of what is no leaf, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore::DeprecationWarning")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), BatchNorm(8), nn.Sequential(nn.ReLU(), GroupNorm(8, groups=2))).double()


def gradients(module, x):
    y = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


def test_compiled_layers_give_the_same_and_keep_names_and_state():
    one, other = model(), model()
    names, x = list(one.state_dict()), torch.randn(4, 3, 9, 9, dtype=torch.float64)

    assert compile_layers(one, backend="aot_eager", strict=True) == 2
    for found, expected in zip(gradients(one, x), gradients(other, x), strict=True):
        torch.testing.assert_close(found, expected)
    assert list(one.state_dict()) == names
    for found, expected in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_layer_inside_another_is_compiled_with_it():
    assert compile_layers(MixedPooling(8), backend="aot_eager") == 1


def test_it_can_be_undone_and_copies_are_not_compiled():
    made = model()
    compile_layers(made, backend="aot_eager")
    assert copy.deepcopy(made)[1]._compiled_call_impl is None
    assert pickle.loads(pickle.dumps(made))[1]._compiled_call_impl is None
    uncompile_layers(made)
    assert made[1]._compiled_call_impl is None


def broken(graph, inputs):
    raise RuntimeError("no C++ compiler\nat all")


def test_without_a_compiler_layers_stay_eager_and_say_so_once():
    made, expected, x = GroupNorm(8, groups=2), GroupNorm(8, groups=2), torch.randn(2, 8, 3, 3)
    compile_layers(made, backend=broken)

    with pytest.warns(RuntimeWarning, match="GroupNorm stays eager, torch.compile fails: .*no C\\+\\+ compiler"):
        torch.testing.assert_close(made(x), expected(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(made(x), expected(x))


def test_strictly_the_failure_is_raised():
    made = PositionalNorm(8)
    compile_layers(made, backend=broken, strict=True)
    with pytest.raises(Exception, match="no C\\+\\+ compiler"):
        made(torch.randn(2, 8, 3, 3))


def test_what_a_layer_refuses_is_no_failure_of_the_compiler():
    made = GroupNorm(8, groups=2)
    compile_layers(made, backend="aot_eager")
    with pytest.raises(ValueError, match="channels"):
        made(torch.randn(2, 6, 3, 3))


REDUCING = "adanorm batch-renorm bcn bn bn-gn ghost-bn iew mean-only-bn pixel-norm pono cen-conv scaled-ws weight-norm"


@pytest.mark.parametrize("name", [*REDUCING.split(), "weight-standardization"])
def test_the_compiled_backward_reduces_the_data_in_one_pass(name):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    layer = subject(catalog.stone(name), {}, Setup((4, 32, 6, 6))).build()
    x = torch.randn(4, 32, 6, 6, requires_grad=True)
    y = torch.compile(layer, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))(x)
    first_tensor(y, name).sum().backward()
    data = layer.weight if catalog.stone(name).kind == "weight" else x
    assert [passes(graph, data.numel()) for graph in graphs[1:]] == [1]


def passes(graph, size):
    """How many reductions of at least ``size`` numbers follow from one another."""
    depth = {}
    for node in graph.graph.nodes:
        depth[node] = max((depth[source] for source in node.all_input_nodes), default=0)
        if node.target in (torch.ops.aten.sum.dim_IntList, torch.ops.aten.mean.dim):
            depth[node] += node.all_input_nodes[0].meta["val"].numel() >= size
    return max(depth.values())
