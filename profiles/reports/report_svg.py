"""SVG files of matplotlib made small and fit to stand many in one page: ids that differ, styles and glyphs shared.

Not a word of the drawing is lost: what goes is the description of the file, names of groups, and repetition.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

_POINT = re.compile(r"([MLCQz])|(-?[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)")
_MOVED = re.compile(r"translate\((-?[0-9.]+) (-?[0-9.]+)\)")
_NUMBER = re.compile(r"-?[0-9]+\.[0-9]+(?:e-?[0-9]+)?")
_REFERENCE = re.compile(r"(?:url\()?#([A-Za-z0-9_.:-]+)\)?")
_ROOT = {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # what matplotlib says of everything, by a style sheet


@dataclass
class Inlined:
    """The pictures of one page so far: add one after another, then write `styles` and `glyphs` once."""

    _classes: dict[str, str] = field(default_factory=dict)
    _glyphs: dict[tuple[str, str], str] = field(default_factory=dict)
    _count: int = 0

    def add(self, svg: bytes, title: str, description: str) -> str:
        """Return the ``svg`` element of a file, to stand in HTML, with what it is in words for those who hear it."""
        self._count += 1
        root = ET.fromstring(svg)
        _without_namespaces(root)
        for name in ("metadata", "title"):
            _remove(root, name)
        for defs in root.iter("defs"):
            _remove(defs, "style")
        self._name_references(root)
        for element in root.iter():
            self._shorten(element)
        _flatten(root)
        _merge(root, {name for style, name in self._classes.items() if "opacity" in style})
        width, height = (float(root.get(side, "0").removesuffix("pt")) for side in ("width", "height"))
        about = f"p{self._count}"
        root.attrib = {
            "viewBox": root.get("viewBox", ""),
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "role": "img",
            "aria-labelledby": f"{about}t {about}d",
            **_ROOT,
        }
        said = [ET.Element(tag, {"id": about + tag[0]}) for tag in ("title", "desc")]
        said[0].text, said[1].text = title, description
        root[:] = [*said, *root]
        return ET.tostring(root, encoding="unicode").replace(" />", "/>")

    @property
    def styles(self) -> str:
        """The rules of a style sheet for all pictures added."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._classes.items())

    @property
    def glyphs(self) -> str:
        """The letters of all pictures added, to stand in a ``defs`` element of the page."""
        made = (
            ET.Element("path", {"id": name, "d": d, **({"transform": transform} if transform else {})})
            for (d, transform), name in self._glyphs.items()
        )
        return "".join(ET.tostring(element, encoding="unicode") for element in made)

    def _name_references(self, root: ET.Element) -> None:
        """Rename what is referred to, drop all other ids, and move letters, which pictures have in common, out."""
        wanted = {found for element in root.iter() for found in _references(element)}
        names: dict[str, str] = {}
        for parent in list(root.iter()):
            for element in list(parent):
                old = element.attrib.pop("id", "")
                if old not in wanted:
                    continue
                if element.tag == "path" and "-" in old and set(element.attrib) <= {"d", "transform"}:
                    names[old] = self._glyph(element) if element.get("d") else ""  # a space
                    parent.remove(element)
                else:
                    names[old] = f"p{self._count}i{len(names)}"
                    element.set("id", names[old])
        for element in root.iter():
            for key, value in element.attrib.items():
                if key != "d" and "#" in value and not value.startswith("data:"):
                    element.set(key, _REFERENCE.sub(lambda m: m[0].replace(m[1], names.get(m[1], m[1])), value))

    def _glyph(self, element: ET.Element) -> str:
        key = _path(element.get("d", "")), _rounded(element.get("transform", ""))
        return self._glyphs.setdefault(key, f"g{len(self._glyphs)}")

    def _shorten(self, element: ET.Element) -> None:
        """Round numbers, and write a style once for all that have it."""
        shorten: dict[str, Callable[[str], str]] = {"d": _path, "transform": _rounded}
        for name in ("x", "y", "width", "height"):
            shorten[name] = _rounded
        for name, how in shorten.items():
            if name in element.attrib:
                element.set(name, how(element.attrib[name]))
        moved = _MOVED.fullmatch(element.attrib.get("transform", ""))
        if element.tag == "use" and moved:  # a letter, in hundredths of the size of the font
            del element.attrib["transform"]
            element.attrib.update({n: f"{float(v):.0f}" for n, v in zip("xy", moved.groups(), strict=True) if float(v)})
        style = re.sub(r"\s*([:;])\s*", r"\1", element.attrib.pop("style", "")).strip("; ")
        if style:
            element.set("class", self._classes.setdefault(style, f"s{len(self._classes)}"))
        element.text = element.tail = None


def _without_namespaces(root: ET.Element) -> None:
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}


def _remove(parent: ET.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)


def _references(element: ET.Element) -> list[str]:
    values = (v for k, v in element.attrib.items() if k != "d" and "#" in v and not v.startswith("data:"))
    return [name for value in values for name in _REFERENCE.findall(value)]


def _flatten(element: ET.Element) -> None:
    """Put in the place of groups that say nothing, or hold one letter, what they hold, and drop what is empty."""
    children: list[ET.Element] = []
    for child in element:
        _flatten(child)
        if (child.tag in ("g", "defs") and not len(child)) or child.get("href") == "#":
            continue
        letter = child.tag == "g" and len(child) == 1 and child[0].tag == "use"
        if letter and not child[0].attrib.keys() & child.attrib.keys():
            child[0].attrib.update(child.attrib)
            child.attrib.clear()
        children.extend(child if child.tag == "g" and not child.attrib else [child])
    element[:] = children


def _merge(element: ET.Element, translucent: Collection[str]) -> None:
    """Make one path of neighbours that look alike and do not shine through each other."""
    children: list[ET.Element] = []
    for child in element:
        _merge(child, translucent)
        last = children[-1] if children else child
        alike = child is not last and child.tag == last.tag == "path" and _look(child) == _look(last)
        if alike and child.get("class") not in translucent:
            last.set("d", last.get("d", "") + child.get("d", ""))
        else:
            children.append(child)
    element[:] = children


def _look(path: ET.Element) -> dict[str, str]:
    return {name: value for name, value in path.attrib.items() if name != "d"}


def _rounded(text: str) -> str:
    return _NUMBER.sub(lambda found: _short(float(found[0])), text)


def _short(number: float) -> str:
    """Return two digits after the point, more of a number below 1."""
    text = f"{number:.2f}" if abs(number) >= 1 else f"{number:.6g}"
    return (text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text).replace("-0.", "-.") or "0"


def _path(text: str) -> str:
    """Return the same path in fewer characters: two digits, straight lines by one number."""
    parts: list[str] = []
    numbers: list[float] = []
    command, at = "", (0.0, 0.0)
    for letter, number in _POINT.findall(text):
        if letter:
            command = letter
            if letter == "z":
                parts.append("z")
            continue
        numbers.append(round(float(number), 2))
        if len(numbers) < {"C": 6, "Q": 4}.get(command, 2):
            continue
        parts.append(_segment(command, numbers, at))
        at, numbers = (numbers[-2], numbers[-1]), []
    return "".join(parts)


def _segment(command: str, numbers: list[float], at: tuple[float, float]) -> str:
    if command == "L" and numbers[0] == at[0]:
        return f"V{_short(numbers[1])}"
    if command == "L" and numbers[1] == at[1]:
        return f"H{_short(numbers[0])}"
    return command + " ".join(map(_short, numbers)).replace(" -", "-")
