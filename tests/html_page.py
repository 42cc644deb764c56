"""A page of HTML read strictly: its elements as a tree, with what a browser would forgive held against it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADING = {"src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background", "ping"}


class Element:
    """One element: ``tag``, ``attributes``, ``children`` and the text between them."""

    def __init__(self, tag, attributes=(), parent=None):
        self.tag, self.attributes, self.parent, self.content = tag, dict(attributes), parent, []

    def walk(self):
        yield self
        for child in self.content:
            if isinstance(child, Element):
                yield from child.walk()

    def find(self, tag, **attributes):
        """All elements below of that tag with these attributes."""
        wanted = attributes.items()
        return [each for each in self.walk() if each.tag == tag and wanted <= each.attributes.items()]

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.content)


class Page(HTMLParser):
    """The tree of a page; reading fails on tags that do not match and on an attribute given twice."""

    def __init__(self, text):
        super().__init__()
        self.root = self.open = Element("")
        self.feed(text)
        self.close()
        assert self.open is self.root, f"{self.open.tag} is not closed"

    def handle_starttag(self, tag, attributes):
        self.add(tag, attributes)
        if tag not in VOID:
            self.open = self.open.content[-1]

    def handle_startendtag(self, tag, attributes):
        self.add(tag, attributes)

    def add(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} {names} at {self.getpos()}"
        self.open.content.append(Element(tag, attributes, self.open))

    def handle_endtag(self, tag):
        assert self.open.tag == tag, f"</{tag}> ends <{self.open.tag}> at {self.getpos()}"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.content.append(data)

    def find(self, tag, **attributes):
        return self.root.find(tag, **attributes)

    def section(self, anchor):
        (found,) = self.find("section", id=anchor)
        return found


def rows(table):
    """The cells of the body of a table as texts, a list a row."""
    (body,) = table.find("tbody")
    return [[cell.text for cell in row.content if isinstance(cell, Element)] for row in body.find("tr")]


def columns(table):
    return [cell.text for cell in table.find("thead")[0].find("th")]


def flaws(page):
    """What is wrong with a page that is to stand alone and be read by everybody, one sentence each."""
    elements = list(page.root.walk())
    ids = [each.attributes["id"] for each in elements if "id" in each.attributes]
    yield from (f"the id {name} stands twice" for name in set(ids) if ids.count(name) > 1)
    for each in elements:
        yield from (f"{each.tag}: {flaw}" for flaw in _flaws(each, set(ids)))
    levels = [int(each.tag[1]) for each in elements if re.fullmatch("h[1-6]", each.tag)]
    yield from (f"h{b} follows h{a}" for a, b in zip([0, *levels], levels, strict=False) if b > a + 1)
    if levels.count(1) != 1:
        yield f"{levels.count(1)} headings h1"


def _flaws(each, ids):
    for name, value in each.attributes.items():
        if name.startswith("on"):
            yield f"a handler {name}"
        if name in LOADING and not _stays(each.tag, value, ids):
            yield f"{name}={value[:60]}"
        targets = [*re.findall(r"url\(([^)]*)\)", value or "")] + (value.split() if name == "aria-labelledby" else [])
        yield from (f"{name} leads to {target}" for target in targets if target.lstrip("#") not in ids)
    if each.tag in ("link", "iframe", "object", "embed", "img", "base", "form", "foreignobject"):
        yield "it loads something"
    if each.tag == "th" and each.attributes.get("scope") not in ("row", "col"):
        yield "no scope"
    shown = each.tag == "svg" and each.attributes.get("aria-hidden") != "true"
    if shown and (each.attributes.get("role") != "img" or not each.attributes.get("aria-labelledby")):
        yield "a picture without words"
    if each.tag == "style" and re.search(r"@import|url\(|</", each.text):
        yield "a style that loads"
    if each.tag == "script" and re.search(r"fetch|XMLHttp|WebSocket|import\b|eval|https?:|innerHTML", each.text):
        yield "a script that loads"


def _stays(tag, value, ids):
    """Whether a reference stays in the page, or is a link that somebody has to follow."""
    if value.startswith("#"):
        return value[1:] in ids
    if tag == "image":
        return value.startswith("data:image/png;base64,")
    return tag == "a" and value.startswith("https://arxiv.org/abs/")
