"""`stones report`: the page, what it says, what is refused. What a browser makes of it is in `test_report_browser`."""

from __future__ import annotations

import json
import re

import pytest
from command_line import invoke, process
from html_page import Page, columns, flaws, rows
from jsonschema import Draft202012Validator as Validator

from layers import catalog
from profiles import inspecting
from profiles.checks import invariance
from profiles.checks.transformations import PROPERTIES
from profiles.errors import Refusal
from profiles.reports import report
from profiles.reports.report import gather
from profiles.schemas import schema
from profiles.target import resolve
from stones_cli.report.page import html
from stones_cli.report.tables import text_of
from stones_cli.status import Status

NAMES = ("in", "adax", "bn-only", "autoaugment", "torch.nn:Softplus")


@pytest.fixture(scope="module")
def written(saved, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    result = invoke("report", *NAMES, "--bench", saved, "-o", file)
    assert result.exit_code == Status.DONE, result.output
    assert result.stderr == f"written: {file}\n"
    return file


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


def test_the_page_is_sound_and_loads_nothing(page):
    assert list(flaws(page)) == []
    assert page.find("html", lang="en")
    assert page.find("title")[0].text == page.find("h1")[0].text
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none'; ")
    assert "http" not in policy.attributes["content"]
    assert page.find("meta", name="viewport")


@pytest.mark.parametrize(
    ("old", "new", "flaw"),
    [
        ('id="overview"', 'id="techniques"', "stands twice"),
        ('href="#of-in"', 'href="#of-nothing"', "href=#of-nothing"),
        ("<main", '<img src="https://example.org/x.png"><main', "img"),
        ("<h3>", "<h5>", "h5 follows"),
        ('scope="col"', "", "no scope"),
        ('role="img"', "", "without words"),
        ("<main", "<main onclick=x", "a handler onclick"),
        ("</style>", "@import 'x';</style>", "a style that loads"),
        ('"use strict";', "fetch('x');", "a script that loads"),
    ],
)
def test_the_reader_of_pages_finds_what_is_wrong(written, old, new, flaw):
    text = written.read_text(encoding="utf-8")
    assert old in text
    changed = text.replace(old, new, 1)
    if new.startswith("<h"):
        changed = re.sub(r"<h3>(.*?)</h3>", r"<h5>\1</h5>", text, count=1)
    assert any(flaw in found for found in flaws(Page(changed)))


def test_a_tag_that_is_not_closed_is_noticed():
    for text in ("<p><b>x</p>", "<p>", "<p>x</b>", '<p id="a" id="b"></p>'):
        with pytest.raises(AssertionError):
            Page(text)


def test_every_technique_has_a_row_in_the_overview_and_a_section(page):
    (table,) = page.section("overview").find("table")
    assert [row[0] for row in rows(table)] == list(NAMES)
    links = [link.attributes["href"] for link in table.find("a")]
    titles = [page.section(link[1:]).find("h3")[0].text for link in links]
    assert [title.partition(": ")[0] for title in titles] == list(NAMES)


def test_the_numbers_are_those_of_inspect(page):
    (table,) = page.section("overview").find("table")
    for name in ("in", "adax", "torch.nn:Softplus"):
        record = json.loads(invoke("inspect", name, "--json").stdout)
        (row,) = [dict(zip(columns(table), row, strict=True)) for row in rows(table) if row[0] == name]
        flops, saved = record["flops"], record["memory"]["saved"]
        assert row["parameters"] == text_of(record["params"]["total"])
        assert row["FLOPs forward"] == text_of(flops["forward"]["card"])
        assert row["executed"] == text_of(flops["forward"]["executed"])
        assert row["executed backward"] == text_of(flops["backward"]["executed"])
        assert row["bytes saved"] == text_of(saved["measured"])
        assert row["input"] == "x".join(map(str, record["input"]["shape"]))
        assert all(stat["name"] in row["statistics"] for stat in record["stats"])


def test_what_is_sorted_is_the_number_and_not_its_words(page):
    (table,) = page.section("overview").find("table")
    cells = {cell.text: cell.attributes["data-key"] for cell in table.find("td") if "data-key" in cell.attributes}
    assert len(cells) > 5
    assert all(text == text_of(json.loads(key)) for text, key in cells.items())


def test_a_section_has_formula_options_costs_statistics_and_the_paper(page):
    section = page.section("of-in")
    card = catalog.stone("in").card
    assert card.formula in section.text
    assert card.summary in section.text
    assert all(note in section.text for note in card.notes)
    assert section.find("a", href=f"https://arxiv.org/abs/{card.paper.arxiv}")
    tables = {tuple(columns(table)): rows(table) for table in section.find("table")}
    costs = {row[0]: row for row in tables["", "formula", "card", "measured", "unit", "verdict"]}
    record = json.loads(invoke("inspect", "in", "--json").stdout)["flops"]["forward"]
    assert costs["executed forward"][2:4] == [text_of(record["executed_card"]), text_of(record["executed"])]
    assert costs["executed forward"][5] == "ok"
    assert costs["executed forward"][1]
    (options,) = [found for names, found in tables.items() if names[:2] == ("name", "default")]
    assert [row[0] for row in options] == [option.name for option in card.options]
    assert any(row[0] == "mean" for names, found in tables.items() if "measured" in names for row in found)


def test_pictures_stand_in_the_page_with_their_words(page):
    for name, picture in (("of-in", "Instance Normalization"), ("of-autoaugment", "AutoAugment")):
        (svg,) = page.section(name).find("svg")
        title, described = svg.find("title")[0], svg.find("desc")[0]
        assert title.text == picture
        assert len(described.text) > 40
        assert len(svg.find("use")) > 100
    assert page.section("of-autoaugment").find("image")
    assert not page.section("of-adax").find("svg")


def test_the_matrix_says_in_words_what_its_colours_say(page):
    (table,) = [t for t in page.section("invariances").find("table") if "technique" in columns(t)]
    found = [cell for cell in table.find("td") if re.match(r"\(?(yes|no)\b", cell.text)]
    marks = {"yes": "y", "no": "n"}
    assert {cell.attributes.get("class") for cell in found} == {"y", "n", None}
    assert all(cell.attributes.get("class") == marks.get(cell.text.split()[0]) for cell in found)
    named = dict(zip(columns(table), rows(table)[0], strict=True))
    record = json.loads(invoke("check-invariance", "in", "--carrier", "conv", "--json").stdout)["rows"]
    for row in record[: len(PROPERTIES)]:
        assert named[row["property"]].startswith("yes" if row["holds"] else "no"), row
    assert page.section("gradients").find("table")
    equations = {(row[0], row[1]) for table in page.section("identities").find("table") for row in rows(table)}
    assert ("in", "IN = GN(C)") in equations


def test_a_bench_is_a_plot_and_its_tables(page, saved):
    section, record = page.section("bench-1"), json.loads(saved.read_text())
    assert section.find("svg")
    ratios = [row for table in section.find("table") if "95 % interval" in columns(table) for row in rows(table)]
    wanted = [(case["name"], text_of(ratio["ratio"])) for case in record["cases"] for ratio in case["ratios"]]
    assert [(row[0], row[2]) for row in ratios] == wanted
    assert "pass" in {row[-1] for row in ratios}


def test_an_option_given_and_a_name_of_a_class_are_escaped_too(tmp_path):
    module = tmp_path / "a&b<i>.py"
    module.write_text("import torch\nclass Own(torch.nn.ReLU):\n    pass\n")
    file = tmp_path / "report.html"
    assert invoke("report", f"{module}:Own", "--no-pictures", "-o", file).exit_code == Status.DONE
    page = Page(file.read_text(encoding="utf-8"))
    assert list(flaws(page)) == []
    assert not page.find("i")
    assert "a&b<i>.py:Own" in page.section("overview").text


def test_a_kind_has_all_its_techniques(tmp_path):
    file = tmp_path / "report.html"
    result = invoke("report", "--kind", "init", "--no-pictures", "-o", file, "--json")
    record = json.loads(result.stdout)
    assert (result.exit_code, record["techniques"], record["ok"]) == (Status.DONE, 3, True)
    assert record["bytes"] == file.stat().st_size
    assert [error.message for error in Validator(schema("report")).iter_errors(record)] == []
    page = Page(file.read_text(encoding="utf-8"))
    (table,) = page.section("overview").find("table")
    assert [row[0] for row in rows(table)] == [s.name for s in catalog.stones().values() if s.kind == "init"]
    assert len(page.find("svg")) == 1  # that of the letters, which is empty


def test_the_same_command_writes_the_same_bytes_whatever_surrounds_it(saved, tmp_path):
    command = ["report", "pixel-norm", "autoaugment", "--bench", saved, "-o"]
    assert invoke(*command, tmp_path / "one.html").exit_code == Status.DONE
    other = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "MPLBACKEND": "svg", "OMP_NUM_THREADS": "2", "HOME": None}
    result = process(*command, tmp_path / "two.html", **other)
    assert (result.returncode, result.stderr) == (Status.DONE, f"written: {tmp_path / 'two.html'}\n")
    assert (tmp_path / "two.html").read_bytes() == (tmp_path / "one.html").read_bytes()


def test_what_is_refused_is_listed_with_its_reason():
    shape = (8, 6, 4, 4)
    found = gather([resolve("gn"), resolve("pixel-norm")], shape=shape, pictures=False)
    assert [each.name for each in found.skipped] == ["gn"]
    page = Page(html(found))
    assert "groups=32 does not divide 6 channels" in page.section("skipped").text
    assert "groups=32 does not divide 6 channels" in page.section("of-gn").text
    (table,) = page.section("overview").find("table")
    assert rows(table)[0][1].startswith("left out: groups=32")
    with pytest.raises(Refusal, match="nothing can be inspected\ngn: groups=32 does not divide 6"):
        gather([resolve("gn")], shape=shape)
    with pytest.raises(ValueError, match="groups=32 does not divide 6"):
        gather([resolve("gn"), resolve("pixel-norm")], shape=shape, skips=False)


def test_claims_that_cannot_be_measured_are_left_out_and_the_rest_stays():
    found = gather([resolve("gn")], {"groups": 32}, pictures=False, skips=False)
    assert [each.name for each in found.skipped] == ["claims of gn"]
    page = Page(html(found))
    assert "gn with groups=32 does not fit the carriers" in page.section("skipped").text
    assert page.section("overview").find("td", **{"class": "y"})
    assert not page.find("section", id="invariances")


def test_options_given_are_measured_without_expectation(tmp_path):
    file = tmp_path / "report.html"
    assert invoke("report", "gn", "--groups", "3", "-i", "4x12x3x5", "-o", file).exit_code == Status.DONE
    page = Page(file.read_text(encoding="utf-8"))
    assert "groups=3" in page.section("of-gn").text
    cells = [cell.text for cell in page.section("invariances").find("td")]
    assert any(text.startswith("(yes)") for text in cells)
    assert not any(re.match(r"yes \d", text) for text in cells)


def test_a_number_that_is_not_as_the_card_says_fails_and_the_page_says_so(tmp_path, monkeypatch):
    measured = inspecting.inspect

    def wrong(*arguments, **settings):
        record = measured(*arguments, **settings)
        record["checks"][0] |= {"ok": False, "card": 7}
        return record

    monkeypatch.setattr(report.inspecting, "inspect", wrong)
    file = tmp_path / "report.html"
    result = invoke("report", "icnr", "--no-pictures", "-o", file)
    assert result.exit_code == Status.FAILED
    assert "failed: icnr: " in result.stderr
    page = Page(file.read_text(encoding="utf-8"))
    (verdict,) = [p for p in page.find("p") if p.attributes.get("class") == "verdict f"]
    assert "FAILED" in verdict.text
    assert "the card says 7" in verdict.text
    (cell,) = page.section("overview").find("td", **{"class": "f"})
    assert cell.text.startswith("FAILED: ")


def test_a_claim_that_is_false_fails_and_is_marked(tmp_path, monkeypatch):
    def denied(*arguments, **settings):
        rows = checked(*arguments, **settings)
        return [rows[0].__class__(**{**vars(rows[0]), "verdict": "failed", "reason": "claimed, but"}), *rows[1:]]

    checked = invariance.check
    monkeypatch.setattr(report.invariance, "check", denied)
    file = tmp_path / "report.html"
    result = invoke("report", "pixel-norm", "--no-pictures", "-o", file)
    assert result.exit_code == Status.FAILED
    assert "claimed, but" in result.stderr
    (cell,) = Page(file.read_text(encoding="utf-8")).section("invariances").find("td", **{"class": "f"})
    assert cell.text.startswith("FAILED yes")


@pytest.mark.slow
def test_all_techniques_are_on_one_page_below_three_megabytes(tmp_path):
    file = tmp_path / "report.html"
    result = invoke("report", "-o", file, "--json")
    record = json.loads(result.stdout)
    assert (result.exit_code, record["failed"], record["skipped"]) == (Status.DONE, [], [])
    assert record["techniques"] == len(catalog.stones())
    page = Page(file.read_text(encoding="utf-8"))
    assert list(flaws(page)) == []
    assert len(page.section("techniques").find("svg")) >= 35
    assert file.stat().st_size < 3e6
