"""`stones report --bench`: what a saved bench brings to the page, and what is no bench."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
from command_line import invoke
from html_page import Page, flaws
from jsonschema import Draft202012Validator as Validator

from profiles.reports.report import gather, read_bench
from profiles.schemas.measurements import BENCH
from profiles.target import resolve
from stones_cli.report.page import html, told
from stones_cli.status import Status

NASTY = "<script>alert(1)</script>\"'&lt;\x1b[31m\u202e</svg>$x$"
HARMLESS = "<script>alert(1)</script>\"'&lt;\\x1b[31m\\u202e</svg>$x$"


def hostile(saved, folder):
    """A bench whose every free word is an attack, in a file whose name is one."""
    record = json.loads(saved.read_text())
    for case in record["cases"]:
        case["name"] = NASTY
        for each in case["candidates"]:
            each["name"] = each["name"] + NASTY
        for ratio in case["ratios"]:
            ratio["of"], ratio["vs"] = NASTY, ratio["vs"] + NASTY
    record["warnings"] = [{"code": NASTY, "about": NASTY, "message": NASTY, "advice": NASTY}]
    record["skipped"] = [{"name": NASTY, "reason": NASTY}]
    record["environment"] |= {"cpu": NASTY, "torch": NASTY, "python": NASTY, "gpu": None}
    record["profile"] = NASTY
    file = folder / "<b>&\"'.json"
    file.write_text(json.dumps(record))
    return file


def test_hostile_words_of_a_bench_are_words_on_the_page(saved, tmp_path):
    file = tmp_path / "report.html"
    result = invoke("report", "icnr", "--bench", hostile(saved, tmp_path), "-o", file)
    assert result.exit_code == Status.DONE, result.output
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert list(flaws(page)) == []
    assert len(page.find("script")) == 1
    assert "alert" not in page.find("script")[0].text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert HARMLESS in page.section("bench-1").text
    assert "<b>&\"'.json" in page.section("bench-1").find("h2")[0].text
    assert not page.find("b")


def spoilt(record):
    """Records that are no bench: a key less, or a value of another type or beyond all numbers, wherever one stands."""
    for path in places(record):
        for value in ("a word", None, [], {}, -1, 1e40, True, ...):
            changed = copy.deepcopy(record)
            inner = changed
            for step in path[:-1]:
                inner = inner[step]
            if value is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            yield path, value, changed


def places(value, path=()):
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def test_what_is_let_pass_is_as_the_schema_says(saved):
    from profiles.reports.conforming import violation

    record = json.loads(saved.read_text())
    assert violation(record, BENCH) == ""
    assert violation({**record, "later": 1}, BENCH) == ""
    validator = Validator(BENCH)
    refused = 0
    for path, value, changed in spoilt(record):
        wrong = violation(changed, BENCH)
        refused += bool(wrong)
        if value != 1e40:
            valid = not any(error.validator != "additionalProperties" for error in validator.iter_errors(changed))
            assert bool(wrong) != valid, (path, value, wrong)
        elif isinstance(path[-1], str) and path[-1] not in ("options", "limits"):
            assert wrong or "options" in path, path
    assert refused > 300


@pytest.mark.parametrize("value", ["elsewhere", "x" * 5000])
def test_a_point_that_lies_on_no_sweep_is_refused_in_a_short_line(saved, tmp_path, value):
    record = json.loads(saved.read_text())
    record["sweep"] = {"axis": "N", "values": ["here"]}
    for made in record["cases"]:
        made["at"] = {"axis": "N", "value": value}
    file, page = tmp_path / "odd.json", tmp_path / "x.html"
    file.write_text(json.dumps(record))
    result = invoke("report", "icnr", "--bench", file, "-o", page)
    assert (result.exit_code, result.stdout, page.exists()) == (Status.MISUSE, "", False)
    assert result.stderr.startswith(f"error: {file}: not as stones bench writes it: it names '{value[:9]}")
    assert len(result.stderr) < 200 + len(str(file))


def test_numbers_that_no_clock_gives_are_refused_or_shown(saved, tmp_path):
    file = tmp_path / "bench.json"
    outcomes = set()
    for field, value in itertools.product(("ms", "samples_ns", "images_per_s"), (0, 1e-300, 1e29)):
        record = json.loads(saved.read_text())
        record["cases"][0]["candidates"][0][field] = [value] * 5 if field == "samples_ns" else value
        file.write_text(json.dumps(record))
        result = invoke("report", "icnr", "--no-pictures", "--bench", file, "-o", tmp_path / "x.html")
        assert result.exit_code in (Status.DONE, Status.MISUSE), result.output
        outcomes.add(result.exit_code)
    assert outcomes == {Status.DONE, Status.MISUSE}


def test_a_bench_without_cases_is_a_section_without_a_plot(saved, tmp_path):
    record = {**json.loads(saved.read_text()), "cases": [], "interrupted": True}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(record))
    found = gather([resolve("icnr")], pictures=False, benches=[read_bench(str(file))])
    section = Page(html(found)).section("bench-1")
    assert "Interrupted" in section.text
    assert not section.find("svg")
    assert told(found, file, 1).record["benches"] == 1
