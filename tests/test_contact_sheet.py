"""`stones draw` of an augmentation: what stands in which cell, the pictures that are read, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from command_line import invoke, process
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from layers.augment.autoaugment import AutoAugment
from layers.policies import OPERATIONS, POLICIES, Applied
from profiles.errors import Refusal
from profiles.pictures import photo, picture
from profiles.pictures.probe import drawing, probe, sheet
from profiles.pillow import applied
from profiles.target import resolve
from stones_cli.status import Status

FILL = (10, 128, 250)


def sheet_of(options=None, shape=None, image=None, policy=False, seed=0):
    """The panel of the stone's sheet, its pictures, and the whole record."""
    record, pictures = sheet(drawing(resolve("autoaugment"), options, shape, seed=seed), image, policy=policy)
    return record["panels"][0], pictures, record


def cells(panel):
    return [cell for row in panel["rows"] for cell in row["cells"]]


def stored(image, format_="PNG", **options):
    data = io.BytesIO()
    image.save(data, format_, **options)
    return data.getvalue()


def noise(width, height, mode="RGB"):
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, height * width * bands, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), values.tobytes())


@pytest.mark.parametrize("policy", [False, True], ids=["operations", "sub-policies"])
@pytest.mark.parametrize("reading", ["torchvision", "tf-cifar"])
def test_every_cell_holds_what_pillow_makes_of_the_original_by_its_steps(reading, policy):
    original = photo.Photo(np.asarray(noise(31, 23)))
    panel, pictures, _ = sheet_of({"reading": reading, "fill": FILL}, (1, 3, 23, 31), original, policy)
    assert {cell["sha256"] for cell in cells(panel)} == pictures.keys()
    for digest, pixels in pictures.items():
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest
    for cell in cells(panel):
        plan = [Applied(step["operation"], step["value"]) for step in cell["steps"]]
        expected = applied(Image.fromarray(original.pixels), plan, FILL)
        assert np.array_equal(pictures[cell["sha256"]], np.asarray(expected)), plan


def test_rows_are_the_operations_and_labels_their_values_after_the_original():
    panel, _, record = sheet_of(shape=(1, 3, 40, 80))
    rows = {row["name"]: [" ".join(cell["label"]) for cell in row["cells"]] for row in panel["rows"]}
    assert tuple(rows) == OPERATIONS
    assert {labels[0] for labels in rows.values()} == {"original"}
    assert rows["Invert"] == ["original", "Invert"]
    assert rows["Rotate"][1:] == [
        *("Rotate 0° index 0", "Rotate 10° index 3", "Rotate 20° index 6", "Rotate 30° index 9"),
        *("Rotate −10° index −3", "Rotate −20° index −6", "Rotate −30° index −9"),
    ]
    assert rows["TranslateX"][4::3] == ["TranslateX 36 px index 9", "TranslateX −36 px index −9"]
    assert rows["TranslateY"][4] == "TranslateY 18 px index 9"
    assert rows["Color"][4::3] == ["Color × 1.9 index 9", "Color × 0.1 index −9"]
    assert rows["Solarize"][2] == "Solarize from 170 index 3"
    assert rows["Posterize"][-1] == "Posterize 4 bits index 9"
    assert record["caption"].startswith("The original (80×40 pixels, computed), then every operation")


def test_factors_have_one_side_where_the_reading_says_so():
    rows = {row["name"]: row["cells"] for row in sheet_of({"reading": "tf-cifar"})[0]["rows"]}
    assert [cell["label"][0] for cell in rows["Color"][1:]] == [
        "Color × 0.1",
        "Color × 0.64",
        "Color × 1.18",
        "Color × 1.72",
    ]
    assert len(rows["Rotate"]) == 8


def test_rows_are_sub_policies_with_draws_that_the_seed_decides():
    panel, _, _ = sheet_of({"policy": "svhn"}, policy=True, seed=1)
    policy = POLICIES["svhn"]
    assert [row["name"].split()[0] for row in panel["rows"]] == [str(number) for number in range(25)]
    assert panel["rows"][4]["name"] == "4  Equalize 60 %, Rotate 90 %"
    for row, sub_policy in zip(panel["rows"], policy, strict=True):
        for cell in row["cells"][1:]:
            names = [step["operation"] for step in cell["steps"]]
            assert names in ([], *([step.operation] for step in sub_policy), [step.operation for step in sub_policy])
            assert [line.split()[0] for line in cell["label"]] == (names or ["nothing"])
    assert sheet_of({"policy": "svhn"}, policy=True, seed=1)[0] == panel
    assert sheet_of({"policy": "svhn"}, policy=True, seed=2)[0] != panel


def test_the_sheet_is_of_the_running_operations(monkeypatch):
    before = sheet_of()[0]
    monkeypatch.setitem(sys.modules["layers.augmentation"].OPERATIONS, "Invert", lambda images, values, fill: images)
    after = sheet_of()[0]
    changed = [row["name"] for row, other in zip(before["rows"], after["rows"], strict=True) if row != other]
    assert changed == ["Invert"]
    monkeypatch.setattr(AutoAugment, "draw", lambda self, count, height, width: [()] * count)
    assert {tuple(cell["label"]) for cell in cells(sheet_of(policy=True)[0])} == {("original",), ("nothing",)}


def test_the_built_in_picture_has_one_way_up_and_leaves_room_for_contrast():
    pixels = photo.built_in().pixels
    ways = [np.rot90(view, turns) for view in (pixels, pixels[:, ::-1]) for turns in range(4)]
    assert not any(np.array_equal(pixels, way) for way in ways[1:])
    assert (pixels.min(), pixels.max()) == (40, 215)
    disc = pixels[33, 31]
    assert disc.tolist() == [212, 66, 54]
    panel = sheet_of()[0]
    digests = {row["name"]: row["cells"][-1]["sha256"] for row in panel["rows"]}
    assert len(set(digests.values())) == len(OPERATIONS) - 1  # solarize from 0 is invert


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 224), (224, 100)], ids=str)
def test_any_small_picture_has_a_sheet(size):
    _, pictures, record = sheet_of(image=photo.Photo(np.asarray(noise(*size))))
    assert picture.render(record, "png", 20, pictures).startswith(b"\x89PNG")


@pytest.mark.parametrize("policy", [False, True], ids=["operations", "sub-policies"])
def test_labels_stand_beside_each_other_inside_the_figure(policy):
    _, pictures, record = sheet_of(shape=(1, 3, 224, 224), policy=policy)
    drawn = picture.figure(record, pictures)
    renderer = FigureCanvasAgg(drawn).get_renderer()
    right, top = (side * drawn.dpi for side in drawn.get_size_inches())
    for axes in drawn.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert all(0 <= box.x0 <= box.x1 <= right and 0 <= box.y0 <= box.y1 <= top for box in boxes)
        assert not [n for n, box in enumerate(boxes) if any(box.overlaps(other) for other in boxes[:n])]
    assert sum(len(axes.images) for axes in drawn.axes) == len(cells(record["panels"][0]))


def test_the_same_command_writes_the_same_bytes(tmp_path):
    noise(20, 30).save(tmp_path / "image.png")
    command = ("draw", "autoaugment", "--policy", "cifar10", tmp_path / "image.png", "--seed", 3, "-o")
    for form in ("png", "svg"):
        assert invoke(*command, tmp_path / f"one.{form}").exit_code == Status.DONE
    result = process(*command, tmp_path / "two.svg", PYTHONHASHSEED="7", MPLBACKEND="svg", LC_ALL="C")
    assert (result.returncode, result.stderr) == (Status.DONE, f"written: {tmp_path / 'two.svg'}\n")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert invoke(*command, tmp_path / "two.png").exit_code == Status.DONE
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert ET.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")


def test_json_is_the_record_without_pixels(tmp_path):
    result = invoke("draw", "autoaugment", "--fill", "0", "--json")
    record = json.loads(result.stdout)
    assert record == probe(drawing(resolve("autoaugment"), {"fill": 0}))
    assert (record["schema"], record["picture"], record["input"]) == ("stones.draw/1", "sheet", [1, 3, 96, 96])
    assert record["panels"][0]["image"] == {
        "source": "built in",
        "mode": "RGB",
        "size": [96, 96],
        "file_size": [96, 96],
    }
    assert len(result.stdout) < 60_000
    small = json.loads(invoke("draw", "autoaugment", "-i", "1x3x8x9", "--json").stdout)
    assert small["panels"][0]["image"]["size"] == [9, 8]


@pytest.mark.parametrize("words", [("{}",), ("{}", "--policy", "svhn"), ("--policy", "svhn", "{}"), ("--fill=7", "{}")])
def test_the_image_may_stand_before_and_after_options(words, tmp_path):
    file = tmp_path / "image.png"
    noise(9, 7).save(file)
    line = [word.format(file) for word in words]
    for name_first in (True, False):
        arguments = ("autoaugment", *line) if name_first else (*line[:-1], "autoaugment", line[-1])
        if name_first or line[-1] == str(file):
            record = json.loads(invoke("draw", *arguments, "--json").stdout)
            assert record["input"] == [1, 3, 7, 9]
            assert record["panels"][0]["target"] == ("sub-policies of svhn" if "svhn" in words else "operations")


# Files.


def reading(data, tmp_path):
    file = tmp_path / "image"
    file.write_bytes(data)
    return photo.read(file)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colours_of_any_mode_are_read_as_pillow_converts_them(mode, tmp_path):
    image = noise(6, 5, mode)
    found = reading(stored(image, "TIFF" if mode != "HSV" else "PNG"), tmp_path) if mode != "HSV" else None
    if found is None:
        found = photo.Photo(np.array(photo._colored(image)))
    assert np.array_equal(found.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_stand_on_white(mode, tmp_path):
    image = Image.new(mode, (4, 2), 0)
    image.paste(tuple([50] * (len(mode) - 1) + [255]), (0, 0, 2, 2))
    found = reading(stored(image), tmp_path)
    assert found.mode == mode
    assert found.pixels[0, :, 0].tolist() == [50, 50, 255, 255]


def test_palettes_and_bits_are_read(tmp_path):
    image = noise(8, 8).convert("P")
    assert np.array_equal(reading(stored(image), tmp_path).pixels, np.asarray(image.convert("RGB")))
    image = noise(8, 8).convert("1")
    assert set(reading(stored(image), tmp_path).pixels.flatten().tolist()) == {0, 255}


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_gray_values_of_more_than_8_bits_are_stretched(dtype, tmp_path):
    image = Image.fromarray(np.array([[1000, 1100, 1200]], dtype=dtype))
    found = reading(stored(image, "TIFF"), tmp_path)
    assert found.pixels[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    assert (reading(stored(Image.fromarray(np.full((2, 2), 7, dtype)), "TIFF"), tmp_path).pixels == 0).all()


def test_a_picture_is_upright_as_its_file_says(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    image = noise(6, 4)
    found = reading(stored(image, exif=exif), tmp_path)
    assert np.array_equal(found.pixels, np.rot90(np.asarray(image), -1))


def test_of_several_pictures_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    assert reading(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]), tmp_path).pixels[
        0, 0
    ].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("size", "shown"), [((224, 224), (224, 224)), ((500, 300), (224, 134)), ((3, 9000), (1, 224))], ids=str
)
@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_large_pictures_are_shrunk_and_the_sheet_says_so(size, shown, format_, tmp_path):
    found = reading(stored(noise(*size), format_), tmp_path)
    assert (found.size, found.of_file) == (shown, size)
    caption = sheet_of(image=found)[2]["caption"]
    assert (f", shrunk from {size[0]}×{size[1]}," in caption) is (size != shown)
    assert "from a file in mode RGB" in caption


def cut(data):
    return data[: len(data) * 2 // 3]


def huge():
    """A valid PNG header that promises 100,000 × 100,000 pixels."""
    data = bytearray(stored(Image.new("1", (1, 1))))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


def large():
    return stored(Image.new("1", (8193, 8193)))


BROKEN = {
    "empty": (lambda: b"", "not a picture"),
    "text": (lambda: b"hello", "not a picture"),
    "cut": (lambda: cut(stored(noise(50, 50))), "cannot be read as a picture"),
    "cut jpeg": (lambda: cut(stored(noise(50, 50), "JPEG")), "cannot be read as a picture"),
    "huge": (huge, "cannot be read as a picture|not a picture"),
    "large": (large, "8,193 × 8,193 pixels are more than 67,108,864"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_is_refused_in_one_line_that_names_the_file(name, tmp_path):
    make, words = BROKEN[name]
    with pytest.raises(Refusal, match=words) as refusal:
        reading(make(), tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / 'image'}: ")
    assert "\n" not in str(refusal.value)


WRONG = {
    "draw autoaugment nosuch.png -o s.svg": "nosuch.png: there is no such file",
    "draw autoaugment folder -o s.svg": "folder: a directory or device, no picture",
    "draw autoaugment text.png -o s.svg": "text.png: not a picture in a format that Pillow reads",
    "draw autoaugment image.png": "give -o file.svg or -o file.png",
    "draw autoaugment image.png -i 1x3x8x8 -o s.svg": "--input 1x3x8x8 is the size of the built-in picture",
    "draw autoaugment -i 2x3x8x8 -o s.svg": "a sheet shows 1 image, its sides at most 224 pixels",
    "draw autoaugment -i 1x3x8x225 -o s.svg": "a sheet shows 1 image, its sides at most 224 pixels",
    "draw autoaugment -i 1x3x0x8 -o s.svg": "without elements",
    "draw autoaugment -i 1x1x8x8 -o s.svg": "red, green and blue are needed",
    "draw autoaugment --eval -o s.svg": "--eval is for layers",
    "draw autoaugment --policy mnist -o s.svg": "imagenet, cifar10, svhn",
    "draw gn image.png --groups 2 -o s.svg": "IMAGE 'image.png' is for augmentations",
    "draw gn --groups 2 image.png -o s.svg": "IMAGE 'image.png' is for augmentations",
    "draw gn ln --groups 2 -o s.svg": "IMAGE 'ln' is for augmentations",
    "draw torch.nn:ReLU image.png -o s.svg": "IMAGE 'image.png' is for augmentations",
    "draw autoaugment image.png image.png -o s.svg": "unexpected extra argument",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_refused_in_one_line_and_writes_nothing(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise(8, 8).save("image.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert WRONG[line].lower() in " ".join(result.stderr.split()).lower()
    assert len(result.stderr.splitlines()) <= 2
    assert sorted(tmp_path.iterdir()) == before


def test_without_pillow_a_file_is_refused_and_the_built_in_picture_is_there(tmp_path, monkeypatch):
    noise(8, 8).save(tmp_path / "image.png")
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    result = invoke("draw", "autoaugment", tmp_path / "image.png", "--json")
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert "needs Pillow" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert invoke("draw", "autoaugment", "--json").exit_code == Status.DONE


def test_layers_have_no_sheet():
    with pytest.raises(Refusal, match="gn is no augmentation"):
        sheet(drawing(resolve("gn"), {"groups": 2}))
