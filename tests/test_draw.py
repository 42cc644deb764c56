"""`stones draw`: what is probed on the running layer, against the definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from probing import panels, probed
from torch.nn import functional as F

from layers import catalog
from layers.dilation import coverage
from layers.norm.gn import GroupNorm
from profiles.errors import Refusal
from profiles.pictures.probe import picture_of


def numbered(*shape):
    return torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64).view(shape)


def whole(tensor):
    return [round(value) for value in tensor.flatten().tolist()]


# Which elements share a statistic: those with the same key, the index of the statistic that the definition gives.


def in_groups(groups):
    return lambda n, c, *where, C: (n, c * groups // C)


PARTITIONS = [
    ("bn", (2, 3, 2, 2), {}, lambda n, c, *where, C: (c,)),
    ("bn", (4, 3), {}, lambda n, c, *where, C: (c,)),
    ("mean-only-bn", (2, 3, 4), {}, lambda n, c, *where, C: (c,)),
    ("in", (2, 3, 2, 2), {}, lambda n, c, *where, C: (n, c)),
    ("ln", (2, 3, 2, 2), {}, lambda n, c, *where, C: (n,)),
    ("ln", (2, 3, 2, 2), {"axes": "channel"}, lambda n, c, *where, C: (n, *where)),
    ("gn", (2, 4, 2, 2), {"groups": 2}, in_groups(2)),
    ("gn", (3, 6, 2, 2), {"groups": 3}, in_groups(3)),
    ("gn", (2, 6, 4), {"groups": 2}, in_groups(2)),
    ("gn", (2, 6, 2, 2, 2), {"channels_per_group": 2}, in_groups(3)),
    ("gn", (2, 4, 2, 2), {"groups": 4}, lambda n, c, *where, C: (n, c)),
    ("gn", (2, 4, 2, 2), {"groups": 2, "train": False}, in_groups(2)),
    ("pono", (2, 3, 2, 2), {}, lambda n, c, *where, C: (n, *where)),
    ("pixel-norm", (2, 3, 2, 2), {}, lambda n, c, *where, C: (n, *where)),
    ("ghost-bn", (4, 3, 2, 2), {"ghost_size": 2}, lambda n, c, *where, C: (n // 2, c)),
    ("bn-gn", (4, 4, 2, 2), {"groups": 2, "examples_per_group": 2}, lambda n, c, *where, C: (n // 2, c // 2)),
    ("iew", (2, 4, 2, 2), {"groups": 2}, lambda n, c, *where, C: (c // 2,)),
]


@pytest.mark.parametrize(("name", "shape", "options", "key"), PARTITIONS)
def test_elements_share_a_statistic_as_the_definition_says(name, shape, options, key):
    (panel,) = probed(name, shape, **options)["panels"]
    wanted = {}
    for number, index in enumerate(itertools.product(*map(range, shape))):
        wanted.setdefault(key(*index, C=shape[1]), []).append(number)
    assert panel["sets"] == list(wanted.values())
    assert panel["of"] == list(range(len(wanted)))
    assert math.prod(panel["shape"]) == len(wanted)
    assert panel["disjoint"] is True
    assert (panel["source"], panel["source_shape"]) == ("input", list(shape))


def test_the_second_normalization_of_bcn_sees_the_batch_in_training_only():
    both = panels("bcn", (2, 4, 2, 2), groups=2)
    assert [len(members) for members in both["mean, var"]["sets"]] == [8] * 4
    assert [len(members) for members in both["group_mean, group_var"]["sets"]] == [16] * 2
    alone = panels("bcn", (2, 4, 2, 2), groups=2, train=False)
    assert [len(members) for members in alone["group_mean, group_var"]["sets"]] == [8] * 4


def test_the_picture_is_of_the_running_layer_not_of_its_card(monkeypatch):
    true = panels("gn", groups=2)["mean, rstd"]
    monkeypatch.setattr(catalog.Stone, "load", lambda stone: lambda c, groups, *rest, **o: GroupNorm(c, 1, **o))
    found = panels("gn", groups=2)["mean, rstd"]
    assert len(true["sets"]) == 4
    assert len(found["sets"]) == 2


@pytest.mark.parametrize("name", ["weight-standardization", "scaled-ws", "cen-conv", "weight-norm"])
def test_a_statistic_of_a_weight_is_of_one_filter(name):
    (panel,) = probed(name, (1, 4, 4, 4), out_channels=6, groups=2, kernel_size=(3, 2))["panels"]
    assert (panel["source"], panel["source_shape"]) == ("weight", [6, 2, 3, 2])
    assert panel["sets"] == [list(range(12 * o, 12 * o + 12)) for o in range(6)]


def test_one_length_of_the_whole_weight():
    (panel,) = probed("weight-norm", norm="tensor")["panels"]
    assert (panel["shape"], panel["sets"]) == ([], [list(range(144))])


CONVOLUTIONS = [
    {},
    {"padding": 1},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    {"kernel_size": 2, "dilation": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"kernel_size": 2, "groups": 2},
]


def windows(shape, options):
    """The patches of the numbered image, one per column: (N, C·KH·KW, HO·WO)."""
    x, pad = numbered(*shape), [options.get("padding", 0)]
    high, wide = pad[0] if isinstance(pad[0], tuple) else pad * 2
    mode = {"circular": "circular"}.get(options.get("padding_mode"), "constant")
    x = F.pad(x, [wide, wide, high, high], mode)
    return F.unfold(x, options.get("kernel_size", 3), options.get("dilation", 1), 0, options.get("stride", 1))


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_window_is_normalized_by_its_own_elements(options):
    (panel,) = probed("normalized-conv", (1, 2, 4, 5), **options)["panels"]
    columns = windows((1, 2, 4, 5), options)[0].unflatten(0, (options.get("groups", 1), -1))
    wanted = [sorted({cell - 1 for cell in whole(column) if cell}) for each in columns for column in each.T]
    assert [panel["sets"][number] for number in panel["of"]] == wanted


def made_of(picture):
    return [name for name, stone in catalog.stones().items() if picture_of(stone) == picture]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_cells_of_im2col_are_those_of_unfold(options):
    (panel,) = probed("im2col", (1, 2, 4, 5), **options)["panels"]
    wanted = windows((1, 2, 4, 5), options)
    assert panel["cells"] == whole(wanted)
    assert panel["shape"] == list(wanted.shape)
    assert (panel["split"], panel["reduced"]) == (2, "columns")


def test_im2col_of_a_batch_shows_all_images():
    (panel,) = probed("im2col", (2, 1, 3, 3), kernel_size=2, batched=True)["panels"]
    assert panel["cells"] == whole(windows((2, 1, 3, 3), {"kernel_size": 2}))


@pytest.mark.parametrize("name", made_of("matrix"))
def test_a_line_that_the_product_sums_holds_a_whole_patch(name):
    (panel,) = probed(name, (1, 2, 4, 5), kernel_size=(2, 3))["panels"]
    patches = [set(whole(column)) for column in windows((1, 2, 4, 5), {"kernel_size": (2, 3)})[0].T]
    wide = math.prod(panel["shape"][panel["split"] :])
    rows = [set(panel["cells"][at : at + wide]) for at in range(0, len(panel["cells"]), wide)]
    columns = [set(panel["cells"][at::wide]) for at in range(wide)]
    lines = {"rows": rows, "columns": columns}[panel["reduced"]]
    assert all(any(patch <= line for line in lines) for patch in patches)
    assert len(lines) > 1
    assert all(any(patch <= line for patch in patches) for line in lines)
    assert panel["whole"] is all(line in patches for line in lines)


@pytest.mark.parametrize("name", made_of("taps"))
def test_every_tap_moves_the_pixels_to_where_a_convolution_by_it_alone_does(name):
    found = panels(name, (1, 2, 4, 5), padding=1, stride=(1, 2))
    assert len(found) == 9
    for row, column in itertools.product(range(3), repeat=2):
        weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
        weight[0, 0, row, column] = 1
        wanted = F.conv2d(numbered(1, 1, 4, 5), weight, None, (1, 2), 1)
        assert found[f"tap {row}, {column}"]["cells"] == whole(wanted)


@pytest.mark.parametrize("padding", [0, 1])
def test_the_caption_of_taps_speaks_of_padding_where_there_is_some(padding):
    said = probed("kn2row-aa", (1, 2, 4, 4), padding=padding)["caption"]
    assert ("0 is padding" in said) == bool(padding)


# Where numbers are moved to.


def dcr(z, r):
    n, c, h, w = z.shape
    return z.view(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // r**2, h * r, w * r)


@pytest.mark.parametrize(
    ("name", "options", "z", "moved"),
    [
        ("subpixel", {}, (1, 8, 4, 4), lambda z: F.pixel_shuffle(z, 2)),
        ("subpixel", {"scale": 3, "out_channels": 1}, (1, 9, 4, 4), lambda z: F.pixel_shuffle(z, 3)),
        ("subpixel", {"order": "dcr"}, (1, 8, 4, 4), lambda z: dcr(z, 2)),
        ("subpixel", {"scale": 1}, (1, 2, 4, 4), lambda z: z),
        ("duc", {"num_classes": 2, "scale": 2}, (1, 8, 4, 4), lambda z: F.pixel_shuffle(z, 2)),
        ("duc", {"num_classes": 2, "scale": 2, "branches": 2}, (1, 8, 4, 4), lambda z: F.pixel_shuffle(z, 2)),
    ],
)
def test_channels_of_the_convolution_become_positions(name, options, z, moved):
    (panel,) = probed(name, (1, 2, 4, 4), **options)["panels"]
    assert (panel["source"], panel["source_shape"]) == ("z", list(z))
    assert panel["cells"] == whole(moved(numbered(*z)))


@pytest.mark.parametrize(
    ("name", "options", "shape", "moved"),
    [
        ("irevnet-squeeze", {"order": "crd"}, (1, 2, 4, 4), lambda x: F.pixel_unshuffle(x, 2)),
        (
            "split-merge",
            {},
            (2, 1, 4, 4),
            lambda x: torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
        ),
        ("split-merge", {"window": 1}, (1, 1, 2, 2), lambda x: x),
    ],
)
def test_numbers_of_the_input_are_moved(name, options, shape, moved):
    (panel,) = probed(name, shape, **options)["panels"]
    assert panel["source"] == "input"
    assert panel["cells"] == whole(moved(numbered(*shape)))


def test_squeezing_in_the_order_of_the_paper_is_undone_by_its_inverse():
    (panel,) = probed("irevnet-squeeze", (1, 3, 4, 4))["panels"]
    z = torch.tensor(panel["cells"], dtype=torch.float64).view(panel["shape"])
    assert whole(dcr(z, 2)) == list(range(1, 49))


# Bins, strips and holes.


def bins(size, count):
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def on_planes(c, h, w, down, across):
    """The elements of each bin, plane by plane."""
    return [
        [(plane * h + row) * w + column for row in rows for column in columns]
        for plane, rows, columns in itertools.product(range(c), down, across)
    ]


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (4, 13)])
def test_bins_of_a_pyramid_are_those_of_adaptive_pooling(mode, size):
    found = panels("spp", (1, 2, *size), levels=(3, 2, 1, 0), mode=mode)
    assert [*found] == ["level 3", "level 2", "level 1"]
    for level in (3, 2, 1):
        panel = found[f"level {level}"]
        wanted = on_planes(2, *size, bins(size[0], level), bins(size[1], level))
        assert [panel["sets"][number] for number in panel["of"]] == wanted
        assert panel["disjoint"] is all(each % level == 0 for each in size)


def test_bins_of_the_pyramid_pooling_module_are_those_that_its_convolutions_get():
    found = panels("ppm", (1, 4, 7, 7))
    for index, level in enumerate((1, 2, 3, 6)):
        panel = found[f"into grids.{index}"]
        assert [panel["sets"][n] for n in panel["of"]] == on_planes(4, 7, 7, *[bins(7, level)] * 2)


def test_strips_are_rows_and_columns_of_a_plane():
    found = panels("strip-pooling", (1, 2, 3, 4))
    assert found["rows"]["sets"] == on_planes(2, 3, 4, bins(3, 3), [range(4)])
    assert found["columns"]["sets"] == on_planes(2, 3, 4, [range(3)], bins(4, 4))


def test_mixed_pooling_has_strips_and_grids_over_all_channels():
    found = panels("mixed-pooling", (1, 4, 5, 5), pool_sizes=(3, 2))
    spatial = {"rows": (5, 1), "columns": (1, 5), "into first": (3, 3), "into second": (2, 2)}
    assert found.keys() == spatial.keys()
    for name, (down, across) in spatial.items():
        planes = on_planes(4, 5, 5, bins(5, down), bins(5, across))
        count = down * across
        wanted = [sorted(itertools.chain(*planes[number::count])) for number in range(count)]
        assert [found[name]["sets"][n] for n in found[name]["of"]] == wanted


def test_a_gram_matrix_is_made_of_pairs_of_planes():
    gram = panels("bilinear", (1, 3, 2, 2))["gram"]
    pairs = [sorted({i, j}) for i in range(3) for j in range(3)]
    assert [gram["sets"][n] for n in gram["of"]] == [[4 * p + k for p in pair for k in range(4)] for pair in pairs]


@pytest.mark.parametrize(("rates", "kernel"), [("1,2,5", 3), ("2,2,2", 3), ("1,4", 5), ("3", 3)])
def test_ways_through_dilated_convolutions_are_counted(rates, kernel):
    found = probed("hdc", rates=rates, kernel_size=kernel, strict=False)["panels"]
    steps = [int(rate) for rate in rates.split(",")]
    middle = found[0]["shape"][0] // 2
    for depth, panel in enumerate(found, 1):
        line = torch.zeros(panel["shape"][0], dtype=torch.float64)
        for taps in itertools.product(range(-(kernel // 2), kernel // 2 + 1), repeat=depth):
            line[middle + sum(tap * rate for tap, rate in zip(taps, steps, strict=False))] += 1
        assert panel["counts"] == whole(torch.outer(line, line))
    seen = coverage(rates, kernel).seen
    assert sum(count > 0 for count in found[-1]["counts"]) == seen**2


def test_a_layer_that_does_more_than_move_numbers_has_no_rearrangement(monkeypatch):
    monkeypatch.setattr(catalog.Stone, "load", lambda stone: lambda *a, **o: torch.nn.Sigmoid())
    with pytest.raises(Refusal, match="does more than to move"):
        probed("irevnet-squeeze")
