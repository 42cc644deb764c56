"""`stones list`, `stones show` and every help page: they say what the cards say, in every format and width."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections import Counter

import pytest
from command_line import ROOT, invoke
from rich.cells import cell_len

import stones_cli
from layers import catalog
from layers.formula import pretty
from stones_cli.report import cards, plain, strict, terminal
from stones_cli.report.tables import Prose, Report, Table, table, text_of
from stones_cli.status import Status
from stones_cli.visible import one_line, visible

STONES = catalog.stones()
EVERY = [pytest.param(stone, id=name) for name, stone in STONES.items()]
COMMANDS = ("list", "show", "inspect", "bench", "check-invariance", "check-gradients", "check-identities")


def listed(*arguments):
    result = invoke("list", *arguments, "--json")
    assert result.exit_code == Status.DONE
    return [entry["name"] for entry in json.loads(result.stdout)["techniques"]]


def test_list_says_what_the_cards_say():
    document = json.loads(invoke("list", "--json").stdout)
    assert document["schema"] == "stones.list/1"
    assert [entry["name"] for entry in document["techniques"]] == list(STONES)
    for entry in document["techniques"]:
        stone = STONES[entry["name"]]
        assert (entry["kind"], entry["title"]) == (stone.kind, stone.card.title)
        assert (entry["year"], entry["paper"]["authors"]) == (stone.card.paper.year, stone.card.paper.authors)


def test_filters_choose_what_they_say():
    years = {name: stone.card.paper.year for name, stone in STONES.items()}
    middle = sorted(years.values())[len(years) // 2]
    assert listed("--year", middle) == [name for name in STONES if years[name] == middle]
    assert listed("--since", middle) == [name for name in STONES if years[name] >= middle]
    for kind in catalog.KINDS:
        assert listed("--kind", kind) == [name for name, stone in STONES.items() if stone.kind == kind]
    assert listed("--kind", "norm", "--since", middle) == [n for n in listed("--kind", "norm") if years[n] >= middle]


def test_words_are_searched_in_titles_and_authors_without_case():
    assert "gn" in listed("GROUP normalization")
    assert "gn" in listed("wu", "he")
    assert "bn" in listed("ioffe")
    assert set(listed("group", "normalization")) <= set(listed("group"))


def test_no_match_is_an_empty_list_and_a_note():
    result = invoke("list", "nothing has this in it", "--json")
    assert (result.exit_code, json.loads(result.stdout)["techniques"]) == (Status.DONE, [])
    assert "no technique" in result.stderr


def test_every_format_has_every_technique():
    names = list(STONES)
    lines = [json.loads(line) for line in invoke("list", "--format", "jsonl").stdout.splitlines()]
    assert [line["name"] for line in lines] == names
    assert {line["schema"] for line in lines} == {"stones.list/1"}
    rows = list(csv.DictReader(io.StringIO(invoke("list", "--format", "csv").stdout)))
    assert [row["name"] for row in rows] == names
    assert all(int(row["year"]) == STONES[row["name"]].card.paper.year for row in rows)
    marked = invoke("list", "--format", "markdown").stdout
    assert len(marked.splitlines()) == len(names) + 2
    assert [line.split()[0] for line in invoke("list").stdout.splitlines()[1:]] == names


@pytest.mark.parametrize("stone", EVERY)
def test_show_prints_the_whole_card(stone):
    card, page = stone.card, invoke("show", stone.name).stdout
    wanted = [card.title, card.formula, card.summary, str(card.paper), *card.notes, card.explained]
    wanted += [word for option in card.options for word in (option.name, option.help, option.expected(), option.source)]
    wanted += [word for stat in (*card.statistics, *card.buffers) for word in (stat.name, stat.symbolic(), stat.help)]
    wanted += [pretty(text) for text in (card.params, card.flops.forward, card.flops.backward, card.saved)]
    wanted += [word for claim in card.claims for word in (*claim.holds, claim.row, claim.why)]
    wanted += [identity.says for identity in card.identities]
    wanted += [f"where {name} is" for name in card.derived]
    missing = [words for words in wanted if one_line(words) not in page]
    assert not missing


@pytest.mark.parametrize("stone", EVERY)
def test_show_as_json_has_every_option_and_tensor(stone):
    card, document = stone.card, json.loads(invoke("show", stone.name, "--json").stdout)
    assert document["schema"] == "stones.show/1"
    assert {o["name"]: o["default"] for o in document["options"]} == json.loads(
        json.dumps({o.name: o.default for o in card.options})
    )
    assert [s["symbolic"] for s in document["statistics"]] == [s.symbolic() for s in card.statistics]
    assert [c["holds"] for c in document["claims"]] == [list(c.holds) for c in card.claims]


@pytest.mark.parametrize("stone", EVERY)
def test_a_terminal_of_any_width_loses_nothing(stone, monkeypatch):
    report = cards.page(stone)
    headings = Counter("".join(part.columns[0] for part in report.parts if isinstance(part, Table)))
    wanted = Counter("".join(plain.text(report).split())) - headings
    for width in (1, 20, 40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        drawn = terminal.drawn(report)
        assert not wanted - Counter("".join(drawn.split()))
        assert all(cell_len(line) <= width for line in drawn.splitlines())


def test_show_forgives_case_and_underscores():
    name = next(name for name in STONES if "-" in name)
    assert invoke("show", name.upper().replace("-", "_")).stdout == invoke("show", name).stdout


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_explains_itself(command):
    result = invoke(*command, "--help")
    assert result.exit_code == Status.DONE
    assert result.output == invoke(*command, "-h").output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    for status in Status:
        assert re.search(rf"^ +{int(status)} +{re.escape(status.meaning[:30])}", result.output, re.MULTILINE)


def test_help_lists_every_command_with_its_whole_first_sentence():
    output = invoke("--help").output
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +\S.*\.$", output, re.MULTILINE)
    assert "..." not in output.partition("Commands:")[2]


@pytest.mark.parametrize("stone", EVERY)
@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_help_shows_the_options_of_the_technique_in_their_panel(stone, command):
    output = invoke(command, stone.name, "--help").output
    panel = output.partition(f"Options of {stone.card.title}:")[2].partition("\n\n")[0]
    words = " ".join(panel.split())
    for option in stone.card.options:
        assert f"--{option.name.replace('_', '-')}" in panel
        assert option.bounds() in words
        assert " ".join(option.help.split()) in words
        assert all(choice in words for choice in option.choices)
    assert all(len(line) <= 80 for line in output.splitlines())


def test_help_without_a_technique_names_them_all():
    output = invoke("inspect", "--help").output
    words = output.partition("Techniques")[2].partition("Exit status")[0].replace("-\n", "-")
    assert all(name in words.replace("  ", "") for name in STONES)


def test_the_version_is_that_of_the_distribution():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert invoke("--version").stdout == f"stones {stones_cli.__version__}\n" == f"stones {declared}\n"


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\rb", "\u202egnp", "z\u200bw", "\x7f", "\x9b31m", "\ud800", "\xa0"])
def test_what_moves_a_cursor_is_made_visible(text):
    assert visible(text).isprintable()
    assert visible(text) != text
    assert visible(visible(text)) == visible(text)


def test_a_report_of_hostile_strings_is_shown_literally():
    hostile = "[red]x[/] | <b> `c` \x1b[2J\nnext"
    report = Report({"name": hostile}, (table(hostile, ("a", "b"), [(hostile, 1)]), Prose(hostile, (hostile,))))
    assert plain.text(report).count(one_line(hostile)) == 4
    assert json.loads(strict.document(report)) == {"name": hostile}
    for text in (plain.text(report), plain.markdown(report), plain.comma_separated(report), terminal.drawn(report)):
        assert "\x1b" not in text
    assert "[red]x[/]" in terminal.drawn(report)
    cells = re.split(r"(?<!\\)\|", plain.markdown(report).splitlines()[-7])
    assert len(cells) == 4


def test_json_is_strict():
    report = Report({"nan": float("nan"), "many": (1, [float("inf")]), "text": "×", 1: {"path": ROOT}}, ())
    text = strict.document(report)
    assert text.isascii()
    assert json.loads(text) == {"nan": None, "many": [1, [None]], "text": "×", "1": {"path": str(ROOT)}}


@pytest.mark.parametrize(
    ("cell", "text"), [(None, ""), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), ([8, 32], "8x32")]
)
def test_cells_are_spelt(cell, text):
    assert text_of(cell) == text
