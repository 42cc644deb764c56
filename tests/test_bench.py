"""What `bench` times on real layers: the jobs of a case, its references, its records, and what it leaves behind."""

from __future__ import annotations

import json
import platform
from dataclasses import replace

import pytest
import torch

from layers.catalog import stone
from profiles import allocator
from profiles.environment import environment
from profiles.errors import Refusal
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import Gate, case, reference
from profiles.speed.jobs import jobs
from profiles.speed.timing import LEAST_ROUNDS, Plan
from profiles.speed.variants import over_threads
from profiles.subject import Setup, Subject, subject
from profiles.target import Foreign, resolve

SMALL = Setup(shape=(2, 4, 3, 3))


def test_records_hold_ordered_numbers():
    measured = bench(Bench((case(subject(stone("bn"), {}, SMALL)),), Plan(seconds=0.1, block=1e-5, rounds=8)))
    candidates = measured["cases"][0]["candidates"]

    for row in candidates:
        assert len(row["samples_ns"]) >= LEAST_ROUNDS
        assert 0 < row["min_ms"] <= row["ms"]
        assert row["iqr_ms"] >= 0
        assert row["ms_ci95"][0] <= row["ms"] <= row["ms_ci95"][1]
    assert candidates[-1]["copies"] == 1
    assert [row["role"] for row in candidates] == ["stone", "reference", "copy"]
    json.dumps(measured, allow_nan=False)


@pytest.mark.parametrize("direction", ["backward", "forward+backward"])
def test_backward_gives_fresh_gradients_and_leaves_none(direction):
    made = jobs(case(subject(stone("gn"), {"groups": 2}, SMALL), direction))
    results = []
    for job in made[:2]:
        for _ in range(2):
            if job.prepare:
                job.prepare()
            results.append(job.run())

    for found in results[1:]:
        torch.testing.assert_close(found, results[0])
    assert len(results[0]) == 3, "of the input, γ and β"
    assert made[-1].name == "copy"


def test_the_copy_copies_the_same_bytes():
    source = subject(stone("gn"), {"groups": 2}, SMALL)

    torch.testing.assert_close(jobs(case(source))[-1].run(), source.input(requires_grad=False))


def test_forward_records_a_graph_in_training_only():
    for train in (True, False):
        made = jobs(case(subject(stone("bn"), {}, Setup(shape=SMALL.shape, train=train))))
        assert [job.run().requires_grad for job in made] == [train, train, False]


@pytest.mark.parametrize(
    ("vs", "expected"),
    [
        ("peer", {"num_groups": 2, "num_channels": 4, "eps": 0.5, "affine": False}),
        ("torch.nn:GroupNorm", {"num_groups": 2, "num_channels": 4, "eps": 0.5, "affine": False}),
        ("torch.nn:BatchNorm2d", {"num_features": 4, "eps": 0.5, "affine": False}),
        ("bn", stone("bn").card.check({"C": 4}, {"eps": 0.5, "affine": False})),
    ],
)
def test_a_reference_is_constructed_as_the_stone_is(vs, expected):
    made = case(subject(stone("gn"), {"groups": 2, "eps": 0.5, "affine": False}, SMALL), vs=[vs])
    (name,) = made.references

    assert reference(made.subject, name).options == expected
    assert [job.name for job in jobs(made)] == ["gn", name, "copy"]


def test_a_reference_takes_no_default_that_it_has_no_use_for():
    ln = reference(case(subject(stone("gn"), {"groups": 2}, SMALL), vs=["ln"]).subject, "ln")
    assert ln.options["affine"] == stone("ln").card.check({"C": 4}, {})["affine"]
    with pytest.raises(
        Refusal, match=r"ln beside gn: affine=False is not one of .*; give it its own, --vs ln:affine=…"
    ):
        case(subject(stone("gn"), {"groups": 2, "affine": False}, SMALL), vs=["ln"])


def test_a_function_of_a_tensor_is_a_reference_too():
    found = reference(subject(stone("pono"), {}, SMALL), "torch.nn.functional:normalize:p=1").build()
    x = torch.randn(SMALL.shape)
    torch.testing.assert_close(found(x), torch.nn.functional.normalize(x, 1.0))
    record = bench(
        Bench(
            (case(subject(stone("orthogonal"), {}, Setup(shape=(6, 9))), vs=["torch.nn.init:orthogonal_"]),),
            Plan(seconds=0.01),
        )
    )
    assert [ratio["vs"] for ratio in record["cases"][0]["ratios"]] == ["torch.nn.init:orthogonal_", "copy"]


def test_a_function_that_works_in_place_leaves_the_tensor_to_the_others(tmp_path):
    (tmp_path / "doubled.py").write_text(
        "from torch import Tensor\n\ndef double_(x: Tensor) -> Tensor:\n    return x.mul_(2)\n"
    )
    x = torch.randn(SMALL.shape).requires_grad_()
    kept = x.detach().clone()
    y = subject(resolve(f"{tmp_path / 'doubled.py'}:double_"), {}, SMALL).build()(x)
    torch.testing.assert_close(y, 2 * kept)
    assert torch.autograd.grad(y.sum(), x)[0].eq(2).all()
    assert not subject(resolve("torch.nn.init:zeros_"), {}, SMALL).build()(x).any()
    assert torch.equal(x, kept)


def test_a_function_of_what_is_not_said_to_be_a_tensor_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "plain.py").write_text("def twice(x):\n    return 2 * x\n")
    with pytest.raises(Refusal, match="'x'; a function that is to run itself says that its argument is a tensor"):
        subject(resolve(f"{tmp_path / 'plain.py'}:twice"), {}, SMALL).build()


def test_a_function_that_makes_a_module_is_called_for_it(tmp_path):
    (tmp_path / "made.py").write_text(
        "from torch import nn\n\ndef make(channels: int):\n    return nn.BatchNorm2d(channels)\n"
    )
    found = subject(resolve(f"{tmp_path / 'made.py'}:make"), {}, SMALL).build()
    assert isinstance(found, torch.nn.BatchNorm2d)


def test_references_that_make_no_sense_are_refused():
    gn = subject(stone("gn"), {"groups": 2}, SMALL)
    for wrong in ({"vs": ["gn"]}, {"direction": "sideways"}, {"label": "copy"}):
        with pytest.raises(Refusal):
            case(gn, **wrong)
    with pytest.raises(Refusal, match="no peer"):
        case(subject(resolve("torch.nn:GroupNorm"), {"num_groups": 2}, SMALL), vs=["peer"])
    with pytest.raises(Refusal, match="references are copy, peer"):
        jobs(case(gn, vs=["bnn"]))


def test_a_layer_without_gradient_has_no_backward():
    class Stop(torch.nn.Module):
        def forward(self, x):
            return x.detach()

    made = case(Subject(Foreign("Stop", Stop, ()), {}, SMALL), "backward")

    with pytest.raises(Refusal, match="Stop has no backward"):
        jobs(made)


def test_work_per_second_follows_the_card():
    gn = subject(stone("gn"), {"groups": 2}, SMALL)
    elements = SMALL.elements
    forward, both = case(gn), case(gn, "forward+backward")

    assert forward.bytes() == 2 * elements * 4
    assert both.bytes() == 5 * elements * 4
    assert both.flops() == forward.flops() + case(gn, "backward").flops() > forward.flops() > 0
    assert case(subject(resolve("torch.nn:GroupNorm"), {"num_groups": 2}, SMALL)).flops() is None


def small_bench(*gates, **settings):
    made = case(subject(stone("gn"), {"groups": 2}, SMALL), gates=gates)
    return Bench((made, case(subject(stone("bn"), {}, SMALL))), Plan(seconds=0.05, rounds=6, block=1e-5), **settings)


def test_gates_decide_and_advisory_ones_do_not():
    sure = bench(small_bench(Gate("copy", 1e6), Gate("peer", 1e6)))
    bad = bench(small_bench(Gate("copy", 1e-6), Gate("peer", 1e6)))
    mild = bench(small_bench(Gate("copy", 1e-6, advisory=True)))

    assert [found["verdict"] for found in (sure, bad, mild)] == ["pass", "fail", None]
    assert mild["cases"][0]["ratios"][0] | {"ratio": 0, "ratio_ci95": [], "noise_floor": 0} == {
        "of": "gn",
        "vs": "copy",
        "ratio": 0,
        "ratio_ci95": [],
        "noise_floor": 0,
        "max_ratio": 1e-6,
        "advisory": True,
        "verdict": "fail",
    }


@pytest.mark.parametrize("rounds", [3, 6])
def test_an_interrupt_keeps_what_was_measured(rounds):
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if progress.case == "bn forward" and sum(p.case == "bn forward" for p in seen) > rounds:
            raise KeyboardInterrupt

    found = bench(small_bench(), interrupt)

    assert found["interrupted"]
    assert [made["name"] for made in found["cases"]] == ["gn"] + ["bn"] * (rounds >= LEAST_ROUNDS)
    json.dumps(found, allow_nan=False)


def test_progress_rises_to_one():
    seen = []
    bench(small_bench(), lambda progress: seen.append(progress.fraction))

    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_torch_is_left_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    during = []
    with torch.no_grad():
        what = small_bench()
        what = replace(what, cases=over_threads(what.cases, [threads + 1]))
        bench(what, lambda progress: during.append(torch.get_num_threads()))
        assert not torch.is_grad_enabled()

    assert threads + 1 in during
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_allocator_is_recorded(monkeypatch):
    asked = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: asked.append(1) or True)

    assert bench(small_bench(allocator="system"))["environment"]["allocator"] == "system"
    assert not asked
    assert bench(small_bench())["environment"]["allocator"] == "kept"


def test_freed_memory_is_kept_where_glibc_is():
    assert allocator.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_the_environment_is_plain_data():
    found = environment()

    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    json.dumps(found, allow_nan=False)


def test_the_same_layer_is_not_much_slower_than_itself():
    setup = Setup(shape=(8, 16, 16, 16))
    made = case(
        subject(stone("gn"), {"groups": 2}, setup),
        gates=[Gate("twin", 3.0)],
        others={"twin": subject(stone("gn"), {"groups": 2}, setup)},
    )
    found = bench(Bench((made,), Plan(seconds=1.0)))
    ratio = found["cases"][0]["ratios"][0]

    assert ratio["vs"] == "twin"
    assert ratio["verdict"] != "fail", "three times as slow as itself"
