"""Wrong use: the right exit status, a short message with the remedy on standard error, nothing on standard output."""

from __future__ import annotations

import json
import sys

import pytest
from command_line import invoke

from layers import catalog
from profiles.errors import Unavailable
from stones_cli import failures
from stones_cli.status import Status

WRONG = {
    "": "Usage: stones",
    "nosuch": "No such command 'nosuch'",
    "lsit": "Did you mean 'list'",
    "gn": "stones show gn",
    "list --kind nrom": "did you mean norm?",
    "list --year x": "'x' is not an integer ≥ 0",
    "list --since -1": "'-1' is not an integer ≥ 0",
    "list --format xml": "table, json",
    "list --json --format csv": "contradict",
    "list --jsn": "did you mean --json",
    "list -z": "no such option -z",
    "list -o -": "standard output",
    "list -o out/": "names a directory",
    "show": "Missing argument",
    "show gm": "did you mean gn?",
    "show bm": "did you mean bn?",
    "show GNN": "did you mean gn?",
    "show batch_renrom": "did you mean batch-renorm?",
    "show qqqqqq": "stones list",
    "show gn bn": "unexpected extra argument",
    "inspect": "Missing argument",
    "inspect gm": "did you mean gn?",
    "inspect gn bn": "unexpected extra argument",
    "inspect gn --groups 48": "64 channels divide into 1, 2, 4, 8, 16, 32, 64 groups",
    "inspect gn --groups 0": "it must be an integer ≥ 1",
    "inspect gn --groups -3": "it must be an integer ≥ 1",
    "inspect gn --groups 2.5": "'2.5' is not an integer",
    "inspect gn --groups none": "'none' is not an integer",
    "inspect gn --groups": "requires an argument",
    "inspect gn --groups 99999999999999999999": "is not an integer",
    "inspect gn --eps 0": "> 0",
    "inspect gn --eps nan": "finite number",
    "inspect gn --eps 1e999": "finite number",
    "inspect gn --gropus 4": "did you mean --groups?",
    "inspect gn --affine=3": "does not take a value",
    "inspect gn --channels-per-group 8 --groups 4": "contradict",
    "inspect ln --axes rows": "one of chw, channel",
    "inspect gn -i 8x": "not a shape",
    "inspect gn -i 8xx64": "not a shape",
    "inspect gn -i 8x-64": "not a shape",
    "inspect gn -i 1e3x4": "not a shape",
    "inspect gn -i 8": "2 to 5 sizes",
    "inspect gn -i 8x64x2x2x2x2": "2 to 5 sizes",
    "inspect gn -i 8x0x4": "1 channel",
    "inspect gn -i 100000x100000x100000x100000": "more than any tensor",
    "inspect gn --device tpu": "cpu, cuda or cuda:N",
    "inspect gn --device cpu:7": "cpu, cuda or cuda:N",
    "inspect gn --device cuda:-1": "cpu, cuda or cuda:N",
    "inspect gn --dtype int8": "float32, float64",
    "inspect gn -i 8x64x3 --memory-format channels_last": "4 or 5 sizes",
    "inspect gn --seed -1": "integer ≥ 0",
    "inspect gn --expect params": "key=value",
    "inspect gn --model a:b": "--model",
    "inspect bn-only --dtype float64": "--dtype is for layers",
    "inspect nosuchmodule:Class": "cannot import nosuchmodule",
    "inspect nosuch.py:Class": "no file nosuch.py",
    "inspect json:loads": "json:loads",
    "inspect json:nosuch": "has no 'nosuch'",
    "inspect :": "cannot import",
    "inspect torch.nn:GroupNorm": "--num-groups",
    "inspect torch.nn:GroupNorm --num-groups 5": "cannot be built",
    "inspect torch.nn:GroupNorm --num-groups 4 --no-measure": "--no-measure",
    "inspect torch.nn:GroupNorm --num-grups 4": "did you mean --num-groups?",
    "bench gn bn --groups 4": "an option of gn",
    "bench gn -i 0x32x4x4": "without elements",
    "bench gn --rounds 0": "integer ≥ 1",
    "bench gn --rounds 2": "rounds=2",
    "bench gn --budget 0": "number > 0",
    "bench gn --budget inf": "number > 0",
    "bench gn --threads 0": "integer from 1 to 1024",
    "bench gn --max-ratio nan": "number > 0",
    "bench gn --profile quick --vs copy": "--vs",
    "bench --backward": "--backward",
    "bench --profile quik": "did you mean quick?",
    "bench --profile nosuch.yaml": "no profile",
    "bench bn-only": "transforms a model",
    "bench gn --vs gn": "another name",
    "bench gn --vs bn-only": "transforms a model",
    "check-invariance bn-only": "transform",
    "check-invariance ln --property w-scal": "did you mean w-scale?",
    "check-invariance ln --carrier cnov": "did you mean conv?",
    "check-invariance ln --published": "--published",
    "check-identities torch.nn:ReLU": "states no identities",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_status_2_with_a_remedy(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*line.split())
    assert result.exit_code == Status.MISUSE
    assert result.stdout == ""
    assert WRONG[line] in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) <= 40
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", catalog.stones())
def test_a_typo_in_any_name_finds_it(name):
    for typo in (name + name[-1], name.replace("-", "_").upper() + "x"):
        if typo not in catalog.stones():
            stderr = invoke("show", typo).stderr
            assert "did you mean " in stderr
    assert invoke("show", name.replace("-", "_").upper()).exit_code == Status.DONE


@pytest.mark.parametrize(
    "line",
    [
        "inspect gn -i 1000000x64x1000x1000",
        "inspect gn --device cuda:99",
        "list -o /nonexistent/folder/out.json",
        "list -o /tmp",
        "bench gn --budget 0.01 -o /nonexistent/out.json",
    ],
)
def test_what_the_machine_lacks_is_status_3(line):
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert result.stderr.startswith("error: --")


def test_a_name_that_is_empty_or_looks_like_an_option_is_a_wrong_name():
    for line in (["inspect", ""], ["inspect", "-"], ["inspect", "--", "--groups"], ["bench", "--", "-x"], ["show", ""]):
        result = invoke(*line)
        assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
        assert "no stone is called" in result.stderr


def test_hostile_arguments_are_shown_harmless():
    for text in ("\x1b[31mgn", "gn\n\rx", "\u202eng", "[red]gn[/red]"):
        for line in (("show", text), ("inspect", "gn", f"--{text}"), (text,), ("list", "--kind", text)):
            result = invoke(*line)
            assert result.exit_code == Status.MISUSE
            assert all(char.isprintable() or char == "\n" for char in result.stderr)


def test_code_of_the_user_cannot_end_the_process_or_write_to_the_result(tmp_path):
    for number, line in enumerate(("raise SystemExit(0)", "1/0", "import sys; sys.exit(9)", "raise BaseException")):
        file = tmp_path / f"own{number}.py"
        file.write_text(f"print('loud')\n{line}\n")
        result = invoke("inspect", f"{file}:Layer")
        assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
        assert "cannot import" in result.stderr


OWN = """
import sys
import torch
from torch import nn

class Bad(nn.Module):
    def forward(self, x):
        {}
class Deaf(Exception):
    def __str__(self):
        raise RuntimeError
class Backward(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()
    @staticmethod
    def backward(context, gradient):
        raise LookupError("no way back")
"""
BAD = {
    "sys.exit(0)": "ended the run: SystemExit: 0",
    "raise BaseException('b')": "ended the run: BaseException: b",
    "raise LookupError('l')": "LookupError: l",
    "raise Deaf": "Deaf",
    "raise ValueError('y' * 10**6)": "yyy…",
    "1 / 0": "ZeroDivisionError",
    "return ()": "returned tuple, not a tensor",
    "return x.detach().numpy()": "returned ndarray, not a tensor",
    "return torch.fft.fft(x)": "not real and dense",
    "return x.detach().to_sparse()": "not real and dense",
    "return x.to('meta')": "on the device of its input",
    "return Backward.apply(x)": "fails in its backward: LookupError: no way back",
}


@pytest.mark.parametrize("body", BAD)
def test_a_class_that_misbehaves_is_wrong_use_and_no_bug(body, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.format(body))
    result = invoke("inspect", f"{file}:Bad", "-i", "4x4", "--no-fvcore")
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert BAD[body] in result.stderr
    assert len(result.stderr) < 1000


def test_what_a_class_prints_stays_out_of_the_result(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.format("print('loud'); return x * 1"))
    for line in (["inspect", "-i", "4x4"], ["check-invariance", "--property", "w-scale", "--carrier", "linear"]):
        result = invoke(line[0], f"{file}:Bad", *line[1:], "--json")
        assert json.loads(result.stdout)["schema"].startswith("stones.")
        assert "loud" in result.stderr


@pytest.mark.parametrize("name", ["layers", "json", "torch"])
def test_a_file_called_like_a_module_takes_its_place_nowhere(name, tmp_path):
    file = tmp_path / f"{name}.py"
    file.write_text(OWN.format("return x * 1"))
    before = sys.modules[name]
    assert invoke("inspect", f"{file}:Bad", "-i", "4x4").exit_code == Status.DONE
    assert sys.modules[name] is before


def test_a_class_that_forbids_copies_is_inspected_and_not_checked(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.format("return x * 1") + "Bad.__deepcopy__ = lambda self, memo: 1 / 0\n")
    assert invoke("inspect", f"{file}:Bad", "-i", "4x4").exit_code == Status.DONE
    result = invoke("check-invariance", f"{file}:Bad", "--property", "w-scale")
    assert result.exit_code == Status.MISUSE
    assert "cannot be copied" in result.stderr


def test_a_lazy_layer_takes_its_shapes_from_the_input():
    result = invoke("inspect", "torch.nn:LazyLinear", "--out-features", "3", "-i", "4x5", "--expect", "params=18")
    assert result.exit_code == Status.DONE


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), Status.INTERRUPTED, "interrupted"),
        (MemoryError(), Status.ENVIRONMENT, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"), Status.ENVIRONMENT, "out of memory"),
        (OSError(28, "No space left on device", "out"), Status.ENVIRONMENT, "out: No space left on device"),
        (ModuleNotFoundError("No module named 'fvcore'"), Status.ENVIRONMENT, "fvcore"),
        (Unavailable("no GPU"), Status.ENVIRONMENT, "no GPU"),
        (ZeroDivisionError("oops"), Status.INTERNAL, "ZeroDivisionError: oops"),
    ],
)
def test_every_exception_has_its_status(error, status, words, capsys):
    def run():
        raise error

    assert failures.status_of(run) == status
    assert words in capsys.readouterr().err


def test_a_bug_shows_where_it_is(capsys):
    failures.status_of(lambda: {}["missing"])
    stderr = capsys.readouterr().err
    assert stderr.startswith("internal error: Traceback")
    assert "report" in stderr


def test_a_name_that_can_only_be_a_directory_is_refused():
    result = invoke("list", "-o", "/")
    assert result.exit_code == Status.MISUSE
    assert "names a directory" in result.stderr
