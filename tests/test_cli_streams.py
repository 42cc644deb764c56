"""Real processes: pipes, full disks, closed streams, signals, locales, terminals; files that are whole or absent."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from command_line import COMMAND, ROOT, at_once, environment, interruptible, process, signalled
from rich.cells import cell_len

from profiles import atomic
from profiles.errors import Unavailable
from stones_cli.status import Status

DEVICES = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
BENCH = ("bench", "in", "bn", "gn", "ln", "-i", "32x64x56x56", "--forward", "--backward", "--both", "--json")


def shell(line):
    """Run a line of the shell in which ``stones`` is the command; return its output, errors and status."""
    function = f'stones() {{ {" ".join(COMMAND)} "$@"; }}; set -o pipefail; '
    return subprocess.run(["bash", "-c", function + line], cwd=ROOT, env=environment(), capture_output=True, text=True)


def test_a_reader_that_leaves_early_ends_it_silently():
    result = shell("stones show ln --json | head -c 1")
    assert (result.stdout, result.stderr) == ("{", "")
    assert result.returncode in (0, 128 + signal.SIGPIPE)


@DEVICES
@pytest.mark.parametrize("line", ["list", "show gn --json", "inspect gn --no-measure", "--help", "--version"])
def test_a_full_disk_is_status_3_with_its_reason(line):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = process(*line.split(), stdout=full)
    assert result.returncode == Status.ENVIRONMENT
    assert len(result.stderr.splitlines()) <= 1


@DEVICES
def test_a_full_disk_says_so():
    result = shell("stones list > /dev/full")
    assert result.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_survived(closed, tmp_path):
    file = tmp_path / "out.json"
    result = shell(f"stones list -o {file} {closed}")
    assert result.returncode == Status.DONE
    assert "Traceback" not in result.stderr
    assert json.loads(file.read_text())["schema"] == "stones.list/1"


def test_a_full_standard_error_changes_no_status():
    assert shell("stones show nosuch 2> /dev/full").returncode == Status.MISUSE
    assert shell("stones show nosuch 2>&-").returncode == Status.MISUSE


ENVIRONMENTS = [
    {"LANG": "C", "LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"COLUMNS": "40"},
    {"COLUMNS": "1"},
    {"COLUMNS": "garbage", "LINES": "-1"},
    {"HOME": None, "USER": None},
    {"HOME": "/nonexistent"},
    {"TERM": "dumb", "NO_COLOR": "1"},
    {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "GITHUB_ACTIONS": "true"},
    {"PYTHONHASHSEED": "1"},
    {"PYTHONWARNINGS": "error"},
    {"PYTHONOPTIMIZE": "2"},
    {"OMP_NUM_THREADS": "garbage"},
]


@pytest.mark.parametrize("line", ["show ln --json", "list --format jsonl"])
def test_the_result_does_not_depend_on_the_environment(line):
    plain = process(*line.split())
    assert plain.returncode == Status.DONE
    for start in range(0, len(ENVIRONMENTS), 4):
        started = [(variables, *at_once(line.split(), **variables)) for variables in ENVIRONMENTS[start : start + 4]]
        for variables, (stdout, stderr, status) in started:
            assert (stdout, status, stderr) == (plain.stdout, Status.DONE, ""), variables


def test_a_measured_result_does_not_depend_on_the_environment():
    line = ["inspect", "gn", "--groups", "3", "-i", "4x12x3x5", "--json"]
    (plain, *_), (bare, *_) = at_once(line, line, PYTHONHASHSEED="7")
    warned = process(*line, PYTHONWARNINGS="error", LC_ALL="C", HOME=None, COLUMNS="1")
    assert plain == bare == warned.stdout
    assert json.loads(plain)["ok"] is True


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_tables_and_help_survive_ascii(variables):
    table, page, wrong = at_once(["show", "gn"], ["inspect", "gn", "--help"], ["show", "γ"], **variables)
    assert [status for *_, status in (table, page, wrong)] == [Status.DONE, Status.DONE, Status.MISUSE]
    assert "Traceback" not in table[1] + page[1] + wrong[1]
    assert "Group Normalization" in table[0]


def test_without_a_terminal_there_are_no_control_characters():
    for variables in ({"FORCE_COLOR": "1"}, {"GITHUB_ACTIONS": "true"}, {"TERM": "xterm-256color"}):
        for stdout, stderr, _ in at_once(["list"], ["--help"], ["inspect", "gn", "--groups", "0"], **variables):
            assert "\x1b" not in stdout + stderr


def on_terminal(*arguments, columns, **variables):
    """Run on a pseudo-terminal of ``columns`` and return what it shows."""
    master, slave = pty.openpty()
    running = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(COLUMNS=str(columns), TERM="xterm-256color", **variables),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = bytearray()
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert running.wait(timeout=60) == Status.DONE
    return shown.decode()


def test_a_terminal_gets_colour_unless_told_otherwise():
    assert "\x1b[1m" in on_terminal("list", columns=80)
    assert "\x1b" not in on_terminal("list", columns=80, NO_COLOR="1")


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_terminal_of_any_width_is_respected(columns):
    shown = on_terminal("show", "bn", columns=columns, NO_COLOR="1")
    assert all(cell_len(line) <= columns for line in shown.replace("\r", "").splitlines())
    assert "momentum" in shown


def test_json_is_the_same_on_a_terminal():
    assert on_terminal("list", "--json", columns=20).replace("\r\n", "\n") == process("list", "--json").stdout


def test_a_read_only_directory_is_no_hindrance(tmp_path):
    tmp_path.chmod(0o555)
    try:
        assert process("list", cwd=tmp_path, HOME=str(tmp_path)).returncode == Status.DONE
        assert process("inspect", "gn", "--no-measure", cwd=tmp_path).returncode == Status.DONE
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_bench_with_what_it_has(number, tmp_path):
    file = tmp_path / "out.json"
    status, stdout, stderr = signalled(number, *BENCH, "-o", file)
    assert status == 128 + number
    assert "Traceback" not in stderr
    assert json.loads(stdout)["interrupted"] is True
    assert file.read_text() == stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


# The writer of output files.


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    file = tmp_path / "out.json"
    atomic.write(file, "old\n")
    assert stat.S_IMODE(file.stat().st_mode) & 0o111 == 0
    file.chmod(0o640)
    before = file.stat().st_ino
    atomic.write(file, "new ×\n")
    assert file.read_bytes() == "new ×\n".encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_ino != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "out.json"
    file.write_text("old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(descriptor, error=error):
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises((Unavailable, KeyboardInterrupt)):
            atomic.write(file, "new")
        assert file.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_readers_see_the_old_or_the_new_content(tmp_path):
    file, contents = tmp_path / "out.json", {str(digit) * 200_000 for digit in range(10)}
    file.write_text(next(iter(contents)))
    done = threading.Event()

    def write():
        for content in [*contents] * 5:
            atomic.write(file, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert file.read_text() in contents
    writer.join()


def test_a_killed_process_leaves_no_torn_file(tmp_path):
    file = tmp_path / "out.json"
    whole = process("list", "--json").stdout
    for delay in (0.05, 0.1, 0.12, 0.15, 0.2):
        running = subprocess.Popen(
            [*COMMAND, "list", "--json", "-o", str(file)], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
        )
        time.sleep(delay)
        running.kill()
        running.wait()
        assert not file.exists() or file.read_text() == whole


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    file = tmp_path / "out"
    results = at_once(*[["list", "--format", form, "-o", str(file)] for form in ("json", "csv", "markdown", "jsonl")])
    assert {status for *_, status in results} == {Status.DONE}
    assert file.read_text() in {stdout for stdout, *_ in results}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_links_are_followed_and_devices_written_directly(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    atomic.write(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
    atomic.check_writable(link)
    atomic.write(tmp_path.__class__("/dev/null"), "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    atomic.write(fifo, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)


@pytest.mark.parametrize("path", ["", ".", "nosuch/out", "file/out", "loop", "x" * 300])
def test_a_path_that_cannot_be_written_is_refused_beforehand(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Unavailable, match="--output"):
        atomic.check_writable(type(tmp_path)(path))
    with pytest.raises(Unavailable, match="--output"):
        atomic.write(type(tmp_path)(path), "text")
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_without_permission_is_refused_beforehand():
    """Root may write everywhere, so it becomes nobody for a moment; the folder is one that anybody can see."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(Unavailable, match="Permission denied"):
                atomic.check_writable(Path(folder) / "out")
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)


INTERRUPTED = """
import signal, time, weakref
import torch
from torch import nn

class Interrupted(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        passing = nn.Identity()
        kept = weakref.ref(passing, lambda _: signal.raise_signal(signal.SIGINT))
        del passing
        time.sleep(5)
        return x
"""


def test_an_interrupt_inside_of_a_callback_is_not_lost(tmp_path):
    file = tmp_path / "interrupted.py"
    file.write_text(INTERRUPTED)
    ended = subprocess.run(
        [*COMMAND, "inspect", f"{file}:Interrupted"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=interruptible,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (Status.INTERRUPTED, "", "note: interrupted\n")
