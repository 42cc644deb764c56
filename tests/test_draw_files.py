"""`stones draw`: the pictures, the files that are written, what is refused."""

from __future__ import annotations

import itertools
import json
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
import torch
from command_line import invoke, process
from matplotlib.backends.backend_agg import FigureCanvasAgg
from probing import panels, probed

from layers import catalog
from layers.option import OptionError
from profiles import atomic
from profiles.errors import Refusal, Unavailable
from profiles.pictures import picture
from profiles.pictures.probe import drawable, drawing, picture_of, probe
from profiles.target import resolve
from stones_cli.status import Status

GN = ("draw", "gn", "--groups", "2")

SMALL = {
    "gn": {"groups": 2},
    "bcn": {"groups": 2},
    "bn-gn": {"groups": 2},
    "duc": {"num_classes": 2, "scale": 2},
    "mixed-pooling": {"pool_sizes": (3, 2)},
}
ODD = [("hdc", {"rates": "2,2", "strict": False}), ("im2col", {"padding": 1}), ("bcn", {"groups": 1, "train": False})]


@pytest.mark.parametrize(("name", "options"), [*((name, SMALL.get(name, {})) for name in drawable()), *ODD])
def test_every_stone_that_has_a_picture_fits_it(name, options):
    record = probed(name, **options)
    assert json.loads(json.dumps(record)) == record
    assert record["caption"].count("Probed") == 1
    drawn = picture.figure(record)
    renderer = FigureCanvasAgg(drawn).get_renderer()
    right, top = (side * drawn.dpi for side in drawn.get_size_inches())
    texts = [*drawn.texts, *(text for axes in drawn.axes for text in axes.texts)]
    assert sum(len(axes.patches) for axes in drawn.axes) > 2
    for text in texts:
        box = text.get_window_extent(renderer)
        assert 0 <= box.x0 <= box.x1 <= right, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= top, text.get_text()
    titles = sorted(((t.get_window_extent(renderer)) for t in drawn.texts), key=lambda box: (-box.y1, box.x0))
    assert not any(one.overlaps(two) for one, two in itertools.pairwise(titles))


def test_a_class_of_torch_is_drawn_by_what_its_kernel_computes():
    (panel,) = probed("torch.nn:GroupNorm", num_groups=2)["panels"]
    assert panel["sets"] == panels("gn", groups=2)["mean, rstd"]["sets"]


def test_an_svg_is_xml_with_its_title_and_no_date(tmp_path):
    file = tmp_path / "gn.svg"
    result = invoke(*GN, "-o", file)
    assert result.exit_code == Status.DONE
    assert "32 elements of the input: 1 of 2 samples, 2 of 4 channels" in " ".join(result.stdout.split())
    assert result.stderr == f"written: {file}\n"
    root = ET.fromstring(file.read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = file.read_text(encoding="utf-8")
    assert "Group Normalization (groups=2)" in text
    assert "<dc:date>" not in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["gn.svg"]


def test_a_png_has_its_signature_and_the_size_of_its_dpi(tmp_path):
    sizes = []
    for dpi in (50, 100):
        file = tmp_path / f"{dpi}.PNG"
        assert invoke(*GN, "-o", file, "--dpi", dpi).exit_code == Status.DONE
        data = file.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append(int.from_bytes(data[16:20], "big"))
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=2)


def test_the_same_command_writes_the_same_bytes_whatever_surrounds_it(tmp_path):
    (tmp_path / "matplotlibrc").write_text("savefig.facecolor: red\nsvg.fonttype: none\nfont.size: 30\n")
    command = ["draw", "pono", "-i", "1x2x2x2", "-o"]
    assert invoke(*command, tmp_path / "one.svg").exit_code == Status.DONE
    other = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "svg", "LC_ALL": "C"}
    result = process(*command, tmp_path / "two.svg", **other)
    assert (result.returncode, result.stderr) == (Status.DONE, f"written: {tmp_path / 'two.svg'}\n")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_home_that_does_not_exist_is_not_made(tmp_path, is_writable):
    home, file = (tmp_path if is_writable else tmp_path / "file") / "home", tmp_path / "x.svg"
    (tmp_path / "file").touch()
    drawn = process(*GN, "-o", str(file), HOME=str(home), MPLCONFIGDIR=None, XDG_CONFIG_HOME=None, XDG_CACHE_HOME=None)
    assert (drawn.returncode, drawn.stderr) == (Status.DONE, f"written: {file}\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "x.svg"]


def test_a_picture_leaves_settings_and_random_numbers_as_they_were():
    before, state = dict(mpl.rcParams), torch.random.get_rng_state()
    once, again = (picture.render(probed("gn", (1, 2, 2, 2), groups=2), "png", 40) for _ in range(2))
    assert dict(mpl.rcParams) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once == again


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "gn.svg"
    file.write_text("old")

    def fail(*arguments):
        raise Unavailable("no more")

    with monkeypatch.context() as patch:
        patch.setattr(picture, "render", fail)
        assert invoke(*GN, "-o", file).exit_code == Status.ENVIRONMENT
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", lambda descriptor: fail())
        with pytest.raises(Unavailable):
            atomic.write(file, b"new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["gn.svg"]


def test_without_matplotlib_the_extra_is_named_and_the_data_are_there(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke(*GN, "-o", tmp_path / "gn.svg")
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert "pip install 'dl-stones[draw]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert invoke(*GN, "--json").exit_code == Status.DONE


def test_json_is_the_record_that_the_picture_is_made_of():
    result = invoke(*GN, "-i", "2x4x2x2", "--seed", "3", "--json")
    record = json.loads(result.stdout)
    assert result.stderr == ""
    assert record == probe(drawing(resolve("gn"), {"groups": 2}, (2, 4, 2, 2), seed=3))
    assert [*record] == [
        "schema", "stone", "title", "picture", "options", "input", "mode", "seed", "panels", "caption",
    ]  # fmt: skip
    assert record["schema"] == "stones.draw/1"
    assert (record["input"], record["mode"], record["seed"]) == ([2, 4, 2, 2], "train", 3)
    assert record["options"] == {"groups": 2, "channels_per_group": None, "eps": 1e-5, "affine": True}
    assert picture.render(record, "png", 30).startswith(b"\x89PNG")


def test_json_and_picture_together(tmp_path):
    result = invoke("draw", "strip-pooling", "-o", tmp_path / "s.svg", "--json")
    assert json.loads(result.stdout)["mode"] == "eval"
    assert ET.parse(tmp_path / "s.svg").getroot().tag.endswith("svg")


WRONG = {
    "draw": "Missing argument",
    "draw gn --groups 2": "give -o file.svg or -o file.png",
    "draw gn -o gn.svg": "4 channels divide into 1, 2, 4 groups; drawn is 2x4x4x4 unless --input says another",
    "draw dsg -o dsg.svg": "no picture is defined for dsg",
    "draw gn --groups 2 -o gn.pdf": "must end in .svg or .png",
    "draw gn --groups 2 -o gn": "must end in .svg or .png",
    "draw gn --groups 2 -o -": "ends in .svg or .png",
    "draw gn --groups 2 -o gn.svg --dpi 100": "--dpi 100 is for a PNG",
    "draw gn --groups 2 -o gn.png --dpi 0": "integer from 20 to 1200",
    "draw gn --groups 2 -o gn.svg -i 8x64x32x32": "524,288 elements",
    "draw gn --groups 2 -o gn.svg -i 0x4x2x2": "without elements",
    "draw gn --groups 2 -o gn.svg -i 4": "2 to 5 sizes",
    "draw gn --gropus 2 -o gn.svg": "did you mean --groups?",
    "draw gm -o gm.svg": "did you mean gn?",
    "draw svb -o svb.svg": "no picture is defined for svb; there is one for",
    "draw bn-only -o b.svg": "no picture is defined for bn-only",
    "draw bn --eval -o bn.svg": "try --train",
    "draw duc -o duc.svg": "give smaller options",
    "draw subpixel --scale 64 -o s.svg": "its output: ",
    "draw hdc --rates 1,2,5,11,23 -o h.svg": "elements",
    "draw weight-norm --out-channels 9999999 -o w.svg": "its parameters: ",
    "draw hdc --rates 2,2 -o h.svg": "leave holes",
    "draw torch.nn:ReLU -o r.svg": "there is no picture of it",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_refused_in_one_line_and_writes_nothing(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert WRONG[line] in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["nosuch/gn.svg", "folder.svg"])
def test_a_file_that_cannot_be_written_is_status_3_before_anything_runs(path, tmp_path, monkeypatch):
    (tmp_path / "folder.svg").mkdir()
    monkeypatch.setattr("profiles.pictures.probe.probe", None)
    result = invoke(*GN, "-o", tmp_path / path)
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert result.stderr.startswith("error: --output")


def test_what_has_no_picture_is_refused_by_the_library_too():
    for stone in catalog.stones().values():
        if picture_of(stone) == "":
            with pytest.raises(Refusal, match="no picture is defined"):
                drawing(stone)
    with pytest.raises(OptionError, match="groups"):
        drawing(resolve("gn"), {"groups": 3})
    with pytest.raises(Refusal, match="svg, png"):
        picture.render(probed("gn", groups=2), "pdf")
