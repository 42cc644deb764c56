"""torch.compile without a graph break gives what eager gives: outputs, gradients and, in training, buffers.

Gradients are compared in training mode with a past in the buffers: the partitioner recomputes in backward what it
thinks cheap, and a buffer that was read and then updated is then read after the update, in silence.
"""

import copy

import pytest
import torch
from harness import BATCH, Case, assert_near, assert_passes, cases, normal, run
from layouts import LAST, channels_last
from torch._dynamo.testing import CompileCounterWithBackend

# torch's compiler uses what torch deprecates: an instance of every autograd.Function that it meets, torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

first_trained = cases(True, examples=1)
others = [case for case in cases() if str(case.id) not in {str(first.id) for first in first_trained}]


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_equals_eager(case, shapes, backend="aot_eager", within=1e-10, layout=torch.clone):
    """Compare over ``shapes`` in a row, and return how many graphs were compiled after each."""
    eager, layer = case.layer(), case.layer()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    graphs = []
    for seed, shape in enumerate(shapes):
        x = layout(normal(shape, seed=seed))
        found, wanted = run(layer, x, call=compiled), run(eager, x)
        assert_passes(found, wanted, assert_near, within)
        assert found.y.stride() == wanted.y.stride()
        graphs.append(counter.frame_count)
    return graphs


def batches(case):
    """Three batch sizes that the card admits, or three times the one size that it does."""
    _, *rest = case.shape()
    sizes = [(BATCH * times, *rest) for times in (1, 2, 3)]
    return sizes if not any(case.refusal(shape) for shape in sizes) else sizes[:1] * 3


@pytest.mark.parametrize("case", first_trained)
def test_compiled_training_equals_eager_and_a_third_batch_size_is_free(case: Case):
    first, second, third = assert_compiled_equals_eager(case, batches(case))
    assert first >= 1
    assert third == second


@pytest.mark.slow
@pytest.mark.parametrize("case", others)
def test_every_other_example_compiles_too(case: Case):
    _, second, third = assert_compiled_equals_eager(case, batches(case))
    assert third == second


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_every_rank_and_layout_compiles(case: Case):
    for shape in case.shapes():
        torch._dynamo.reset()
        assert_compiled_equals_eager(case, [shape] * 2)
        if len(shape) in LAST:
            torch._dynamo.reset()
            assert_compiled_equals_eager(case, [shape], layout=channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("case", first_trained)
def test_inductor_equals_eager(case: Case):
    assert_compiled_equals_eager(case, batches(case)[:1] * 2, backend="inductor", within=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("case", first_trained)
def test_a_compiled_fresh_layer_equals_an_eager_one(case: Case):
    eager = case.fresh()
    if any(buffer.numel() == 0 for buffer in eager.buffers()):  # they get their size in a first step, which is eager
        run(eager, normal(case.shape()))
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x = normal(case.shape(), seed=seed)
        assert_passes(run(layer, x, call=compiled), run(eager, x), assert_near, 1e-9)
