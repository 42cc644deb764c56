"""What every optimizer promises of its state, and of memory: saved, copied, laid out, shared and changed as it says."""

import copy
import io
import pickle

import pytest
import torch
from stepping import Case, assert_equal, cases, gradient, normal, run, twins, weights

from layers.card import OptionError
from layers.checked_optimizer import CheckedOptimizer
from layers.optim.adam_g import AdamG
from layers.optim.sgd_g import SGDG

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "swapped": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


def saved(state):
    """What comes back of a state_dict from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors(optimizer, parameter):
    return {name: value for name, value in optimizer.state[parameter].items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("case", cases())
def test_the_state_is_that_of_the_card(case: Case):
    keeps_float32 = issubclass(case.stone.load(), CheckedOptimizer)
    for dtype in (torch.float64, torch.bfloat16):
        wide = torch.float32 if dtype is torch.bfloat16 and keeps_float32 else dtype
        params = weights(dtype)
        optimizer = case.make(params)
        run(optimizer, params, 1)
        for parameter in params:
            values = case.stone.card.symbols(parameter.shape, case.full)
            stated = {stat.name: stat.at(values) for stat in case.stone.card.state if stat.at(values) is not None}
            found = optimizer.state[parameter]
            assert {name: tuple(tensor.shape) for name, tensor in found.items()} == stated
            assert {tensor.dtype for name, tensor in found.items() if name != "step"} <= {wide}


@pytest.mark.parametrize("case", cases())
def test_a_saved_optimizer_continues_bit_for_bit(case: Case):
    (params, optimizer), (other, _) = twins(case)
    fresh = case.make(other)
    fresh.load_state_dict(saved(optimizer.state_dict()))
    assert_equal(run(fresh, other, 7, 3), run(optimizer, params, 7, 3))


@pytest.mark.parametrize("case", cases(1))
def test_saving_twice_gives_the_same_and_names_are_kept(case: Case):
    params = weights()
    optimizer = case.make([(f"layer{i}", parameter) for i, parameter in enumerate(params)])
    run(optimizer, params)
    first, second = optimizer.state_dict(), optimizer.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["param_groups"][0]["param_names"] == [f"layer{i}" for i in range(len(params))]


@pytest.mark.parametrize("case", cases(1))
def test_a_state_of_other_groups_is_refused(case: Case):
    (params, optimizer), _ = twins(case)
    state = saved(optimizer.state_dict())
    for groups in ([{"params": params[:3]}], [{"params": params[:1]}, {"params": params[1:]}]):
        with pytest.raises(ValueError, match="group"):
            case.make(groups).load_state_dict(state)


@pytest.mark.parametrize("case", cases())
def test_an_older_state_without_newer_options_loads(case: Case):
    (params, optimizer), (other, _) = twins(case)
    state = saved(optimizer.state_dict())
    kept = ("params", "lr")
    state["param_groups"] = [{name: group[name] for name in kept} for group in state["param_groups"]]
    fresh = case.make(other)
    fresh.load_state_dict(state)
    assert_equal(run(fresh, other, 3, 3), run(optimizer, params, 3, 3))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("case", cases())
def test_a_copy_continues_bit_for_bit_and_shares_nothing(case: Case, copied):
    (params, optimizer), _ = twins(case)
    other, twin = copied((params, optimizer))
    assert type(twin) is type(optimizer)
    assert [{**group, "params": 0} for group in twin.param_groups] == [
        {**group, "params": 0} for group in optimizer.param_groups
    ]
    for p, q in zip(params, other, strict=True):
        ours = {tensor.data_ptr() for tensor in (p, *tensors(optimizer, p).values())}
        assert ours.isdisjoint(tensor.data_ptr() for tensor in (q, *tensors(twin, q).values()))
    before = [parameter.detach().clone() for parameter in params]
    found = run(twin, other, 4, 3)
    assert_equal(params, before)
    assert_equal(found, run(optimizer, params, 4, 3))
    twin.add_param_group({"params": weights()})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("case", cases())
def test_a_bad_gradient_stays_in_its_parameter_and_stays_visible(case: Case, bad):
    results = []
    for value in (None, bad):
        params = weights()
        optimizer = case.make(params)
        run(optimizer, params, 2)
        for i, parameter in enumerate(params):
            parameter.grad = gradient(parameter, i, 2)
        if value is not None:
            params[1].grad[2, 3] = value
        optimizer.step()
        results.append(run(optimizer, params, 2, 3))
    (sound, hurt) = results
    assert not hurt[1].isfinite().all()
    assert_equal([*hurt[:1], *hurt[2:]], [*sound[:1], *sound[2:]])


@pytest.mark.parametrize("case", cases())
def test_gradients_are_not_written_and_parameters_keep_their_storage(case: Case):
    params = weights()
    optimizer = case.make(params)
    storages = [parameter.data_ptr() for parameter in params]
    for step in range(3):
        given = [gradient(parameter, i, step) for i, parameter in enumerate(params)]
        kept = [each.clone() for each in given]
        for parameter, each in zip(params, given, strict=True):
            parameter.grad = each
        optimizer.step()
        assert all(parameter.grad is each for parameter, each in zip(params, given, strict=True))
        assert_equal(given, kept)
    assert [parameter.data_ptr() for parameter in params] == storages
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in params)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 2), (6, 1, 3, 2)])
@pytest.mark.parametrize("case", cases())
def test_the_layout_in_memory_is_kept_and_does_not_matter(case: Case, shape, layout):
    wanted = weights(shapes=(shape,))
    expected = run(case.make(wanted), wanted)
    for other in LAYOUTS.values():
        (plain,) = weights(shapes=(shape,))
        parameter = LAYOUTS[layout](plain.detach()).requires_grad_()
        strides, optimizer = parameter.stride(), case.make([parameter])
        for step in range(3):
            parameter.grad = None
            parameter.grad = other(gradient(parameter, 0, step))
            optimizer.step()
        assert parameter.stride() == strides
        assert_equal([parameter], expected, 1e-12)
        for state in tensors(optimizer, parameter).values():
            assert state.dim() != parameter.dim() or state.stride() == torch.empty_like(parameter).stride()


@pytest.mark.parametrize("case", cases())
def test_the_layout_does_not_matter_to_the_kernels_of_single_precision(case: Case):
    """They go by addresses, so that a gradient of other strides than its parameter would be taken for another."""
    wanted = weights(torch.float32, shapes=((6, 4, 3, 2),))
    expected = run(case.make(wanted), wanted)
    for layout in LAYOUTS.values():
        for other in LAYOUTS.values():
            (plain,) = weights(torch.float32, shapes=((6, 4, 3, 2),))
            parameter = layout(plain.detach()).requires_grad_()
            optimizer = case.make([parameter])
            for step in range(3):
                parameter.grad = None
                parameter.grad = other(gradient(parameter, 0, step))
                optimizer.step()
            assert_equal([parameter], expected, 1e-5)


@pytest.mark.parametrize("case", cases())
def test_the_order_of_parameters_does_not_matter(case: Case):
    params, other = weights(), weights()
    forward, backward = case.make(params), case.make(other[::-1])
    assert_equal(run(backward, other), run(forward, params), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", cases())
def test_lower_precision_rounds_the_steps_and_nothing_else(case: Case, dtype):
    params = weights(dtype, unit=True)
    wide = [parameter.detach().double().requires_grad_() for parameter in params]
    low, high = case.make(params), case.make(wide)
    for step in range(2):
        for i, (p, q) in enumerate(zip(params, wide, strict=True)):
            p.grad = gradient(p, i, step)
            q.grad = p.grad.double()
        low.step(), high.step()
    assert {parameter.dtype for parameter in params} == {dtype}
    assert_equal([parameter.double() for parameter in params], wide, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("case", cases())
def test_the_same_steps_give_the_same_bits(case: Case):
    first, second = weights(), weights()
    assert_equal(run(case.make(first), first), run(case.make(second), second))


@pytest.mark.parametrize("case", cases(1))
def test_a_compiled_step_is_the_same_step(case: Case):
    params, other = weights(), weights()
    eager, compiled = case.make(params), case.make(other)
    step = torch.compile(compiled.step, backend="aot_eager")
    for number in range(4):
        for i, (p, q) in enumerate(zip(params, other, strict=True)):
            p.grad, q.grad = gradient(p, i, number), gradient(q, i, number)
        eager.step(), step()
    assert_equal(other, params, 1e-12)


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(torch.optim.RMSprop, SGDG), (SGDG, AdamG), (AdamG, SGDG)])
def test_the_state_of_another_optimizer_is_refused_in_words(saved_by, loaded_by):
    params = weights()
    foreign, optimizer = saved_by(params), loaded_by(params)
    run(foreign, params, 1)
    optimizer.load_state_dict(foreign.state_dict())
    with pytest.raises(OptionError, match=r"the state of a parameter has no .*_buffer: it is of another optimizer"):
        run(optimizer, params, 1)


@pytest.mark.parametrize("case", cases(1))
def test_hooks_run_in_order_around_a_step(case: Case):
    params, seen = weights(), []
    optimizer = case.make(params)
    before = params[0].detach().clone()
    optimizer.register_step_pre_hook(lambda *_: seen.append(("pre", torch.equal(params[0], before))))
    optimizer.register_step_post_hook(lambda *_: seen.append(("post", torch.equal(params[0], before))))
    run(optimizer, params, 1)
    assert seen == [("pre", True), ("post", False)]


@pytest.mark.parametrize("case", cases(1))
def test_nothing_global_changes(case: Case, capsys):
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state())
    params = weights()
    run(case.make(params), params)
    assert before[:2] == (torch.is_grad_enabled(), torch.get_default_dtype())
    assert torch.equal(before[2], torch.random.get_rng_state())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("case", cases(1))
def test_parameters_on_the_meta_device_are_admitted(case: Case):
    params = [torch.empty(4, 5, device="meta", requires_grad=True)]
    params[0].grad = torch.empty(4, 5, device="meta")
    optimizer = case.make(params)
    optimizer.step()
    assert all(s.is_meta for name, s in tensors(optimizer, params[0]).items() if name != "step")


def test_made_up_gradients_differ_between_steps_and_parameters():
    params = weights()
    assert not torch.equal(gradient(params[0], 0, 0), gradient(params[0], 0, 1))
    assert not torch.equal(gradient(params[0], 0, 0), gradient(params[3], 3, 0))
    assert not torch.equal(normal((3, 4), 0), normal((3, 4), 1))
