"""In two processes: synchronised batch normalization equals that of the whole batch; ActNorm starts alike."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from layers.norm.actnorm import ActNorm
from layers.norm.bn import BatchNorm

CHANNELS, RANKS = 5, 2
SHARDS = {"3+5": (3, 5), "0+4": (0, 4), "1+1": (1, 1)}


def layer(**options):
    torch.manual_seed(2)
    made = BatchNorm(CHANNELS, sync=True, dtype=torch.float64, **options)
    with torch.no_grad():
        made.weight.normal_()
        made.bias.normal_()
    return made


def batch(shards, seed=0):
    """The whole batch, an upstream gradient and a direction to differentiate along, all of one shape."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(shards), CHANNELS, 2, 3)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))


def passes(module, x, upstream, direction):
    """Output, first and second derivatives, and buffers after one training pass over ``x``."""
    x = x.clone().requires_grad_()
    y = module(x)
    inputs = (x, *module.parameters())
    first = torch.autograd.grad((y * upstream).sum(), inputs, create_graph=True)
    second = torch.autograd.grad((first[0] * direction).sum(), x)[0]
    found = {
        "y": y,
        "x": first[0],
        "gamma": first[1],
        "beta": first[2],
        "second": second,
        **dict(module.named_buffers()),
    }
    return {name: tensor.detach() for name, tensor in found.items()}


def run_rank(rank, folder):
    """Everything one rank computes, saved for the tests to read."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    found = {}
    for name, shards in SHARDS.items():
        mine = [tensor.split(shards)[rank] for tensor in batch(shards)]
        found[name] = passes(layer(), *mine)
    found["cumulative"] = passes(layer(momentum=None), *(tensor.split((3, 5))[rank] for tensor in batch((3, 5))))
    found["empty"] = passes(layer(), *batch((0,)))
    found["eval"] = {"y": layer().eval()(batch((3, 5))[0].split((3, 5))[rank]).detach()}
    alone = dist.new_group([0])
    if rank == 0:
        found["alone"] = passes(layer(process_group=alone), *batch((4,)))
    found["ddp"] = data_parallel(rank)
    found["compiled"] = compiled(rank)
    found["actnorm"] = actnorm(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def compiled(rank):
    """The same as `passes` for the first derivative, under the compiler and without a graph break."""
    module = layer()
    x, upstream, _ = (tensor.split((3, 5))[rank] for tensor in batch((3, 5)))
    y = torch.compile(module, backend="aot_eager", fullgraph=True)(x.requires_grad_())
    (gradient,) = torch.autograd.grad((y * upstream).sum(), x)
    return {"y": y.detach(), "x": gradient, "running_var": module.running_var.clone()}


def actnorm(rank):
    """ActNorm whose first batch only rank 0 has seen when it is wrapped; its state after one more batch."""
    module, (x, *_) = ActNorm(CHANNELS, dtype=torch.float64), batch((3, 5))
    if rank == 0:
        module(x)
    wrapped = nn.parallel.DistributedDataParallel(module)
    wrapped(x.split((3, 5))[rank])
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, CHANNELS, 2, dtype=torch.float64), layer(), nn.Flatten(), nn.LazyLinear(1)
    ).double()


def images():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64)


def trained(model, x):
    """Parameters and buffers after three steps that minimise the *sum* over this rank's outputs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def data_parallel(rank):
    model = network()
    model(images())
    model[1].reset_running_stats()
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    state = trained(wrapped, images().split((3, 5))[rank])
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("ranks"))
    multiprocessing.spawn(run_rank, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def assert_equal(found, expected, what):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=lambda text: f"{what}: {text}")


def assert_equals_whole_batch(found, expected):
    for name in ("y", "x", "second"):
        assert_equal(torch.cat([rank[name] for rank in found]), expected[name], name)
    for name in ("gamma", "beta"):
        assert_equal(sum(rank[name] for rank in found), expected[name], name)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for rank in found:
            assert_equal(rank[name], expected[name], name)


@pytest.mark.parametrize("name", SHARDS)
def test_two_ranks_equal_the_concatenated_batch(ranks, name):
    assert_equals_whole_batch([rank[name] for rank in ranks], passes(layer(), *batch(SHARDS[name])))


def test_the_cumulative_average_is_synchronised_too(ranks):
    assert_equals_whole_batch([rank["cumulative"] for rank in ranks], passes(layer(momentum=None), *batch((3, 5))))


def test_a_batch_empty_on_every_rank_moves_only_the_counter(ranks):
    for rank in ranks:
        fresh = layer()
        assert_equal(rank["empty"]["running_mean"], fresh.running_mean, "running_mean")
        assert_equal(rank["empty"]["running_var"], fresh.running_var, "running_var")
        assert rank["empty"]["num_batches_tracked"] == 1
        assert not rank["empty"]["gamma"].any()


def test_evaluation_and_a_group_of_one_rank_do_not_synchronise(ranks):
    assert_equal(torch.cat([rank["eval"]["y"] for rank in ranks]), layer().eval()(batch((3, 5))[0]).detach(), "eval")
    for name, expected in passes(layer(), *batch((4,))).items():
        assert_equal(ranks[0]["alone"][name], expected, name)


def test_the_compiler_sees_through_both_collectives(ranks):
    for rank in ranks:
        for name, tensor in rank["compiled"].items():
            assert_equal(tensor, rank["3+5"][name], name)


def test_wrapping_gives_all_ranks_the_first_batch_of_rank_0(ranks):
    module, (x, *_) = ActNorm(CHANNELS, dtype=torch.float64), batch((3, 5))
    module(x)
    for rank in ranks:
        for name, expected in module.state_dict().items():
            assert torch.equal(rank["actnorm"][name], expected)


def test_data_parallel_training_equals_training_on_the_whole_batch(ranks):
    model = network()
    model(images())
    model[1].reset_running_stats()
    whole = copy.deepcopy(model)
    # The wrapper averages gradients over ranks: half the learning rate of the sum over the whole batch.
    for parameter in whole.parameters():
        parameter.register_hook(lambda gradient: gradient / RANKS)
    expected = trained(whole, images())
    for rank in ranks:
        assert rank["ddp"].keys() == expected.keys()
        for name, tensor in expected.items():
            assert_equal(rank["ddp"][name], tensor, name)
    assert any((model.state_dict()[name] != tensor).any() for name, tensor in expected.items())


def test_without_a_process_group_sync_changes_nothing():
    synchronised, plain = layer(), BatchNorm(CHANNELS, dtype=torch.float64)
    plain.load_state_dict(synchronised.state_dict())
    for name, expected in passes(plain, *batch((4,))).items():
        assert_equal(passes(copy.deepcopy(synchronised), *batch((4,)))[name], expected, name)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        synchronised(torch.zeros(1, CHANNELS, dtype=torch.float64))
