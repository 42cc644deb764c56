"""Benches over lists and sweeps: threads, dtypes, memory formats, sizes and options; failures measured again."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from command_line import invoke
from torch.nn.modules import module

from layers.catalog import stone
from profiles.errors import Refusal
from profiles.speed import bench as benching
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import Gate, case
from profiles.speed.jobs import jobs
from profiles.speed.sweep import parse
from profiles.speed.timing import Plan
from profiles.speed.variants import growth, over_threads, variants
from profiles.subject import Setup, subject
from stones_cli.status import Status

SMALL = Setup(shape=(2, 4, 3, 3))
PLAN = Plan(seconds=0.02, rounds=5, block=1e-5)
QUICK = ("-i", "2x4x6x6", "--rounds", "5", "--budget", "0.01")


def record(*arguments):
    result = invoke("bench", *arguments, *QUICK, "--json")
    assert result.exit_code == Status.DONE, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("name", "shape", "sweep", "shapes"),
    [
        ("gn", (2, 8, 5, 6), "N=1,3", [(1, 8, 5, 6), (3, 8, 5, 6)]),
        ("gn", (2, 8, 5, 6), "C=32,64", [(2, 32, 5, 6), (2, 64, 5, 6)]),
        ("gn", (2, 8, 5, 6), "W=1,2", [(2, 8, 5, 1), (2, 8, 5, 2)]),
        ("gn", (2, 8, 5, 6), "HW=7, 14", [(2, 8, 7, 7), (2, 8, 14, 14)]),
        ("gn", (2, 8, 5), "W=9", [(2, 8, 9)]),
        ("gn", (2, 8, 3, 4, 5), "D=1", [(2, 8, 1, 4, 5)]),
        ("gn", (2, 8, 3, 4, 5), "DHW=2", [(2, 8, 2, 2, 2)]),
        ("omd", (8, 4, 3, 3), "O=2,4", [(2, 4, 3, 3), (4, 4, 3, 3)]),
        ("omd", (8, 4, 3, 3), "HW=1", [(8, 4, 1, 1)]),
    ],
)
def test_a_sweep_sets_an_axis(name, shape, sweep, shapes):
    assert [made.setup.shape for made in variants(stone(name), Setup(shape=shape), sweep=parse(sweep))] == shapes


def test_a_sweep_sets_an_option_as_the_command_line_reads_it():
    found = variants(stone("gn"), SMALL, sweep=parse("channels-per-group=none,2"))

    assert [made.options for made in found] == [{"channels_per_group": None}, {"channels_per_group": 2}]
    assert [made.label for made in found] == ["channels_per_group=none", "channels_per_group=2"]


@pytest.mark.parametrize(
    ("name", "sweep", "message"),
    [
        ("gn", "Q=1,2", "there are N, C, H, W, HW, groups"),
        ("gn", "group=1,2", "did you mean groups?"),
        ("gn", "n=1,2", "did you mean N?"),
        ("gn", "N=0,1", "'0' is not a size of N, an integer ≥ 1"),
        ("gn", "N=1" + 19 * "0", "an integer ≥ 1 of at most 18 digits"),
        ("gn", "N=1,2,01", "N=1 stands twice, in two spellings"),
        ("gn", "eps=1e-3,0.001", "eps=0.001 stands twice"),
        ("gn", "N=1.5", "not a size of N"),
        ("gn", "eps=small", "eps"),
        ("omd", "N=1", "there are O, I, H, W, HW"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(name, sweep, message):
    with pytest.raises(Refusal, match=r"^sweep ") as caught:
        variants(stone(name), SMALL, sweep=parse(sweep))
    assert message in str(caught.value)


def test_an_option_that_is_given_and_swept_is_refused():
    refused = invoke("bench", "gn", "--groups", 2, "--sweep", "groups=1,2", *QUICK)
    assert (refused.exit_code, refused.stdout) == (Status.MISUSE, "")
    assert refused.stderr == "error: groups is given as 2 and swept too: leave one out\n"


def test_a_point_that_a_technique_refuses_is_named():
    refused = invoke("bench", "gn", "--groups", 2, "--sweep", "C=4,9", *QUICK)
    assert (refused.exit_code, refused.stdout) == (Status.MISUSE, "")
    assert refused.stderr.startswith("error: C=9: groups=2 does not divide 9 channels")


@pytest.mark.parametrize("text", ["", "N", "N=", "=1", "N=1,", "N=1,1", "N=" + ",".join(map(str, range(65))), "N 1"])
def test_what_is_no_sweep_is_refused(text):
    with pytest.raises(Refusal):
        parse(text)


def test_lists_combine_and_each_case_says_which_it_is():
    found = record(
        "gn", "--groups", 2, "--dtype", "float32,bfloat16", "--memory-format", "contiguous,channels_last",
        "--threads", "1,2",
    )  # fmt: skip
    cases = found["cases"]

    assert len(cases) == len({case["name"] for case in cases}) == 8
    assert cases[1]["name"] == "gn float32 contiguous threads=2"
    seen = {(case["input"]["dtype"], case["input"]["memory_format"], case["threads"]) for case in cases}
    assert len(seen) == 8
    assert found["sweep"] is None


def test_torch_runs_with_the_threads_of_each_case():
    made = over_threads([case(subject(stone("gn"), {"groups": 2}, SMALL))], [1, 3])
    before, seen = torch.get_num_threads(), {}

    def see(progress):
        seen.setdefault(progress.case, []).append(torch.get_num_threads())

    bench(Bench(made, PLAN, roofline=False), see)

    assert [counts[-1] for counts in seen.values()] == [1, 3]
    assert torch.get_num_threads() == before


def test_processor_time_is_refused_for_more_than_one_thread():
    made = over_threads([case(subject(stone("gn"), {"groups": 2}, SMALL))], [1, 2])
    with pytest.raises(Refusal, match="one thread"):
        Bench(made, PLAN, clock="cpu")


def test_threads_and_profiles_combine(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(
        "schema: stones.profile/1\ndefaults: {input: 2x4x3x3}\n"
        "stones: [{stone: gn, options: {groups: 2}, threads: 3}]\n"
        "gates: [{of: gn, vs: copy, max_ratio: 1.0e+6}]\n"
    )
    result = invoke("bench", "--profile", path, "--threads", "1,2", "--rounds", 5, "--budget", 0.01, "--json")
    found = json.loads(result.stdout)

    assert [case["threads"] for case in found["cases"]] == [1, 2]
    assert found["verdict"] == "pass"
    assert invoke("bench", "--profile", path, "--sweep", "N=1,2").exit_code == Status.MISUSE


def test_growth_is_the_slope_on_logarithmic_scales():
    def at(value, stone_ms, copy_ms):
        row = {"role": "stone", "name": f"gn N={value}", "ms": stone_ms, "copies": stone_ms / copy_ms}
        beside = {"role": "copy", "name": "copy", "ms": copy_ms, "copies": 1}
        where = {"axis": "N", "value": value}
        return {"name": f"gn N={value}", "direction": "forward", "at": where, "candidates": [row, beside]}

    rows = growth({"cases": [at(1, 1.0, 1.0), at(2, 4.0, 1.0), at(8, 8.0, 2.0)]})
    found = {(row["candidate"], row["value"]): row["exponent"] for row in rows}

    assert found == {
        ("gn", 1): None, ("gn", 2): 2.0, ("gn", 8): 0.5,
        ("copy", 1): None, ("copy", 2): 0.0, ("copy", 8): 0.5,
    }  # fmt: skip


def test_a_sweep_is_printed_as_a_table_and_kept_in_the_record():
    found = record("gn", "--groups", 2, "--sweep", "N=1,2,4")
    text = invoke("bench", "gn", "--groups", 2, "--sweep", "N=1,2,4", *QUICK).stdout

    assert found["sweep"] == {"axis": "N", "values": [1, 2, 4]}
    assert [case["at"] for case in found["cases"]] == [{"axis": "N", "value": n} for n in (1, 2, 4)]
    assert [case["input"]["shape"][0] for case in found["cases"]] == [1, 2, 4]
    assert "Along N, forward" in text
    assert text.count("power ") == 6, "two for the stone, its reference, the copy each"


def test_a_kind_can_be_swept_and_what_refuses_is_listed():
    found = record("--kind", "upsample", "--sweep", "scale=2,3")

    assert {case["at"]["value"] for case in found["cases"]} == {2, 3}
    assert {skipped["name"] for skipped in found["skipped"]} == {"hdc", "irevnet-squeeze"}, "have no scale"


def test_a_failure_is_measured_again_and_what_was_found_first_is_kept(monkeypatch):
    tried = []
    real = benching.Timing

    def timing(*arguments):
        tried.append(arguments[1][0].bar)
        return real(*arguments)

    monkeypatch.setattr(benching, "Timing", timing)
    gn = subject(stone("gn"), {"groups": 2}, SMALL)
    made = (case(gn, gates=[Gate("copy", 1e-6)]), case(gn, gates=[Gate("copy", 1e6)], label="fine"))
    found = bench(Bench(made, PLAN))

    assert tried == [1e-6, 1e6, 1e-6]
    assert [case["attempts"] for case in found["cases"]] == [2, 1]
    assert found["cases"][0]["earlier"][0]["verdict"] == "fail"
    assert found["cases"][1]["earlier"] == []
    assert found["verdict"] == "fail"


def test_a_failure_that_is_not_found_twice_is_none(monkeypatch):
    verdicts = iter(["fail", None])
    real = benching.worst

    def worst(cases):
        return next(verdicts, None) if len(cases) == 1 else real(cases)

    monkeypatch.setattr(benching, "worst", worst)
    gn = subject(stone("gn"), {"groups": 2}, SMALL)
    found = bench(Bench((case(gn, gates=[Gate("copy", 1e6)]),), PLAN))

    assert found["cases"][0]["attempts"] == 2
    assert found["cases"][0]["ratios"][0]["verdict"] == "pass"


def test_an_interrupt_while_measuring_again_keeps_the_first(monkeypatch):
    def interrupt(progress):
        if "once more" in progress.case:
            raise KeyboardInterrupt

    gn = subject(stone("gn"), {"groups": 2}, SMALL)
    found = bench(Bench((case(gn, gates=[Gate("copy", 1e-6)]),), PLAN), interrupt)

    assert found["interrupted"]
    assert [case["attempts"] for case in found["cases"]] == [1]
    assert found["verdict"] == "fail"


def test_advisory_gates_are_not_measured_again():
    gn = subject(stone("gn"), {"groups": 2}, SMALL)
    assert bench(Bench((case(gn, gates=[Gate("copy", 1e-6, advisory=True)]),), PLAN))["cases"][0]["attempts"] == 1


def test_the_time_of_compilation_stands_apart(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    found = record("gn", "--groups", 2, "--compile", "--both")["cases"][0]
    plain = record("gn", "--groups", 2, "--both")["cases"][0]

    assert found["compiled"]
    assert [row["compile_s"] is None for row in found["candidates"]] == [False, False, True]
    assert all(row["compile_s"] is None for row in plain["candidates"])


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("no compiler\nat all", "no compiler"),
        ("InvalidCxxCompiler", "InvalidCxxCompiler; install one, or let CXX name it, or leave --compile out"),
    ],
)
def test_a_compiler_that_fails_is_named_and_a_missing_one_with_its_remedy(monkeypatch, raised, told):
    def broken(module):
        def fail(x):
            raise RuntimeError(raised)

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    result = invoke("bench", "gn", "--groups", 2, "--compile", *QUICK)

    assert result.exit_code == Status.ENVIRONMENT
    assert f"torch.compile fails on gn: {told}\n" in result.output


def test_the_peak_holds_the_output_and_the_workspace_does_not():
    row = record("gn", "--groups", 2)["cases"][0]["candidates"][0]

    assert row["peak_bytes"] >= 2 * 4 * 6 * 6 * 4
    assert row["workspace_bytes"] <= row["peak_bytes"] - 2 * 4 * 6 * 6 * 4


def test_nothing_is_left_of_a_forward_and_backward_so_that_the_next_begins_alike():
    outputs = []
    hook = module.register_module_forward_hook(lambda _, given, y: outputs.append(weakref.ref(y)))
    try:
        made = case(subject(stone("gn"), {"groups": 2}, SMALL), "forward+backward", vs=[])
        gn, *_ = jobs(made)
        outputs.clear()
        gn.run()
    finally:
        hook.remove()
    assert [output() for output in outputs] == [None]


def test_an_optimizer_is_timed_on_many_parameters_with_every_one_stepped():
    from profiles.adapters import Optimizer

    found = record("adax", "--tensors", 7)["cases"][0]
    made = subject(stone("adax"), {}, Setup(shape=(5, 3), tensors=7))
    module = made.build()
    before = [p.detach().clone() for p in module.optimizer.param_groups[0]["params"]]
    made.run(module, made.input())

    assert isinstance(module, Optimizer)
    assert len(before) == 7
    assert not any(map(torch.equal, before, module.optimizer.param_groups[0]["params"]))
    assert found["input"] == {"shape": [2, 4, 6, 6], "tensors": 7, "dtype": "float32", "memory_format": "contiguous"}
    assert case(made).bytes() == 7 * case(subject(stone("adax"), {}, Setup(shape=(5, 3)))).bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gn --tensors 2", "--tensors 2 is for optimizers; gn works on one tensor"),
        ("adax --tensors 0", "from 1 to 10000"),
        ("adax --tensors 2 -i 4x4x3x3 --memory-format channels_last", "is for one tensor"),
        ("--profile quick --tensors 2", "--tensors is for techniques named here"),
    ],
)
def test_parameter_lists_that_make_no_sense_are_refused(line, message):
    result = invoke("bench", *line.split())
    assert result.exit_code == Status.MISUSE
    assert message in " ".join(result.output.split())


def test_however_many_cases_there_are_each_is_compiled_for_its_own_shapes(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width in (3, 4, 5):
            made = case(subject(stone("gn"), {"groups": 2}, Setup(shape=(2, 4, width, 3))), compile=True)
            assert [job.name for job in jobs(made)] == ["gn", "torch.nn:GroupNorm", "copy"]
