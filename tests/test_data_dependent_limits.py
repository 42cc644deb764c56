"""Data-dependent initialization: which layers it takes, what it refuses with everything as it was, and over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import assert_near, assert_same
from initialized import assert_same_state, assert_standard, batch, images, moments, network, seeded, state
from torch import distributed, multiprocessing, nn
from torch.nn.utils import parametrizations as of_torch

from layers.card import OptionError
from layers.init.data_dependent import chosen, data_dependent
from layers.norm.actnorm import ActNorm
from layers.weight.weight_norm import WeightNormConv2d
from layers.weight.weight_standardization import WSConv2d

# Which layers are taken.


def reasons(layers="all"):
    frozen = nn.Conv2d(4, 4, 1)
    frozen.bias.requires_grad_(False)
    model = nn.ModuleDict(
        {
            "plain": nn.Conv2d(4, 4, 1),
            "ours": WeightNormConv2d(4, 4, 1),
            "one": WeightNormConv2d(4, 4, 1, norm="tensor"),
            "torch": of_torch.weight_norm(nn.Conv2d(4, 6, 1)),
            "inputs": of_torch.weight_norm(nn.ConvTranspose2d(4, 6, 1)),
            "outputs": of_torch.weight_norm(nn.ConvTranspose2d(4, 6, 1), dim=1),
            "shared": of_torch.weight_norm(nn.ConvTranspose2d(4, 6, 1, groups=2), dim=1),
            "none": of_torch.weight_norm(nn.Linear(4, 6), dim=None),
            "spectral": of_torch.spectral_norm(nn.Linear(4, 6)),
            "standardized": WSConv2d(4, 6, 2),
            "lazy": nn.LazyLinear(3),
            "complex": nn.Linear(3, 3, dtype=torch.complex64),
            "attention": nn.MultiheadAttention(4, 2),
            "frozen": frozen,
            "norm": nn.BatchNorm2d(4),
        }
    )
    return chosen(model, layers)


def test_each_layer_that_is_not_taken_has_a_reason():
    said = reasons()
    assert [name for name, reason in said.items() if not reason] == ["plain", "ours", "torch", "outputs"]
    assert (
        said["one"] == said["inputs"] == said["shared"] == said["none"] == "its lengths are not one per output channel"
    )
    assert "parametrized" in said["spectral"]
    assert "WSConv2d" in said["standardized"]
    assert "lazy" in said["lazy"]
    assert said["complex"] == "torch.complex64: real floating-point weights alone"
    assert "attention" in said["attention.out_proj"]
    assert "frozen" in said["frozen"]
    assert "norm" not in said


def test_the_paper_takes_weight_normalized_layers():
    said = reasons("weight-norm")
    assert [name for name, reason in said.items() if not reason] == ["ours", "torch", "outputs"]
    assert said["plain"] == "not weight-normalized"


def test_a_frozen_layer_is_left_alone():
    model = seeded(network)
    model[0].requires_grad_(False)
    before = state(model)
    data_dependent(model, images())
    for name in ("0.weight", "0.gain", "0.bias"):
        assert_same(state(model)[name], before[name], what=name)
    assert_standard(moments(model, images(), layers=list(model[1:].modules())))


# What it refuses: with everything as it was.


def test_a_model_with_a_lazy_layer_is_refused_by_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyBatchNorm2d())
    with pytest.raises(OptionError, match=r"1\.weight is lazy, it has no shape yet: run a batch"):
        data_dependent(model, images())


class Fails(nn.Module):
    def forward(self, x):
        raise KeyError("a fault of the model")


def dead():
    """A model whose second convolution has a filter of zeros."""
    model = nn.Sequential(*network()[:2], nn.Conv2d(8, 3, 1)).double()
    model[2].weight.data[1] = 0
    return model


def loud():
    """A model in float16 that cannot hold what its first layer makes of large inputs."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).half()
    nn.init.ones_(model[0].weight)
    return model


def nan_image():
    x = images()
    x[3, 1, 2, 2] = torch.nan
    return x


REFUSALS = {
    "not finite": (network, nan_image, {}, "holds inf or nan"),
    "infinite": (network, lambda: images() / 0, {}, "holds inf or nan"),
    "no tensor": (network, lambda: 5, {}, "the batch is int without tensors"),
    "nothing": (network, lambda: (), {}, "the batch is tuple without tensors"),
    "meta": (network, lambda: images().to("meta"), {}, "meta device"),
    "one value": (lambda: nn.Linear(4, 4).double(), lambda: batch(1, 4), {}, "Linear: channel 0.* has 1 values"),
    "none": (network, lambda: images()[:0], {}, "0: channel 0.* has 0 values"),
    "constant": (dead, images, {}, "2: channel 1 is constant"),
    "repeated": (network, lambda: batch(1, 3, 1, 1).expand(4, 3, 8, 8), {}, "0: channel 0 is constant"),
    "overflow": (
        loud,
        lambda: torch.full((8, 4), 6e4).half() * torch.tensor([1, -1] * 4).half().view(-1, 1),
        {},
        "0: channel 0 is not finite",
    ),
    "no layers": (lambda: nn.Sequential(nn.ReLU()), images, {}, "no layer of this Sequential"),
    "none of them": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1)),
        images,
        {"layers": "weight-norm"},
        "0: not weight-normalized",
    ),
    "meta model": (lambda: network().to("meta"), images, {}, "on the meta device"),
    "not reached": (lambda: Unused(), lambda: batch(8, 4), {}, "unused was not reached"),
    "scale": (network, images, {"scale": 0.0}, "scale=0.0 is out of range"),
    "eps": (network, images, {"eps": -1.0}, "eps=-1.0 is out of range"),
    "choice": (network, images, {"layers": "some"}, "layers='some' is not one of"),
}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_why_and_leaves_everything_as_it_was(case):
    make, given, options, message = REFUSALS[case]
    model = seeded(make)
    before, x = state(model), given()
    with pytest.raises(OptionError, match=message) as refusal:
        data_dependent(model, x, **options)
    assert "\n" not in str(refusal.value)
    if case != "meta model":
        assert_same_state(state(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_fault_of_the_model_passes_through_and_nothing_is_half_done():
    model = seeded(lambda: nn.Sequential(*network()[:4], nn.BatchNorm2d(6), ActNorm(6), Fails()).double())
    before = state(model)
    with pytest.raises(KeyError, match="a fault of the model"):
        data_dependent(model, images())
    assert_same_state(state(model), before)
    assert not model[5].initialized
    model[:6](images())  # ActNorm still takes its first batch
    assert model[5].initialized


def test_a_constant_channel_is_admitted_with_eps():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1)).double())
    model[0].weight.data[1] = 0
    ((mean, var),) = moments(data_dependent(model, images(), eps=1e-8), images())
    assert mean.abs().max() < 1e-12
    assert var[1] == 0
    assert_near(var[::2], torch.ones(2).double(), 1e-7, what="variance")


# Over ranks.

RANKS = 2


def shard(rank):
    return images(seed=10 + rank)[: 16 - 4 * rank]


def parallel(rank, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    found = {"state": state(data_dependent(seeded(network), shard(rank)))}
    alone = distributed.new_group([0]), distributed.new_group([1])
    found["alone"] = state(data_dependent(seeded(network), shard(rank), group=alone[rank]))
    cases = {
        "nan": (network, nan_image() if rank else shard(0)),
        "actnorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), ActNorm(4)).double(), shard(rank)),
        "empty": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)).double(), images()[: rank and 16]),
    }
    for name, (make, x) in cases.items():
        model = seeded(make)
        try:
            found[name] = state(data_dependent(model, x))
        except OptionError as refusal:
            found[name] = str(refusal)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("ranks"))
    multiprocessing.spawn(parallel, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_ranks_get_the_same_parameters_those_of_the_whole_batch(ranks):
    whole = state(data_dependent(seeded(network), torch.cat([shard(rank) for rank in range(RANKS)])))
    for name, tensor in ranks[0]["state"].items():
        assert_same(ranks[1]["state"][name], tensor, what=f"{name} across ranks")
        assert_near(tensor, whole[name], 1e-12, what=name)


def test_a_group_of_one_rank_is_alone(ranks):
    for rank, found in enumerate(ranks):
        assert_same_state(found["alone"], state(data_dependent(seeded(network), shard(rank))))


def test_what_one_rank_refuses_all_refuse(ranks):
    assert ranks[0]["nan"] == ranks[1]["nan"] == "the batch holds inf or nan"
    assert ranks[0]["actnorm"] == ranks[1]["actnorm"]
    assert "would differ between ranks" in ranks[0]["actnorm"]


def test_a_rank_without_samples_takes_part(ranks):
    wanted = state(data_dependent(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1)).double()), images()))
    for found in ranks:
        for name, tensor in found["empty"].items():
            assert_near(tensor, wanted[name], 1e-12, what=name)
