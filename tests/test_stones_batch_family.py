"""What ghost-bn, bn-gn, iew, bcn, batch-renorm and mabn share: refusals of batches, state, no wait for the device."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from batches import C, N, data, near, train_step
from torch.utils._python_dispatch import TorchDispatchMode

from layers.card import OptionError
from layers.catalog import stone
from layers.norm.batch_renorm import R_END, START, BatchRenorm
from layers.norm.bcn import BatchChannelNorm
from layers.norm.bn_gn import BatchGroupNorm
from layers.norm.ghost_bn import GhostBatchNorm
from layers.norm.iew import InferenceExampleWeighing
from layers.norm.mabn import MovingAverageBatchNorm

LAYERS = {
    "ghost-bn": lambda **to: GhostBatchNorm(C, 2, running="sequential", **to),
    "bn-gn": lambda **to: BatchGroupNorm(C, 2, **to),
    "iew": lambda **to: InferenceExampleWeighing(C, 0.3, **to),
    "bcn": lambda **to: BatchChannelNorm(C, 2, **to),
    "bcn estimate": lambda **to: BatchChannelNorm(C, 2, estimate=True, **to),
    "batch-renorm": lambda **to: BatchRenorm(C, **to),
    "mabn": lambda **to: MovingAverageBatchNorm(C, N, 3 * N, warmup=2, renorm_after=4, clip=1.2, **to),
}
every = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.parametrize(
    ("make", "samples", "words"),
    [
        (lambda: GhostBatchNorm(C, 4), 6, "GhostBatchNorm: ghost_size=4 does not divide the batch of 6.*1, 2, 3, 6"),
        (lambda: BatchGroupNorm(C, 2, examples_per_group=4), 6, "examples_per_group=4 does not divide.*1, 2, 3, 6"),
        (lambda: MovingAverageBatchNorm(C, 4, 8), 6, "batch=4, but the input has a batch of 6: give batch=6"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_the_remedy_in_training_only(make, samples, words):
    layer, x = make(), data(shape=(samples, C, 3, 2)).float()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(OptionError, match=words):
        layer(x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())
    assert layer.eval()(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bn-gn", {"groups": 5}, "groups=5 does not divide 12 channels: .* 1, 2, 3, 4, 6, 12 groups"),
        ("bn-gn", {"channels_per_group": 5}, "channels_per_group=5 does not divide 12"),
        ("bn-gn", {"groups": 2, "channels_per_group": 4}, "contradict"),
        ("iew", {"groups": 5}, "groups=5 does not divide 12"),
        ("iew", {"alpha": 1.5}, "alpha=1.5 is out of range"),
        ("bcn", {"groups": 5}, "groups=5 does not divide 12"),
        ("bcn", {"groups": 3, "moving_speed": -0.1}, "moving_speed=-0.1 is out of range"),
        ("bcn", {"groups": 3, "group_affine": "none"}, "group, channel"),
        ("batch-renorm", {"r_max": 0.5}, "r_max=0.5 is out of range: it must be a finite number ≥ 1"),
        ("batch-renorm", {"d_max": -1.0}, "d_max=-1.0 is out of range"),
        ("batch-renorm", {"schedule": "linear"}, "none, paper"),
        ("batch-renorm", {"momentum": 0.0}, "momentum=0.0 is out of range"),
        ("batch-renorm", {"start": 30_000}, "start=30000 must come before r_end=40000 and d_end=25000"),
        ("ghost-bn", {"ghost_size": 0}, "ghost_size=0 is out of range"),
        ("ghost-bn", {"running": "last"}, "batch, sequential"),
        ("mabn", {"batch": 3, "real_batch": 8}, "real_batch=8 is not a multiple of batch=3"),
        ("mabn", {"clip": 0.5}, "clip=0.5 is out of range"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(name, options, words):
    with pytest.raises(OptionError, match=words) as refusal:
        stone(name).load()(12, **options)
    assert refusal.value.option in options


@every
def test_saved_in_the_middle_it_goes_on_bit_for_bit(name):
    layer, other = (LAYERS[name]() for _ in range(2))
    if name == "batch-renorm":
        layer.num_batches_tracked.fill_(START + 3000)
    for seed in range(5):
        train_step(layer.double(), seed)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.double().load_state_dict(torch.load(file, weights_only=True), strict=True)
    for seed in range(5, 10):
        assert all(torch.equal(*pair) for pair in zip(train_step(layer, seed), train_step(other, seed), strict=True))
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in layer.state_dict().items())


@every
def test_resetting_the_running_statistics_makes_them_new(name):
    layer = LAYERS[name]()
    fresh = copy.deepcopy(layer.state_dict())
    for seed in range(4):
        train_step(layer.double(), seed)
    moved = [key for key, tensor in layer.state_dict().items() if not torch.equal(tensor.to(fresh[key]), fresh[key])]
    assert set(moved) >= {key for key, _ in layer.named_buffers()} - {"num_batches_tracked"}
    layer.reset_running_stats()
    assert all(torch.equal(tensor.to(fresh[key]), fresh[key]) for key, tensor in layer.state_dict().items())


class Reads(TorchDispatchMode):
    """Counts how often a value leaves the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@every
def test_nothing_waits_for_the_device(name):
    layer = LAYERS[name](dtype=torch.float64)
    with Reads() as reads:
        for seed in range(3):
            train_step(layer, seed)
        layer.eval()(data())
    assert reads.count == 0


@every
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_training_leaves_gradients_and_buffers_as_eager_does(name):
    """Warmed buffers: what was read before its update must not be read again in backward."""
    torch._dynamo.reset()
    eager = LAYERS[name](dtype=torch.float64)
    if name == "batch-renorm":
        eager.num_batches_tracked.fill_(R_END)
    for seed in range(4):
        train_step(eager, seed)
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(4, 8):
        near(train_step(compiled, seed), train_step(eager, seed), 1e-12)
    near(dict(layer.named_buffers()), dict(eager.named_buffers()), 1e-12)
