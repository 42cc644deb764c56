"""ReSprop: its thresholds, what it remembers and when, alone, resumed and on several ranks."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from layers.backward.resprop import ReSpropConv2d, keep_local
from layers.card import OptionError
from layers.convert import convert, fold
from layers.reused import Schedule, bounds


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(**options):
    torch.manual_seed(0)
    return ReSpropConv2d(3, 4, **{"padding": 1, **options}, dtype=torch.float64)


def step(layer, seed=0, shape=(6, 3, 5, 5), upstream=None):
    """One forward and backward; the gradients of x and the parameters."""
    x = normal(*shape, seed=seed).requires_grad_()
    y = layer(x)
    upstream = normal(*y.shape, seed=100 + seed) if upstream is None else upstream
    return torch.autograd.grad(y, (x, *layer.parameters()), upstream)


def kept(layer, upstream):
    """The share of ``upstream`` that is not reused."""
    return ((upstream - layer.prev_grad).abs() > layer.threshold()).double().mean().item()


def test_the_first_step_is_dense_and_remembers_a_sample():
    layer, plain = layer_of(threshold_init=1e20), nn.Conv2d(3, 4, 3, padding=1).double()
    plain.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    torch.testing.assert_close(step(layer), step(plain))
    upstream = normal(6, 4, 5, 5, seed=100)
    assert any(torch.equal(layer.prev_grad, sample) for sample in upstream)
    assert (int(layer.exponent), int(layer.steps)) == (0, 1)


@pytest.mark.parametrize("reuse", [0.5, 0.9])
def test_the_threshold_reaches_the_density_and_stays_about_it(reuse):
    layer = layer_of(reuse_sparsity=reuse)
    shares = []
    for seed in range(60):
        if seed > 30:
            shares.append(kept(layer, normal(6, 4, 5, 5, seed=100 + seed)))
        step(layer, seed)
    assert min(shares) < 1 - reuse < max(shares)
    assert abs(sum(shares) / len(shares) - (1 - reuse)) < 0.2
    assert 1e-7 * 2.0 ** int(layer.exponent) == pytest.approx(layer.threshold().item())


def test_the_threshold_adapts_in_the_logarithm_of_the_scale():
    layer = layer_of(reuse_sparsity=0.5)
    for seed in range(60):
        step(layer, seed)
    before = int(layer.exponent)
    for seed in range(20):
        step(layer, seed, upstream=2.0**10 * normal(6, 4, 5, 5, seed=seed))
    assert abs(int(layer.exponent) - before - 10) <= 1


def test_the_threshold_never_becomes_zero_and_can_come_back():
    layer, same = layer_of(threshold_init=1e-29), torch.ones(6, 4, 5, 5, dtype=torch.float64)
    for _ in range(20):
        step(layer, upstream=same)  # nothing changes: too little is kept, and τ is halved
    assert layer.threshold().item() == 1e-29 * 2.0 ** bounds(1e-29, 2.0)[0] >= 1e-30
    for seed in range(5):
        step(layer, seed)
    assert layer.threshold().item() > 1e-29


def test_half_precision_keeps_a_small_threshold():
    layer = layer_of().to(torch.float16)
    assert layer.threshold().item() == pytest.approx(1e-7)


def schedule(**options):
    layer = layer_of(**options)
    return Schedule(*layer._schedule())


def test_warm_up_goes_from_density_one_down_to_the_final_one():
    found = schedule(reuse_sparsity=0.75, epoch=4, warmup=True)
    steps = [torch.tensor(4 * epoch + 2) for epoch in range(10)]
    wanted = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.25]
    assert [float(found.wanted(step)) for step in steps] == pytest.approx(wanted)
    assert [bool(found.dense(step)) for step in steps] == [True, True] + [False] * 8


def test_the_first_and_last_step_of_an_epoch_are_dense():
    found = schedule(epoch=4)
    assert [bool(found.dense(torch.tensor(step))) for step in range(8)] == [True, False, False, True] * 2
    assert schedule().dense(torch.tensor(0)) is None


def test_remembered_samples_are_spread_evenly_and_decided_by_the_seed():
    made = {seed: schedule(sample_seed=seed) for seed in (0, 1)}
    draws = {seed: [int(each.chosen(torch.tensor(t), 8)) for t in range(4000)] for seed, each in made.items()}
    for found in draws.values():
        counts = torch.bincount(torch.tensor(found), minlength=8)
        assert (counts - 500).abs().max() < 50
    assert draws[0] != draws[1]
    assert int(schedule(sample_seed=2**70).chosen(torch.tensor(3), 8)) in range(8)


def test_evaluation_and_no_grad_store_nothing():
    layer = layer_of()
    step(layer)
    before = copy.deepcopy(layer.state_dict())
    step(layer.eval(), 1)
    with torch.no_grad():
        layer.train()(normal(2, 3, 9, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_outputs_of_another_size_take_a_dense_step_and_start_anew():
    layer, plain = layer_of(threshold_init=1e20), nn.Conv2d(3, 4, 3, padding=1).double()
    plain.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    step(layer)
    torch.testing.assert_close(step(layer, shape=(2, 3, 7, 6)), step(plain, shape=(2, 3, 7, 6)))
    assert layer.prev_grad.shape == (4, 7, 6)


def test_any_number_of_samples_may_follow_any_other_and_one_is_enough():
    layer = layer_of(threshold_init=0.5)
    for seed, samples in enumerate((6, 1, 3, 0, 2)):
        assert all(found.isfinite().all() for found in step(layer, seed, (samples, 3, 5, 5)))
    assert int(layer.steps) == 4  # that without samples is none


def test_forgetting_makes_the_next_step_dense_and_keeps_the_threshold():
    layer, plain = layer_of(threshold_init=1e20), nn.Conv2d(3, 4, 3, padding=1).double()
    plain.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    step(layer)
    layer.forget()
    torch.testing.assert_close(step(layer, 1), step(plain, 1))
    assert layer.threshold().item() == pytest.approx(1e20)


def test_a_gradient_that_overflows_is_not_remembered():
    layer = layer_of(structure="sample")
    step(layer)
    upstream = normal(6, 4, 5, 5)
    upstream[:, 0] = float("inf")
    step(layer, upstream=upstream)
    assert layer.prev_grad.isfinite().all()
    assert all(found.isfinite().all() for found in step(layer, 1))


def test_two_uses_in_one_graph_read_the_same_past_and_the_last_to_go_back_is_kept():
    layer, twin = layer_of(threshold_init=0.5), layer_of(threshold_init=0.5)
    step(layer), step(twin)
    xs = [normal(6, 3, 5, 5, seed=seed).requires_grad_() for seed in (1, 2)]
    upstreams = [normal(6, 4, 5, 5, seed=seed) for seed in (3, 4)]
    first, second = (layer(x) for x in xs)
    found = torch.autograd.grad((first, second), xs, upstreams)
    for x, upstream, ours in zip(xs, upstreams, found, strict=True):
        other = copy.deepcopy(twin)
        (theirs,) = torch.autograd.grad(other(x), x, upstream)
        torch.testing.assert_close(ours, theirs)
    assert any(torch.equal(layer.prev_grad, sample) for sample in upstreams[0])
    assert int(layer.steps) == 2


@pytest.mark.parametrize("options", [{"threshold_init": 0.5}, {"structure": "channel", "reuse_sparsity": 0.5}])
def test_a_resumed_training_goes_on_bit_by_bit(options):
    layer = layer_of(**options)
    for seed in range(3):
        step(layer, seed)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    resumed = ReSpropConv2d(3, 4, padding=1, **options, dtype=torch.float64)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3, 6):
        assert all(map(torch.equal, step(resumed, seed), step(layer, seed)))


def test_a_checkpoint_whose_memory_is_of_other_channels_is_refused():
    saved = layer_of().state_dict()
    with pytest.raises(RuntimeError, match="prev_grad"):
        layer_of().load_state_dict({**saved, "prev_grad": torch.zeros(5, 2, 2)})


def test_nothing_is_kept_at_density_one():
    assert set(layer_of(reuse_sparsity=0.0).state_dict()) == {"weight", "bias"}
    assert set(layer_of(reuse_sparsity=0.1, margin=0.1).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reuse_sparsity": 1.0}, r"reuse_sparsity=1\.0 is out of range: it must be a finite number ≥ 0 and < 1"),
        ({"threshold_init": 0.0}, r"threshold_init=0\.0 is out of range"),
        ({"factor": 1.0}, r"factor=1\.0 is out of range"),
        ({"warmup": True}, "warmup counts epochs: give epoch"),
        ({"epoch": 5, "structure": "sample"}, "structure=sample keeps the same share in every step"),
        ({"structure": "row"}, "structure='row' is not one of element, sample, channel"),
    ],
)
def test_bad_options_are_refused_by_name(options, words):
    with pytest.raises(OptionError, match=words):
        ReSpropConv2d(3, **options)


def test_convert_keeps_the_parameters_and_fold_gives_the_convolution_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)).double()
    x, parameters = normal(2, 3, 5, 5), list(model.parameters())
    before = model(x)
    convert(model, "resprop", threshold_init=0.1, only="0")
    assert [type(layer) for layer in model] == [ReSpropConv2d, nn.ReLU, nn.Conv2d]
    convert(model, "resprop", only="2")
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), before)
    assert [type(layer) for layer in fold(model)] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert torch.equal(model(x), before)
    with pytest.raises(OptionError, match=r"Linear has no torch\.nn\.Conv2d for resprop"):
        convert(nn.Linear(2, 2), "resprop")


RANKS = 2


def network(local):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), ReSpropConv2d(3, 4, padding=1, threshold_init=0.5)).double()
    for parameter in model.parameters():
        parameter.data = normal(*parameter.shape, seed=parameter.numel())
    return keep_local(model) if local else model


def work(rank, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    found = {}
    for local in (False, True):
        model = network(local)
        step(model, rank, (4, 2, 5, 5))  # h has its size before the model is wrapped
        wrapped = DistributedDataParallel(model)
        for seed in range(3):
            y = wrapped(normal(4, 2, 5, 5, seed=10 * seed + rank))
            y.backward(normal(*y.shape, seed=50 + 10 * seed + rank))
        y = wrapped(normal(4, 2, 5, 5))
        found[local] = {name: tensor.clone() for name, tensor in model.named_buffers()}
        found[local]["gradient"] = model[1].weight.grad
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_share_the_memory_of_rank_0_unless_it_is_kept_local(tmp_path: Path):
    multiprocessing.spawn(work, args=(tmp_path,), nprocs=RANKS)
    shared, local = zip(*(torch.load(tmp_path / f"{rank}.pt").values() for rank in range(RANKS)), strict=True)
    assert torch.equal(shared[0]["1.prev_grad"], shared[1]["1.prev_grad"])
    assert not torch.equal(local[0]["1.prev_grad"], local[1]["1.prev_grad"])
    for both in (shared, local):
        assert torch.equal(both[0]["gradient"], both[1]["gradient"])
        assert int(both[1]["1.steps"]) == 4


def test_a_rank_that_keeps_its_memory_goes_its_own_way():
    names = network(True)._ddp_params_and_buffers_to_ignore
    assert sorted(names) == ["1.exponent", "1.prev_grad", "1.steps"]
    assert not hasattr(network(False), "_ddp_params_and_buffers_to_ignore")


def angle(one, other):
    """The angle between two vectors, in degrees."""
    cosine = torch.cosine_similarity(one.flatten(), other.flatten(), 0)
    return math.degrees(math.acos(cosine))


@pytest.mark.parametrize(
    ("share", "degrees"), [(0.5, 15.5), (0.3, 27.7), (0.2, 36.3), (0.1, 48.5), (0.05, 58.1), (0.01, 73.1)]
)
def test_the_angles_of_the_notes_are_those_of_the_largest_elements_of_a_gaussian_vector(share, degrees):
    vector = normal(200_000)
    largest = torch.where(vector.abs() >= vector.abs().quantile(1 - share), vector, 0)
    assert angle(vector, largest) == pytest.approx(degrees, abs=0.3)


def test_37_degrees_is_the_angle_of_a_gaussian_vector_to_its_signs():
    vector = normal(200_000)
    assert angle(vector, vector.sign()) == pytest.approx(37.07, abs=0.1)
    assert math.degrees(math.acos(math.sqrt(2 / math.pi))) == pytest.approx(37.07, abs=0.01)


def test_a_sample_of_the_step_before_is_on_average_nearly_orthogonal_to_the_gradients_of_this_one():
    torch.manual_seed(0)
    layer = ReSpropConv2d(8, 8, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), layer, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    patterns, angles = torch.randn(4, 1, 16, 16), []
    for step in range(30):
        target = torch.randint(0, 4, (32,))
        optimizer.zero_grad()
        before = layer.prev_grad.clone()

        def note(module, inputs, upstream, before=before, step=step):
            if step >= 5:
                angles.extend(angle(sample, before) for sample in upstream[0])

        hook = layer.register_full_backward_hook(note)
        nn.functional.cross_entropy(model(patterns[target] + torch.randn(32, 1, 16, 16)), target).backward()
        hook.remove()
        optimizer.step()
    assert len(angles) == 25 * 32
    assert 75 < sum(angles) / len(angles) < 100
