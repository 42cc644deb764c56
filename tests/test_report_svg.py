"""Pictures made small and put into one page: nothing that is drawn is lost, nothing is mixed up."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from probing import probed

from profiles.pictures import picture
from profiles.reports.report_svg import Inlined, _path

SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="10pt" height="20.4pt"
 viewBox="0 0 10 20"><metadata>gone</metadata><!-- {comment} --><defs><style>*{{stroke: red}}</style></defs>
 <g id="figure_1"><g id="patch_1"><path d="M 0 0 &#10;L 1.23456 0 &#10;L 1.23456 2 &#10;z" style="{style}"/></g>
 <g id="patch_2"><path d="M 5 5 L 6 5" style="{style}"/></g>
 <g style="fill: #222222" transform="translate(1.5 2.25) scale(0.09 -0.09)"><defs><path id="F-26" d="M 1 1
L 2 2
z" transform="scale(0.015625)"/></defs>
 <use xlink:href="#F-26"/><use xlink:href="#F-26" transform="translate(69.828125 0)"/></g>
 <g transform="translate(3 4)"><defs><path id="F-3" transform="scale(0.015625)"/></defs><use xlink:href="#F-3"/></g>
 <g style="fill: #222222" transform="translate(5 6)"><use xlink:href="#F-26" transform="translate(9 0)"/></g>
 <g clip-path="url(#clip)"><path d="M 0 0 L 1 1" style="stroke: #000000"/></g></g>
 <defs><clipPath id="clip"><rect x="0" y="0" width="5.00001" height="5"/></clipPath></defs></svg>"""


def svg(style="fill: #ff0000", comment=""):
    return SVG.format(style=style, comment=comment).encode()


def test_what_repeats_is_written_once_and_what_says_nothing_goes():
    pictures = Inlined()
    root = ET.fromstring(pictures.add(svg(), "A title", "What it shows"))
    assert root.attrib | {"role": "img", "width": "10", "height": "20"} == root.attrib
    assert [root.find("title").text, root.find("desc").text] == ["A title", "What it shows"]
    assert root.get("aria-labelledby").split() == [root.find("title").get("id"), root.find("desc").get("id")]
    assert [each.get("d") for each in root.iter("path")] == ["M0 0H1.23V2zM5 5H6", "M0 0L1 1"]
    letters = list(root.iter("use"))
    assert [each.attrib for each in letters] == [
        {"href": "#g0"},
        {"href": "#g0", "x": "70"},
        {"href": "#g0", "x": "9", "transform": "translate(5 6)", "class": letters[2].get("class")},
    ]
    assert pictures.glyphs == '<path id="g0" d="M1 1L2 2z" transform="scale(0.015625)" />'
    assert pictures.styles.splitlines()[0] == ".s0{fill:#ff0000}"
    (clip,) = root.iter("clipPath")
    assert [each.get("clip-path") for each in root.iter("g") if each.get("clip-path")] == [f"url(#{clip.get('id')})"]
    assert "metadata" not in {each.tag for each in root.iter()}


def test_two_pictures_share_letters_and_styles_and_no_other_id():
    pictures = Inlined()
    roots = [ET.fromstring(pictures.add(svg(), "t", "d")) for _ in range(2)]
    ids = [each.get("id") for root in roots for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids)) == 6
    assert pictures.glyphs.count("<path") == 1
    assert len(pictures.styles.splitlines()) == 3


def test_what_shines_through_is_not_made_one():
    for style, paths in (("fill: #ff0000", 2), ("fill: #ff0000; opacity: 0.5", 3)):
        assert Inlined().add(svg(style), "t", "d").count("<path") == paths


def test_words_are_escaped_and_comments_left_out():
    made = Inlined().add(svg(comment="<script>"), "<b>", "</svg><script>alert(1)</script>&")
    assert "script>" not in made.replace("&lt;script&gt;", "").replace("&lt;/script&gt;", "")
    assert "&lt;b&gt;" in made


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("M 1 2 L 3 2 L 3 4 L 1 4 z ", "M1 2H3V4H1z"),
        ("M 1 2 L 3 4 L 3 4 ", "M1 2L3 4V4"),
        ("M 0 -1.005 C 1 1 2 2.5 -3 3 L -3 5", "M0-1C1 1 2 2.5-3 3V5"),
        ("M 0.004 0 Q 1 1 0.5 -0.25 z M 7 7 L 7 9", "M0 0Q1 1 0.5-.25zM7 7V9"),
        ("", ""),
    ],
)
def test_a_path_is_the_same_in_fewer_characters(before, after):
    assert _path(before) == after


def test_a_true_picture_keeps_its_letters_and_shapes():
    drawn = picture.render(probed("in"))
    whole, small = ET.fromstring(drawn), ET.fromstring(Inlined().add(drawn, "t", "d"))
    spaces = {f"#{each.get('id')}" for each in whole.iter() if each.get("id") and not each.get("d")}
    letters = [value for each in whole.iter() for name, value in each.items() if name.endswith("href")]
    assert sum(letter not in spaces for letter in letters) == len(list(small.iter("use"))) > 100
    shapes = [each for each in whole.iter() if each.tag.endswith("}path") and not each.get("id")]
    drawn_once = sum(each.get("d").count("M") for each in shapes)
    assert drawn_once == sum(each.get("d").count("M") for each in small.iter("path"))
    styles = [part for each in whole.iter() for part in each.get("style", "").split("; ")]
    colours = {part for part in styles if part.startswith("fill: #")}
    pictures = Inlined()
    pictures.add(drawn, "t", "d")
    assert all(colour.replace(" ", "") in pictures.styles for colour in colours)
