"""`stones report` where it is used wrongly, lacks something or is ended: one line, and the old page stays."""

from __future__ import annotations

import signal
import sys

import pytest
from command_line import invoke, signalled

from profiles import atomic
from profiles.reports import report
from stones_cli.status import Status

WRONG = {
    "report": "give -o file.html",
    "report in": "give -o file.html",
    "report in -o in.svg": "must end in .html",
    "report in -o in": "must end in .html",
    "report in -o -": "a page goes to a file",
    "report --kind norm in -o x.html": "--kind norm names its techniques",
    "report --kind nosuch -o x.html": "is not one of norm",
    "report gn --groups 48 -o x.html": "groups=48 does not divide 64 channels",
    "report gn svb --groups 3 -o x.html": "does not divide 64 channels",
    "report gn --gropus 4 -o x.html": "did you mean --groups?",
    "report gm -o x.html": "did you mean gn?",
    "report in -i 8x -o x.html": "is not a shape",
    "report in --bench nosuch.json -o x.html": "nosuch.json: cannot be read",
    "report in --bench text.json -o x.html": "text.json:1:1: no JSON",
    "report in --bench list.json -o x.html": "list.json: a stones.list/1, not what stones bench writes",
    "report in --bench hollow.json -o x.html": "hollow.json: not as stones bench writes it: the document has no",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_refused_in_one_line_and_writes_nothing(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "gather", None)
    (tmp_path / "text.json").write_text("text")
    (tmp_path / "list.json").write_text('{"schema": "stones.list/1", "techniques": []}')
    (tmp_path / "hollow.json").write_text('{"schema": "stones.bench/1"}')
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert WRONG[line] in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) <= 2
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("path", ["nosuch/x.html", "folder.html"])
def test_a_file_that_cannot_be_written_is_status_3_before_anything_runs(path, tmp_path, monkeypatch):
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(report, "gather", None)
    result = invoke("report", "in", "-o", tmp_path / path)
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert result.stderr.startswith("error: --output")


@pytest.mark.parametrize(("library", "name"), [("jinja2", "Jinja2"), ("matplotlib", "matplotlib")])
def test_without_a_library_the_extra_is_named(library, name, tmp_path, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(report, "gather", None)
    result = invoke("report", "in", "-o", tmp_path / "x.html")
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert f"needs {name}" in result.stderr
    assert "pip install 'dl-stones[report]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_pictures_and_benches_matplotlib_is_not_needed(tmp_path, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert invoke("report", "icnr", "--no-pictures", "-o", tmp_path / "x.html").exit_code == Status.DONE


def test_a_failure_to_write_leaves_the_old_page(tmp_path, monkeypatch):
    file = tmp_path / "x.html"
    file.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    result = invoke("report", "icnr", "--no-pictures", "-o", file)
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("x.html", "old")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_written(number, tmp_path):
    file = tmp_path / "x.html"
    file.write_text("old")
    status, stdout, stderr = signalled(number, "report", "-o", file)
    assert (status, stdout) == (128 + number, "")
    assert "Traceback" not in stderr
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("x.html", "old")]
