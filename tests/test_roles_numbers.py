"""What penalties, projections, initializers and optimizers compute: the naive references, in every layout and dtype.

Each leaves alone what is not its own: a penalty and a projection the weight, an optimizer the gradients, and all of
them but an initializer the random numbers.
"""

from functools import partial

import pytest
import torch
from harness import assert_near, assert_same, normal
from layouts import LAYOUTS
from roles import gradients, train, trained, uses, weight
from torch import nn

from layers.checked_optimizer import HALF, CheckedOptimizer

PENALTIES, PROJECTIONS, INITIALIZERS, OPTIMIZERS = (
    uses(role) for role in ("penalty", "projection", "initializer", "optimizer")
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_TENSORS = [*PENALTIES, *PROJECTIONS, *INITIALIZERS]
# torch's compiler uses what torch deprecates.
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def seeded(call, *arguments, seed=3):
    """What ``call`` returns when torch's generator starts from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call(*arguments)


def derivative(penalty, at):
    """A penalty's value and its gradient ``at`` a weight."""
    leaf = at.detach().requires_grad_()
    value = penalty(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope


@pytest.mark.parametrize("use", PENALTIES)
def test_a_penalty_and_its_gradient_are_those_of_the_reference(use):
    for shape in use.shapes():
        for seed in range(3):
            found = derivative(use.call, weight(shape, seed))
            wanted = derivative(use.reference, weight(shape, seed))
            for ours, theirs, what in zip(found, wanted, ("value", "gradient"), strict=True):
                assert_near(ours, theirs, 1e-9, what=f"{what} {shape}")
            assert found[0].shape == ()
            assert found[0] >= 0


@pytest.mark.parametrize("use", PENALTIES)
def test_a_penalty_can_be_derived_twice(use):
    leaf = weight((12, 5) if use.admits((12, 5)) else use.shapes()[0]).requires_grad_()
    assert torch.autograd.gradcheck(use.call, leaf, fast_mode=False, rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(use.call, leaf, fast_mode=False, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("use", PROJECTIONS)
def test_a_projection_is_that_of_the_reference(use):
    for shape in use.shapes():
        for seed in range(3):
            assert_near(use.call(weight(shape, seed)), use.reference(weight(shape, seed)), 1e-9, what=f"{shape}")


@pytest.mark.parametrize("use", PROJECTIONS)
def test_a_projection_moves_some_weight_and_has_no_graph(use):
    moved = []
    for shape in use.shapes():
        leaf = weight(shape).requires_grad_()
        found = use.call(leaf)
        assert not found.requires_grad
        assert found.untyped_storage().data_ptr() != leaf.untyped_storage().data_ptr()
        moved.append(not torch.equal(found, leaf))
    assert any(moved)


@pytest.mark.parametrize("use", PROJECTIONS)
def test_the_twin_in_place_does_the_same_to_the_weight_itself(use):
    twin = getattr(use.module, f"{use.stone.card.impl}_")
    for shape in use.shapes():
        for lay in LAYOUTS.values():
            leaf = nn.Parameter(lay(weight(shape)))
            memory, strides, wanted = leaf.data_ptr(), leaf.stride(), use.call(weight(shape))
            assert twin(leaf, **use.options) is leaf
            assert (leaf.data_ptr(), leaf.stride(), leaf.grad_fn, leaf.requires_grad) == (memory, strides, None, True)
            assert_near(leaf.detach(), wanted, 1e-12, what=f"{shape}")


@pytest.mark.parametrize("use", [*PENALTIES, *PROJECTIONS])
def test_the_weight_is_never_written(use):
    for shape in use.shapes():
        leaf = weight(shape).requires_grad_()
        before = leaf.detach().clone(), leaf._version
        result = use.call(leaf)
        if result.requires_grad:
            result.backward()
        assert leaf._version == before[1]
        assert_same(leaf.detach(), before[0], what="the weight")


@pytest.mark.parametrize("use", INITIALIZERS)
def test_an_initializer_fills_its_tensor_in_place_without_a_graph(use):
    for shape in use.shapes():
        leaf = nn.Parameter(torch.full(shape, torch.nan, dtype=torch.float64))
        memory = leaf.data_ptr()
        assert use.call(leaf) is leaf
        assert (leaf.shape, leaf.data_ptr(), leaf.dtype) == (shape, memory, torch.float64)
        assert leaf.grad_fn is None
        assert leaf.requires_grad
        assert leaf.isfinite().all()
        assert leaf.any()


@pytest.mark.parametrize("use", INITIALIZERS)
def test_an_initializer_is_that_of_the_reference_for_the_same_random_numbers(use):
    for shape in use.shapes():
        found, wanted = (seeded(call, weight(shape)) for call in (use.call, use.reference))
        assert_near(found, wanted, 1e-9, what=f"{shape}")


@pytest.mark.parametrize("use", INITIALIZERS)
def test_the_seed_decides_an_initializer(use):
    shape = use.shapes()[0]
    first, second, other = (seeded(use.call, weight(shape), seed=seed) for seed in (3, 3, 4))
    assert_same(first, second, what="the tensor")
    assert not torch.equal(first, other)


@pytest.mark.parametrize("use", ON_TENSORS)
def test_every_layout_of_the_weight_gives_the_same(use):
    for shape in use.shapes():
        wanted = seeded(use.call, weight(shape))
        slope = derivative(use.call, weight(shape))[1] if use.role == "penalty" else None
        for name, lay in LAYOUTS.items():
            assert_near(seeded(use.call, lay(weight(shape))), wanted, 1e-10, what=f"{shape}, {name}")
            if slope is not None:
                assert_near(derivative(use.call, lay(weight(shape)))[1], slope, 1e-10, what=f"gradient {shape}, {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("use", [*PENALTIES, *PROJECTIONS])
def test_every_dtype_loses_only_the_last_digits(use, dtype):
    for shape in use.shapes():
        narrow = weight(shape, dtype=dtype)
        found, wanted = use.call(narrow), use.call(narrow.double())
        assert found.dtype == dtype
        assert_near(found, wanted, 32 * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps, what=f"{shape}")
        if use.role == "penalty":
            ours, theirs = (derivative(use.call, at)[1] for at in (narrow, narrow.double()))
            assert ours.dtype == dtype
            assert_near(ours, theirs, 8 * torch.finfo(dtype).eps, what=f"gradient {shape}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("use", INITIALIZERS)
def test_an_initializer_fills_every_dtype(use, dtype):
    for shape in use.shapes():
        found = seeded(use.call, weight(shape, dtype=dtype))
        assert (found.dtype, found.shape) == (dtype, shape)
        assert found.isfinite().all()


@pytest.mark.parametrize("use", ON_TENSORS)
def test_meta_tells_the_shape(use):
    for shape in use.shapes():
        found, real = use.call(weight(shape).to("meta")), seeded(use.call, weight(shape))
        assert found.is_meta
        assert (found.shape, found.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("use", [*PENALTIES, *PROJECTIONS])
def test_the_same_twice_is_the_same_bit_for_bit_and_draws_no_random_number(use):
    random = torch.get_rng_state()
    for shape in use.shapes():
        assert_same(use.call(weight(shape)), use.call(weight(shape)), what=f"{shape}")
    assert_same(torch.get_rng_state(), random, what="the state of the random numbers")


@pytest.mark.parametrize("use", ON_TENSORS)
def test_what_is_no_weight_is_refused_in_words(use):
    for wrong in (torch.zeros(()), torch.zeros(7)):
        with pytest.raises(ValueError, match=r"(\S+ ){4}"):
            use.call(wrong)


@compiles
@pytest.mark.parametrize("use", uses("penalty", "projection", examples=1))
def test_compiled_it_gives_the_same(use):
    torch._dynamo.reset()
    compiled = torch.compile(partial(use.stone.load(), **use.options), fullgraph=True, backend="aot_eager")
    shape = use.shapes()[0]
    assert_near(compiled(weight(shape)), use.call(weight(shape)), 1e-10, what="compiled")
    if use.role == "penalty":
        assert_near(derivative(compiled, weight(shape))[1], derivative(use.call, weight(shape))[1], 1e-10, what="slope")


@pytest.mark.parametrize("use", OPTIMIZERS)
def test_the_trajectory_of_an_optimizer_is_that_of_the_reference(use):
    shapes = use.shapes()
    found, _ = trained(use, shapes)
    wanted = use.reference([weight(shape, seed) for seed, shape in enumerate(shapes)], gradients(shapes))
    for ours, theirs, shape in zip(found, wanted, shapes, strict=True):
        assert_near(ours.detach(), theirs, 1e-9, what=f"parameter {shape}")
        assert not torch.equal(ours, weight(shape, shapes.index(shape)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("use", OPTIMIZERS)
def test_the_state_of_an_optimizer_is_that_of_the_card(use, dtype):
    shapes = use.shapes()
    parameters, optimizer = trained(use, shapes, gradients(shapes, dtype=dtype)[:1], dtype)
    keeps_float32 = dtype in HALF and isinstance(optimizer, CheckedOptimizer)
    for parameter, shape in zip(parameters, shapes, strict=True):
        stated = {stat.name: stat.at(use.symbols(shape)) for stat in use.stone.card.state}
        stated = {name: size for name, size in stated.items() if size is not None}
        kept = {name: tuple(torch.as_tensor(tensor).shape) for name, tensor in optimizer.state[parameter].items()}
        assert kept == stated
        for name, tensor in optimizer.state[parameter].items():
            assert tensor.device == parameter.device
            assert stated[name] == () or tensor.dtype == (torch.float32 if keeps_float32 else dtype), name
        assert parameter.dtype == dtype


@pytest.mark.parametrize("use", OPTIMIZERS)
def test_every_layout_of_parameter_and_gradient_trains_alike(use):
    shape = use.shapes()[0]
    (wanted,), _ = trained(use, [shape])
    for name, lay in LAYOUTS.items():
        for other, lay_gradient in LAYOUTS.items():
            if "contiguous" in (name, other) or name == other:
                parameter = nn.Parameter(lay(weight(shape, 0)))
                optimizer, strides = use.make([parameter]), parameter.stride()
                for (gradient,) in gradients([shape]):
                    parameter.grad = lay_gradient(gradient)
                    optimizer.step()
                assert parameter.stride() == strides
                assert_near(parameter.detach(), wanted.detach(), 1e-10, what=f"{name}, {other}")


@pytest.mark.parametrize("use", OPTIMIZERS)
def test_the_same_training_twice_is_the_same_bit_for_bit_and_draws_no_random_number(use):
    random, shapes = torch.get_rng_state(), use.shapes()
    for ours, theirs in zip(trained(use, shapes)[0], trained(use, shapes)[0], strict=True):
        assert_same(ours.detach(), theirs.detach(), what="a parameter")
    assert_same(torch.get_rng_state(), random, what="the state of the random numbers")


@pytest.mark.parametrize("use", OPTIMIZERS)
def test_an_optimizer_steps_on_meta(use):
    shape = use.shapes()[0]
    parameter = nn.Parameter(weight(shape).to("meta"))
    optimizer = use.make([parameter])
    train(optimizer, [parameter], [[gradient.to("meta")] for (gradient,) in gradients([shape])])
    assert parameter.is_meta
    assert parameter.shape == shape
    assert all(tensor.is_meta for tensor in optimizer.state[parameter].values() if tensor.dim())


@pytest.mark.parametrize("use", ON_TENSORS)
def test_a_large_weight_of_a_small_dtype_stays_finite(use):
    """Squares of 300 are beyond float16; a penalty in float16 that is too large itself may be infinite, not NaN."""
    for shape in use.shapes():
        found = seeded(use.call, (300 * normal(shape)).to(torch.float16))
        assert not found.isnan().any()
        assert use.role == "penalty" or found.isfinite().all()
