"""Forward, gradients and second derivatives are right: by differences, and by the naive references.

Full gradcheck and signed Gaussian directions; never fast gradcheck, which projects on positive near-constant vectors
that a normalization annihilates: it passes a layer norm without the variance term in half of all trials.
"""

import pytest
import torch
from harness import (
    BATCH,
    CHANNELS,
    SHAPES,
    Case,
    assert_near,
    assert_passes,
    cases,
    expected,
    normal,
    outputs,
    pure,
    reference,
    run,
)
from layouts import channels_last, contiguous

SMALL = (BATCH, CHANNELS, 2, 2)
STEP = 1e-5
exact = [parameter for parameter in cases() if parameter.values[0].exact]


def start(case, *shapes, seed=0):
    """A pure function of (x, *parameters), and leaves to call it on."""
    layer = case.layer(seed=seed)
    x = normal(case.shape(*shapes), seed=1 + seed).requires_grad_()
    return pure(layer), (x, *(parameter.detach().clone().requires_grad_() for parameter in layer.parameters()))


def directions(leaves, count=6):
    """``count`` signed Gaussian directions in the space of ``leaves``."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(400 + seed)
        yield [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]


def along(direction, leaves, f):
    """The central difference of ``f`` (a tuple of tensors) at ``leaves`` along ``direction``."""
    sides = []
    for sign in (1, -1):
        moved = [(leaf + sign * STEP * d).detach().requires_grad_() for leaf, d in zip(leaves, direction, strict=True)]
        sides.append([tensor.detach() for tensor in f(*moved)])
    return [(ahead - behind) / (2 * STEP) for ahead, behind in zip(*sides, strict=True)]


def worst_slope(case, shape):
    """The largest difference between gradient and central difference along a direction, relative to the gradient."""
    f, leaves = start(case, shape)
    y = f(*leaves)
    upstream = normal(y.shape, seed=7)
    gradients = torch.autograd.grad(y, leaves, upstream)
    size = sum(gradient.square().sum() for gradient in gradients).sqrt().item()
    worst = 0.0
    for direction in directions(leaves):
        slope = (along(direction, leaves, lambda *at: (f(*at),))[0] * upstream).sum().item()
        found = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
        worst = max(worst, abs(found - slope) / size)
    return worst


@pytest.mark.parametrize("case", exact)
def test_the_jacobian_is_right(case: Case):
    f, leaves = start(case, SMALL, *([(2, CHANNELS, 3, 3)] if case.convolves else []))
    assert torch.autograd.gradcheck(f, leaves, fast_mode=False, check_undefined_grad=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", exact)
def test_gradients_are_right_along_gaussian_directions(case: Case):
    for shape in case.shapes():
        assert worst_slope(case, shape) <= 1e-6, f"{shape}"


inexact = dict.fromkeys(parameter.values[0].stone for parameter in cases(True) if not parameter.values[0].exact)


@pytest.mark.parametrize("stone", [pytest.param(stone, id=stone.name) for stone in inexact])
def test_a_gradient_that_is_said_to_be_no_derivative_is_none(stone):
    said = [case for case in (Case(stone, options) for options in stone.card.examples) if not case.exact]
    assert max(worst_slope(case, case.shape()) for case in said) > 1e-3


@pytest.mark.parametrize("case", exact)
def test_second_derivatives_are_right_or_refused(case: Case):
    f, leaves = start(case)
    y = f(*leaves)
    upstream = normal(y.shape, seed=7).requires_grad_()
    points = (*leaves, upstream)

    def gradient(*at):
        return torch.autograd.grad(f(*at[:-1]), at[:-1], at[-1], create_graph=True)

    first = gradient(*points)
    for ours, plain in zip(first, torch.autograd.grad(f(*leaves), leaves, upstream), strict=True):
        assert_near(ours, plain, 1e-12, what="gradient that is to be differentiated")
    covectors = [normal(tensor.shape, seed=8) for tensor in first]
    try:
        second = torch.autograd.grad(first, points, covectors, materialize_grads=True)
    except RuntimeError as error:
        assert not case.derivable, "the card says that the gradient may be derived"
        assert "second derivative" in str(error)  # noqa: PT017
        return
    assert case.derivable, "the card says that second derivatives are refused"
    size = sum(tensor.square().sum() for tensor in second).sqrt().item()
    for direction in directions(points):
        slopes = along(direction, points, gradient)
        slope = sum((s * c).sum().item() for s, c in zip(slopes, covectors, strict=True))
        found = sum((s * d).sum().item() for s, d in zip(second, direction, strict=True))
        assert abs(found - slope) <= 1e-6 * size, f"{found} along a direction, the difference is {slope}"


def second_derivatives(f, leaves, upstream):
    """First gradients and, by double backward, those of a linear function of them; None where that is refused."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    upstream = upstream.detach().requires_grad_()
    first = torch.autograd.grad(f(*leaves), leaves, upstream, create_graph=True)
    assert first[0].requires_grad, "the gradient is a constant: a penalty on it would be lost in silence"
    covectors = [normal(tensor.shape, seed=8) for tensor in first]
    try:
        return first, torch.autograd.grad(first, (*leaves, upstream), covectors, materialize_grads=True)
    except RuntimeError:
        return first, None


@pytest.mark.parametrize("case", cases())
def test_second_derivatives_are_those_of_the_reference_or_refused(case: Case):
    layer = case.layer()
    names = [name for name, _ in layer.named_parameters()]

    def naive(x, *parameters):
        return reference(case, layer, x, dict(zip(names, parameters, strict=True)))[0]

    for shape in case.shapes():
        x, upstream = normal(shape, seed=1), normal(case.output(shape), seed=7)
        first, second = second_derivatives(naive, (x, *layer.parameters()), upstream)
        assert second is not None
        for lay in (contiguous, channels_last):
            ours = second_derivatives(pure(layer), (lay(x), *layer.parameters()), lay(upstream))
            for found, wanted, name in zip(ours[0], first, ("x", *names), strict=True):
                assert_near(found, wanted, 1e-7, what=f"gradient in {name} {shape}")
            if ours[1] is not None:
                for found, wanted, name in zip(ours[1], second, ("x", *names, "upstream"), strict=True):
                    assert_near(found, wanted, 1e-7, what=f"second derivative in {name} {shape}")


@pytest.mark.parametrize("case", cases())
def test_forward_gradients_and_buffers_equal_the_reference(case: Case):
    for seed, shape in enumerate(case.shapes(*SHAPES, (2 * BATCH, CHANNELS, 5, 1))):
        layer = case.layer(seed=seed)
        x = normal(shape, seed=1 + seed)
        wanted = expected(case, layer, x)
        found = run(layer, x)
        assert_near(found.y, wanted.y, 1e-9, what=f"y {shape}")
        for name, buffer in wanted.buffers.items():
            assert_near(found.buffers[name], buffer, 1e-9, what=f"buffer {name} {shape}")
        assert_passes(found, wanted, assert_near, 1e-7)


@pytest.mark.parametrize("case", cases(True))
def test_a_fresh_layer_equals_the_reference_step_by_step(case: Case):
    layer = case.fresh()
    for seed in range(4):
        x = normal(case.shape(), seed=seed)
        wanted = expected(case, layer, x)
        assert_passes(run(layer, x), wanted, assert_near, 1e-8)


@pytest.mark.parametrize("case", cases())
def test_functional_gradients_are_those_of_autograd(case: Case):
    f, leaves = start(case)
    upstream = normal(f(*leaves).shape, seed=7)

    def loss(*at):
        return (outputs(f(*at))[0] * upstream).sum()

    wanted = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.func.grad(loss, tuple(range(len(leaves))))(*(leaf.detach() for leaf in leaves))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours, theirs, 1e-9, what="gradient")
