"""The cache of ceilings: found again where everything is the same, and nothing in its place can break anything."""

from __future__ import annotations

import json
import math
import os
import stat

import pytest
from jsonschema import Draft202012Validator
from machines import KNOWN, PLACE

from profiles.schemas import schema
from profiles.speed import ceilings_kept
from profiles.speed.ceilings import Ceilings, Rung, from_record


def test_a_record_is_read_back_as_it_was():
    assert from_record(json.loads(json.dumps(KNOWN.record()))) == KNOWN


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": 3}, {"threads": "1"}, {"threads": True}, {"ladder": []}, {"ladder": None}, {"ladder": [3]},
        {"ladder": [{"bytes": 1, "copy_gb_per_s": "x", "read_gb_per_s": 1}]},
        {"ladder": [{"bytes": 1, "copy_gb_per_s": -1, "read_gb_per_s": 1}]},
        {"ladder": [{"bytes": 1, "copy_gb_per_s": 0, "read_gb_per_s": 1}]},
        {"ladder": [{"bytes": 1, "copy_gb_per_s": math.inf, "read_gb_per_s": 1}]},
        {"ladder": [{"bytes": 1, "copy_gb_per_s": math.nan, "read_gb_per_s": 1}]},
        {"ladder": [{"bytes": True, "copy_gb_per_s": 1, "read_gb_per_s": 1}]},
        {"ladder": [{"bytes": 2, "copy_gb_per_s": 1, "read_gb_per_s": 1}] * 2},
        {"ladder": [{"bytes": 2, "copy_gb_per_s": 1, "read_gb_per_s": 1}] * 2000},
        {"gflop_per_s": {}}, {"gflop_per_s": {"float32": "1"}}, {"gflop_per_s": []}, {"call_ms": 0}, {"call_ms": None},
        {"call_ms": 10**400}, {"disturbed": 1}, {"measured": 5},
    ],
)  # fmt: skip
def test_what_are_no_ceilings_is_refused(change):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong
        from_record({**KNOWN.record(), **change})


def test_kept_ceilings_are_recalled_where_everything_is_the_same(cache):
    assert ceilings_kept.recall(PLACE) is None
    assert ceilings_kept.keep(KNOWN)
    assert ceilings_kept.recall(PLACE) == KNOWN
    for name in PLACE:
        assert ceilings_kept.recall({**PLACE, name: "other"}) is None, name
    document = json.loads(cache.read_text())
    Draft202012Validator(schema("ceilings")).validate(document)
    assert [entry.name for entry in cache.parent.iterdir()] == ["ceilings.json"], "nothing is left beside it"


def test_the_newest_take_the_place_of_the_old_and_the_file_does_not_grow_for_ever(cache):
    def at(threads, call):
        return Ceilings({**PLACE, "threads": threads}, KNOWN.ladder, KNOWN.products, call, "now")

    for threads in range(1, ceilings_kept.MOST_ENTRIES + 3):
        assert ceilings_kept.keep(at(threads, 1.0))
    ceilings_kept.keep(at(40, 2.0))
    assert ceilings_kept.recall({**PLACE, "threads": 40}).call == 2.0
    assert ceilings_kept.recall({**PLACE, "threads": 1}) is None
    assert len(json.loads(cache.read_text())["machines"]) == ceilings_kept.MOST_ENTRIES


def test_disturbed_ceilings_do_not_lower_what_is_known(cache):
    low = Ceilings(PLACE, (Rung(10, 1.0, 1.0), Rung(100, 9.0, 1.0)), {"float32": 1.0}, 9.0, "now", disturbed=True)
    ceilings_kept.keep(KNOWN)
    ceilings_kept.keep(low)
    found = ceilings_kept.recall(PLACE)
    assert found.ladder == (Rung(10, 4.0, 3.0), Rung(100, 9.0, 10.0))
    assert (found.products, found.call) == ({"float32": 100.0}, 3.0)
    ceilings_kept.keep(Ceilings(PLACE, low.ladder, low.products, 9.0))
    assert ceilings_kept.recall(PLACE).ladder == low.ladder


GOOD = json.dumps({"schema": "stones.ceilings/1", "machines": [KNOWN.record()]})
HOSTILE = {
    "empty": b"",
    "truncated": GOOD[:200].encode(),
    "no json": b"\xff\xfe\x00rubbish",
    "no object": b"[1, 2]",
    "foreign": b'{"schema": "stones.bench/1", "machines": []}',
    "of a later version": GOOD.replace("ceilings/1", "ceilings/2").encode(),
    "without machines": b'{"schema": "stones.ceilings/1"}',
    "machines of another kind": b'{"schema": "stones.ceilings/1", "machines": {"a": 1}}',
    "entries of another kind": b'{"schema": "stones.ceilings/1", "machines": [1, null, [], {}, "x"]}',
    "numbers that are none": GOOD.replace('"call_ms": 3000.0', '"call_ms": NaN').encode(),
    "numbers beyond all": GOOD.replace('"call_ms": 3000.0', '"call_ms": 1e999').encode(),
    "deep": b"[" * 100_000,
    "huge": b" " * (9 * 2**20) + GOOD.encode(),
    "endless digits": b'{"schema": "stones.ceilings/1", "machines": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_nothing_and_is_replaced(kind, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(HOSTILE[kind])
    assert ceilings_kept.recall(PLACE) is None
    assert ceilings_kept.keep(KNOWN)
    assert ceilings_kept.recall(PLACE) == KNOWN


def test_one_entry_that_is_wrong_does_not_spoil_the_others(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text(json.dumps({"schema": "stones.ceilings/1", "machines": [{"cpu": 1}, KNOWN.record()]}))
    assert ceilings_kept.recall(PLACE) == KNOWN


def test_a_place_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "ceilings.json").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "ceilings.json")
    for place in ("file", "file/below", "folder", "pipe", "x" * 300, "/proc/nowhere"):
        monkeypatch.setenv("STONES_CACHE", str(tmp_path / place))
        assert ceilings_kept.recall(PLACE) is None, place
        assert ceilings_kept.keep(KNOWN) is False, place


def test_a_folder_without_permission_is_no_error(cache, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    cache.parent.mkdir(parents=True)
    monkeypatch.setattr(ceilings_kept.atomic.os, "open", refuse)  # root may write everywhere
    assert ceilings_kept.keep(KNOWN) is False
    assert list(cache.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"STONES_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/ceilings.json"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/stones/ceilings.json"),
        ({"STONES_CACHE": "", "XDG_CACHE_HOME": "relative", "HOME": "/usr"}, "/usr/.cache/stones/ceilings.json"),
        ({"HOME": "/usr"}, "/usr/.cache/stones/ceilings.json"),
        ({"HOME": "/nonexistent/home"}, None),  # and is not made
        ({}, None),
    ],
)
def test_the_environment_says_where_the_cache_is(variables, expected, monkeypatch):
    for name in ("STONES_CACHE", "XDG_CACHE_HOME", "HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = ceilings_kept.path()
    assert (found and found.as_posix()) == expected


def test_the_cache_is_for_those_who_may_read_it_by_the_umask(cache):
    ceilings_kept.keep(KNOWN)
    assert stat.S_IMODE(cache.stat().st_mode) & 0o133 == 0
