"""`stones run` and the others under `--format github`: what fails is an annotation at its place, and a summary."""

from __future__ import annotations

import re

import pytest
from command_line import invoke

from profiles.document import Place
from stones_cli.report.github import SUMMARY, Annotation, command
from stones_cli.status import Status


def test_failures_are_annotations_at_their_place_in_the_file(profile, monkeypatch, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv(SUMMARY, str(summary))
    path = profile("inspect: [gn, {stone: in, expect: ['params=3']}]\n")
    result = invoke("run", path, "--format", "github")
    assert result.exit_code == Status.FAILED
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("::")]
    place = f"file={path},line=2,col=36,title=inspect in%3A failed"
    assert line == f"::error {place}::expected params=3, found params=0"
    told = summary.read_text()
    assert told.startswith("before\n")
    assert "1 ok, 1 failed" in told
    assert "| inspect | in | failed | expected params=3, found params=0 |" in told
    assert "| gn |" not in told


def test_without_a_summary_file_or_in_another_format_none_is_written(profile, monkeypatch, tmp_path):
    path, summary = profile("inspect: [gn]\n"), tmp_path / "summary.md"
    monkeypatch.delenv(SUMMARY, raising=False)
    assert invoke("run", path, "--format", "github").exit_code == Status.DONE
    monkeypatch.setenv(SUMMARY, str(summary))
    assert invoke("run", path).exit_code == Status.DONE
    assert not summary.exists()
    monkeypatch.setenv(SUMMARY, str(tmp_path / "no" / "such"))
    assert invoke("run", path, "--format", "github").exit_code == Status.ENVIRONMENT


def test_a_refused_profile_is_an_annotation_on_standard_error(profile):
    path = profile("inspect:\n  - gnn\n")
    result = invoke("run", path, "--format", "github")
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert re.search(rf"^::error file={path},line=3,col=5,title=[^:]*::.*did you mean gn\?$", result.stderr, re.M)


def test_no_text_ends_an_annotation_or_begins_another():
    evil = "a%b\n::error::c\r,d:e\x1b"
    line = command(Annotation(evil, title=evil, place=Place(evil)))
    assert "\n" not in line
    assert "\r" not in line
    head, _, message = line.removeprefix("::error ").partition("::")
    assert head.startswith("file=a%25b%0A%3A%3Aerror%3A%3Ac\\r%2Cd%3Ae\\x1b,line=1,col=1,title=a%25b")
    assert message.startswith("a%25b%0A::error::c")


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        ("show gn --expect year=3", "expected year=3, found year=2018"),
        ("inspect gn --no-measure --expect params=3", "expected params=3, found params=128"),
        ("check-identities in --expect ok=false", "expected ok=false, found ok=true"),
        ("bench in -i 4x12x6x6 --rounds 5 --budget 0.01 --expect threads=3", ""),
        ("bench in -i 4x12x6x6 --rounds 5 --budget 0.01 --vs copy --max-ratio 1e-3", "the bar is 0.001"),
    ],
)
def test_every_command_annotates_what_fails(line, failed, monkeypatch, tmp_path):
    monkeypatch.setenv(SUMMARY, str(tmp_path / "summary.md"))
    result = invoke(*line.split(), "--format", "github")
    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    if not failed:
        assert (result.exit_code, commands) == (Status.MISUSE, [])
        return
    assert result.exit_code == Status.FAILED
    assert len(commands) == 1
    assert commands[0].startswith("::error title=stones::")
    assert failed in commands[0]
    assert "| --- |" in (tmp_path / "summary.md").read_text()


def test_a_long_summary_is_cut_at_a_line(monkeypatch, tmp_path):
    from stones_cli.report import github

    monkeypatch.setattr(github, "MOST_BYTES", 200)
    monkeypatch.setenv(SUMMARY, str(tmp_path / "summary.md"))
    assert invoke("list", "--format", "github").exit_code == Status.DONE
    told = (tmp_path / "summary.md").read_text()
    assert told.endswith("|\n\nThe rest is left out.\n\n")
    assert len(told.encode()) < 250
