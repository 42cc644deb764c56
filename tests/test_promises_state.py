"""A layer's state is its parameters and buffers, and nothing else: saved, copied, moved and repeated bit for bit."""

import copy
import io
import pickle

import pytest
import torch
from harness import CHANNELS, Case, assert_passes, assert_same, cases, normal, outputs, run

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def futures(case, layer):
    """What four more training steps (with an optimizer) and two evaluations show."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2) if list(layer.parameters()) else None
    found = []
    for step in range(6):
        layer.train(step < 4)
        found.append(run(layer, normal(case.shape(), seed=50 + step)))
        if optimizer and step < 4:
            optimizer.step()
    return found


def assert_same_future(case, ours, theirs):
    for found, wanted in zip(futures(case, ours), futures(case, theirs), strict=True):
        assert_passes(found, wanted)


def tensors_hidden_in(thing, seen):
    """Tensors reachable from ``thing`` through attributes and containers."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_hidden_in(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            yield from tensors_hidden_in(value, seen)
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        yield from tensors_hidden_in(vars(thing), seen)


@pytest.mark.parametrize("case", cases(True))
def test_a_saved_layer_continues_bit_for_bit(case: Case):
    layer, other = case.layer(), case.layer(seed=1, warm=1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_future(case, other, layer)


@pytest.mark.parametrize("case", cases(True))
def test_a_saved_layer_loads_into_a_fresh_one(case: Case):
    layer, fresh = case.layer(), case.fresh()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()), strict=True)
    assert_same_future(case, fresh, layer)


@pytest.mark.parametrize("case", cases(True))
def test_a_wrong_state_is_refused_by_name(case: Case):
    layer = case.layer()
    saved = copy.deepcopy(layer.state_dict())
    for name, tensor in saved.items():
        fewer = {key: value for key, value in saved.items() if key != name}
        with pytest.raises(RuntimeError, match=name):
            case.fresh().load_state_dict(fewer)
        with pytest.raises(RuntimeError, match=name):
            case.fresh().load_state_dict({**saved, name: tensor.new_zeros((*tensor.shape, 2))})
    with pytest.raises(RuntimeError, match="surplus"):
        layer.load_state_dict({**saved, "surplus": torch.zeros(1)})


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("case", cases(True))
def test_a_copy_continues_bit_for_bit_and_shares_nothing(case: Case, copied):
    layer = case.layer()
    before = copy.deepcopy(layer.state_dict())
    twin = copied(layer)
    ours = {tensor.data_ptr() for tensor in layer.state_dict().values()}
    assert ours.isdisjoint(tensor.data_ptr() for tensor in twin.state_dict().values())
    found = futures(case, twin)
    for name, tensor in layer.state_dict().items():
        assert_same(tensor, before[name], what=name)
    for theirs, wanted in zip(found, futures(case, layer), strict=True):
        assert_passes(theirs, wanted)


@pytest.mark.parametrize("case", cases(True))
def test_a_copy_after_a_forward_is_a_copy(case: Case):
    layer = case.layer()
    y = outputs(layer(normal(case.shape()).requires_grad_()))[0]
    assert_same_future(case, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
    y.sum().backward()


@pytest.mark.parametrize("case", cases(True))
def test_instances_are_independent_and_decided_by_the_seed(case: Case):
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(case.stone.load()(CHANNELS, **case.options, dtype=torch.float64))
    first, second = made
    bystander = copy.deepcopy(second.state_dict())
    for name, tensor in first.state_dict().items():
        assert_same(tensor, second.state_dict()[name], what=name)
    futures(case, first)
    for name, tensor in second.state_dict().items():
        assert_same(tensor, bystander[name], what=name)


@pytest.mark.parametrize("case", cases(True))
def test_no_tensor_hides_outside_parameters_and_buffers(case: Case):
    layer = case.layer()
    run(layer, normal(case.shape()))
    known = [*layer.parameters(), *layer.buffers()]
    hidden = [t for t in tensors_hidden_in(vars(layer), set()) if not any(t is k or t is k.grad for k in known)]
    assert not hidden
    assert dict(layer.named_buffers()).keys() | dict(layer.named_parameters()).keys() == layer.state_dict().keys()


@pytest.mark.parametrize("case", cases(True))
def test_device_and_dtype_reach_every_tensor(case: Case):
    make, options = case.stone.load(), case.options
    for dtype in DTYPES:
        state = make(CHANNELS, **options, device="meta", dtype=dtype).state_dict()
        assert all(tensor.is_meta and tensor.dtype in (dtype, torch.long, torch.bool) for tensor in state.values())
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in make(CHANNELS, **options).state_dict().values())
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        state = make(CHANNELS, **options).state_dict()
    finally:
        torch.set_default_dtype(default)
    assert all(tensor.dtype == torch.float64 for tensor in state.values() if tensor.is_floating_point())


@pytest.mark.parametrize("case", cases())
def test_a_move_of_dtype_takes_everything_along(case: Case):
    layer = case.layer()
    for dtype in (*DTYPES, torch.float64):
        counts = {name: b.clone() for name, b in layer.named_buffers() if not b.is_floating_point()}
        layer.to(dtype)
        assert all(t.dtype == dtype for t in layer.state_dict().values() if t.is_floating_point())
        for name, count in counts.items():
            assert_same(dict(layer.named_buffers())[name], count, what=name)
        found = run(layer, normal(case.shape(), dtype=dtype))
        assert found.y.dtype == dtype
        assert found.x.dtype == dtype
        assert found.y.isfinite().all()


@pytest.mark.parametrize("case", cases())
def test_a_round_trip_through_a_wider_dtype_changes_nothing(case: Case):
    layer = case.layer(torch.float32)
    twin = copy.deepcopy(layer).double().float()
    assert_passes(run(twin, normal(case.shape(), dtype=torch.float32)), run(layer, normal(case.shape()).float()))


@pytest.mark.parametrize("case", cases())
def test_the_same_twice_is_the_same_bit_for_bit_and_draws_no_random_number(case: Case):
    layer = case.layer(torch.float32)
    twin, random = copy.deepcopy(layer), torch.get_rng_state()
    for shape in case.shapes():
        x = normal(shape, dtype=torch.float32)
        assert_passes(run(twin, x.clone()), run(layer, x))
    assert_same(torch.get_rng_state(), random, what="the state of the random numbers")
