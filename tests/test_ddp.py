"""Data-parallel training over two processes: one model, whatever the layer is.

Every example of every stone is trained one step behind a convolution, by DistributedDataParallel and by hand.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from harness import BATCH, CHANNELS, Case, assert_near, assert_same, cases, normal, outputs, state
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

RANKS = 2
CASES = {str(parameter.id): parameter.values[0] for parameter in cases(True)}


class Network(nn.Module):
    """A linear map over the channels, so that something is learnt in front of every layer, and the layer."""

    def __init__(self, case: Case, rank: int) -> None:
        super().__init__()
        self.layer = case.layer(seed=rank)
        self.weight = nn.Parameter(normal((CHANNELS, CHANNELS), seed=20 + rank))

    def forward(self, x):
        return outputs(self.layer(torch.einsum("oc,nc...->no...", self.weight, x)))[0]


def shard(case, rank):
    """A batch and an upstream gradient of this rank."""
    shapes = case.shape(), case.output(case.shape())
    return tuple(normal(shape, seed=30 + 2 * rank + part) for part, shape in enumerate(shapes))


def gradients(model, x, upstream):
    """Gradients of the mean over the batch, by name, and the buffers afterwards."""
    model.zero_grad()
    model(x).backward(upstream / len(x))
    named = {name.removeprefix("module."): parameter.grad.clone() for name, parameter in model.named_parameters()}
    return named, {name.removeprefix("module."): buffer.clone() for name, buffer in model.named_buffers()}


def step(case, rank):
    """What this rank sees: the state that it starts from, data-parallel gradients, and its own."""
    model = Network(case, rank)
    wrapped = DistributedDataParallel(model, find_unused_parameters=False)
    start = copy.deepcopy(model.state_dict())
    alone = copy.deepcopy(model)
    found, buffers = gradients(wrapped, *shard(case, rank))
    own, own_buffers = gradients(alone, *shard(case, rank))
    next_start = {}
    model.layer.register_forward_pre_hook(lambda layer, inputs: next_start.update(state(layer)))
    wrapped(shard(case, rank)[0])
    return {
        "start": start,
        "found": found,
        "own": own,
        "buffers": buffers,
        "own_buffers": own_buffers,
        "next_start": {f"layer.{name}": buffer for name, buffer in next_start.items()},
    }


def work(rank, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    found = {}
    for name, case in CASES.items():
        try:
            found[name] = step(case, rank)
        except Exception as error:  # one stone must not take the others with it
            found[name] = repr(error)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("ranks"))
    multiprocessing.spawn(work, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES, ids=str)
def test_a_data_parallel_step_is_the_mean_of_the_shards(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert not isinstance(first, str), first
    assert not isinstance(second, str), second
    for key, tensor in first["start"].items():
        assert_same(second["start"][key], tensor, what=f"{key}, which rank 0 decides")
    for key, gradient in first["found"].items():
        assert_same(second["found"][key], gradient, what=f"gradient of {key} across ranks")
        mean = (first["own"][key] + second["own"][key]) / RANKS
        assert_near(gradient, mean, 1e-12, what=f"gradient of {key}")
    for rank in (first, second):
        for key, buffer in rank["buffers"].items():
            assert_same(buffer, rank["own_buffers"][key], what=f"buffer {key}")
            assert_same(rank["next_start"][key], first["buffers"][key], what=f"{key}, which rank 0 decides again")


# A rule for the backward may take a statistic of the whole error, in which samples meet.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.couples and case.exact], ids=str)
def test_where_samples_do_not_meet_it_is_the_whole_batch(ranks, name):
    case = CASES[name]
    whole = [torch.cat(parts) for parts in zip(*(shard(case, rank) for rank in range(RANKS)), strict=True)]
    assert len(whole[0]) == RANKS * BATCH
    wanted, _ = gradients(Network(case, 0), *whole)
    for key, gradient in wanted.items():
        assert_near(ranks[0][name]["found"][key], gradient, 1e-12, what=f"gradient of {key}")
