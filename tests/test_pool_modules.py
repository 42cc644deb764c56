"""Strip, mixed, spatial pyramid, pyramid and split-merge pooling beside modules spelt with torch.nn, as published."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from harness import assert_near, normal, randomise
from torch import nn
from torch.nn import functional as F

from layers.card import OptionError
from layers.catalog import stone
from layers.pool.mixed_pooling import MixedPooling
from layers.pool.ppm import PyramidPooling
from layers.pool.split_merge import SplitMerge, merge, split
from layers.pool.spp import SpatialPyramidPooling
from layers.pool.strip_pooling import StripPooling
from layers.pooling import ConvNorm
from profiles.counting import facts
from profiles.counting.flops import Counting
from profiles.subject import Setup, subject

C = 12
SHAPE = (3, C, 7, 6)


def published(layers, x):
    """``f(name, x)``: the convolution and torch's batch norm of the sub-module called ``name``, strips expanded."""

    def apply(name, x):
        part = layers.get_submodule(name)
        norm, y = part.norm, F.conv2d(x, part.conv.weight, padding=part.conv.padding)
        running = None if part.training else norm.running_mean, None if part.training else norm.running_var
        return F.batch_norm(y, *running, norm.weight, norm.bias, part.training, eps=norm.eps)

    def enlarged(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    return apply, lambda z: enlarged(z, x.shape[2:])


def strips(layer, x):
    cb, up = published(layer, x)
    rows, columns = F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None))
    return x * torch.sigmoid(layer.fuse(F.relu(up(cb("rows", rows)) + up(cb("columns", columns)))))


def mixed(layer, x):
    cb, up = published(layer, x)
    near, far = F.relu(cb("near", x)), F.relu(cb("far", x))
    first, second = (F.adaptive_avg_pool2d(near, size) for size in layer.pool_sizes)
    rows, columns = F.adaptive_avg_pool2d(far, (None, 1)), F.adaptive_avg_pool2d(far, (1, None))
    grids = F.relu(cb("local", near) + up(cb("first", first)) + up(cb("second", second)))
    both = F.relu(up(cb("rows", rows)) + up(cb("columns", columns)))
    gathered = [F.relu(cb("gather_near", grids)), F.relu(cb("gather_far", both))]
    return F.relu(x + cb("out", torch.cat(gathered, 1)))


def pyramid(layer, x):
    cb, up = published(layer, x)
    levels = [level for level in layer.levels if level]
    return torch.cat([x, *(up(F.relu(cb(f"grids.{i}", F.adaptive_avg_pool2d(x, n)))) for i, n in enumerate(levels))], 1)


MODULES = {
    "strips": (StripPooling(C), strips),
    "mixed": (MixedPooling(C, (5, 4)), mixed),
    "mixed-small": (MixedPooling(C), mixed),
    "pyramid": (PyramidPooling(C), pyramid),
    "pyramid-of-two": (PyramidPooling(C, (2, 0, 0, 4)), pyramid),
}


def ready(name):
    layer, spelt = copy.deepcopy(MODULES[name])
    layer.double()
    randomise(layer)
    layer(normal(SHAPE, seed=3))
    return layer, spelt


@pytest.mark.parametrize("shape", [SHAPE, (2, C, 12, 6), (2, C, 2, 9)], ids=str)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_what_is_published(name, train, shape):
    layer, spelt = ready(name)
    layer.train(train)
    x = normal(shape, seed=1).requires_grad_()
    leaves = (x, *layer.parameters())
    found, wanted = layer(x), spelt(layer, x)
    assert_near(found, wanted, 1e-9, "y")
    upstream = normal(wanted.shape, seed=7)
    sides = [torch.autograd.grad(y, leaves, upstream) for y in (found, wanted)]
    for ours, theirs in zip(*sides, strict=True):
        assert_near(ours, theirs, 1e-7, "gradient")


def test_the_published_formula_without_relu_is_another_gate():
    with_relu, without = (StripPooling(C, relu=relu).double() for relu in (True, False))
    without.load_state_dict(with_relu.state_dict())
    x = normal(SHAPE)
    assert (with_relu(x) - without(x)).abs().max() > 1e-3


def test_a_gate_has_its_own_number_of_channels_and_lies_between_0_and_1():
    y = StripPooling(C, out_channels=5, returns="gate")(normal(SHAPE).float())
    assert y.shape == (3, 5, 7, 6)
    assert 0 < y.min() < y.max() < 1
    assert torch.equal(y.clone().mul_(2), y.mul_(2))


def test_strips_have_the_sizes_of_the_notes_and_no_module_expands_them():
    layer, x = StripPooling(64).eval(), torch.randn(2, 64, 16, 16)
    with Counting() as counting:
        layer(x)
    strips = 2 * (16 + 16) * 64 * 64 * 3
    assert counting.count.macs == strips + 2 * 16 * 16 * 64 * 64
    assert [stat.symbolic() for stat in stone("strip-pooling").card.statistics[:2]] == ["N×C×H×1", "N×C×1×W"]


def test_permuting_a_row_leaves_the_means_of_rows_and_moves_the_gate_through_columns_only():
    layer = StripPooling(C, returns="gate").double()
    nn.init.zeros_(layer.columns.norm.weight)
    x = normal(SHAPE)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    assert_near(layer(x[..., order]), layer(x), 1e-12)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("size", [(13, 13), (10, 10), (12, 18), (2, 3), (1, 1)], ids=str)
def test_the_vector_has_the_same_length_and_is_adaptive_pooling_for_every_size(size, mode):
    layer = SpatialPyramidPooling(C, (6, 3, 2, 1), mode)
    x = normal((2, C, *size))
    pool = F.adaptive_max_pool2d if mode == "max" else F.adaptive_avg_pool2d
    wanted = torch.cat([pool(x, n).flatten(1) for n in (6, 3, 2, 1)], 1)
    assert layer(x).shape == (2, 50 * C)
    assert_near(layer(x), wanted, 1e-12)


def test_the_sliding_windows_of_the_paper_give_a_wrong_number_of_bins_for_some_sizes():
    def bins(size, n):
        window, stride = math.ceil(size / n), size // n
        return (size - window) // stride + 1

    wrong = [(a, n) for n in (2, 3, 4, 6) for a in range(n, 31) if bins(a, n) != n]
    assert bins(10, 6) == 9
    assert bins(7, 4) == 6
    assert len(wrong) == 14
    for size, n in wrong:
        y = SpatialPyramidPooling(1, (n, 0, 0, 0))(normal((1, 1, size, size)))
        assert y.shape == (1, n * n)


def test_levels_that_nest_read_the_map_once_and_others_do_not():
    elements = {}
    for size in (12, 13):
        with Counting() as counting:
            PyramidPooling(C).eval()(torch.randn(1, C, size, size))
        elements[size] = counting.count.by_op["_adaptive_avg_pool2d"] + counting.count.by_op["mean"]
    assert elements[12] == C * (12 * 12 + 3 * 6 * 6)
    assert elements[13] == C * (13**2 + 14**2 + 15**2 + 18**2)


@pytest.mark.parametrize("levels", [(2, 0, 2, 1), (6, 6, 6, 3), (1, 1, 0, 0), (5, 5, 2, 2)], ids=str)
def test_the_card_knows_that_equal_levels_share_a_map_where_it_divides_the_input(levels):
    record = facts.inspect(subject(stone("ppm"), {"levels": levels}, Setup(shape=(3, C, 6, 12))), fvcore=False)
    assert [check for check in record["checks"] if not check["ok"]] == []


def test_the_gradient_of_a_sum_that_is_0_is_that_of_relu():
    layer = MixedPooling(C, (5, 4))
    nn.init.zeros_(layer.out.norm.weight)
    x = torch.zeros(SHAPE, requires_grad=True)
    layer(x).sum().backward()
    assert not x.grad.any()


def test_windows_that_overlap_are_counted_with_their_overlap():
    x = torch.randn(2, 3, 13, 7, requires_grad=True)
    with Counting() as counting:
        F.adaptive_max_pool2d(x, 6)
        y = F.adaptive_avg_pool2d(x, 6)
        F.interpolate(x, (5, 9), mode="bilinear")
    assert counting.count.by_op == {
        "adaptive_max_pool2d": 6 * (18 * 12 - 36),
        "_adaptive_avg_pool2d": 6 * 18 * 12,
        "upsample_bilinear2d": 6 * 45 * 7,
    }
    with Counting() as counting:
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert counting.count.flops == 6 * (18 * 12 + 36)


def test_a_folded_convolution_is_the_convolution_and_its_norm():
    part = ConvNorm(C, 5, (3, 1), dtype=torch.float64)
    randomise(part)
    part(normal(SHAPE))
    part.eval()
    x = normal(SHAPE, seed=1)
    weight, bias = part.folded(x.dtype)
    assert_near(F.conv2d(x, weight, bias, padding=(1, 0)), part.norm(part.conv(x)), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_strips_of_half_precision_are_kept_in_float32(dtype):
    layer, x = StripPooling(C), (normal((4, C, 40, 40)) + 32).to(dtype)
    wide = copy.deepcopy(layer).double()
    assert_near(layer(x), wide(x.double()), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (StripPooling(C), (1, C, 1, 4), "means of the rows"),
        (StripPooling(C), (1, C, 4, 1), "means of the columns"),
        (MixedPooling(C, (1, 2)), (1, C, 4, 4), "grid of one bin"),
        (PyramidPooling(C), (1, C, 8, 8), "grid of one bin"),
    ],
)
def test_single_values_are_refused_in_training_before_any_state_moves(layer, shape, words):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=words):
        layer(torch.randn(shape))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert layer.eval()(torch.randn(shape)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StripPooling(C, out_channels=5), "out_channels=5 cannot gate 12 channels; take returns=gate"),
        (lambda: MixedPooling(10), "10 channels are not divisible by 4"),
        (lambda: PyramidPooling(10), "10 channels do not divide among 4 grids"),
        (lambda: PyramidPooling(C, 0), r"levels=\(0, 0, 0, 0\) is no pyramid"),
        (lambda: SpatialPyramidPooling(C, (4, 2, 1)), r"levels=\(4, 2, 1\) is not an integer ≥ 0, or 4 of them"),
        (lambda: SpatialPyramidPooling(C, mode="min"), "mode='min' is not one of max, avg"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_a_remedy(make, words):
    with pytest.raises(OptionError, match=words):
        make()


@pytest.mark.parametrize("order", ["sample", "offset"])
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 4)])
def test_merging_undoes_splitting_exactly_and_splitting_merging(window, order):
    x = normal((5, C, 6, 8))
    for laid_out in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        images = split(laid_out, window, order)
        assert torch.equal(merge(images, window, order), x)
        assert torch.equal(split(merge(images, window, order), window, order), images)


def test_the_order_of_the_batch_is_by_sample_or_as_tensorflow_has_it():
    x = normal((3, 2, 4, 6))
    for i, j in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        for n in range(3):
            image = x[n, :, i::2, j::2]
            assert torch.equal(SplitMerge(2)(x)[4 * n + 2 * i + j], image)
            assert torch.equal(SplitMerge(2, order="offset")(x)[3 * (2 * i + j) + n], image)


@pytest.mark.parametrize("k", [2, 4])
def test_layers_between_split_and_merge_are_dilated(k):
    x, weights = normal((2, 3, 8, 16)), [normal((4, 3, 3, 3), seed=1), normal((5, 4, 5, 5), seed=2)]
    y, images = x, split(x, (k, k))
    for weight in weights:
        p = weight.shape[2] // 2
        y = F.conv2d(y, weight, padding=k * p, dilation=k).relu()
        images = F.conv2d(images, weight, padding=p).relu()
    assert_near(merge(images, (k, k)), y, 1e-12)
    assert (F.adaptive_avg_pool2d(images, 1)[0] - F.adaptive_avg_pool2d(y, 1)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (SplitMerge(C, 3), (2, C, 6, 8), "3×3 does not divide an input of 6×8"),
        (SplitMerge(C, (2, 3), merge=True), (4, C, 2, 2), "2×3 samples are merged into one, a batch of 4"),
        (SplitMerge(C), (2, C, 0, 4), "at least 1 position"),
    ],
)
def test_batches_and_sizes_that_do_not_divide_are_refused(layer, shape, words):
    with pytest.raises(ValueError, match=words):
        layer(torch.randn(shape))


def test_the_question_why_strip_pooling_is_pooling_is_answered():
    (answer,) = [note for note in stone("strip-pooling").card.notes if note.startswith("Why")]
    assert "H×1" in answer
    assert "keeps the size" in answer
