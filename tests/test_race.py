"""Races: trajectories against formulas written by hand, entrants as people write them, digits, files, the command."""

import json
import math
import xml.etree.ElementTree as ET

import pytest
from command_line import invoke, process

from layers.card import OptionError
from layers.catalog import UnknownStone, stones
from layers.claims import Race
from profiles.errors import Refusal
from profiles.races import digits, race_profiles
from profiles.races.entrants import entrant
from profiles.races.problems import PROBLEMS
from profiles.races.race import Outcome, race, run, stated

ADAM = "torch.optim:Adam"


def ends(problem, *entrants, steps=None):
    record = race(PROBLEMS[problem], [entrant(text) for text in entrants], steps=steps)
    return [each["end"] for each in record["entrants"]]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda p: p.name)
def test_a_gradient_is_the_derivative_of_its_loss(problem):
    for t in (1, 2, 3):
        x = [0.3 + 0.1 * i for i in range(len(problem.start))]
        gradient = problem.gradient(x, t)[1]
        for i in range(len(x)):
            high, low = ([*x[:i], x[i] + h, *x[i + 1 :]] for h in (1e-6, -1e-6))
            slope = (problem.gradient(high, t)[0] - problem.gradient(low, t)[0]) / 2e-6
            assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_gradient_descent_on_the_quadratic_is_the_power_of_one_minus_lr():
    (end,) = ends("quadratic", "torch.optim:SGD:lr=0.005", steps=50)
    curvatures = [100 ** (i / 9) for i in range(10)]
    assert end["loss"] == pytest.approx(sum(0.5 * a * (1 - 0.005 * a) ** 100 for a in curvatures), rel=1e-9)


def test_the_travel_of_momentum_after_an_impulse_is_a_geometric_sum():
    plain, momentum = ends("impulse", "torch.optim:SGD", "torch.optim:SGD:momentum=0.9")
    assert plain["travel"] == pytest.approx(1, rel=1e-12)
    assert momentum["travel"] == pytest.approx(10, rel=1e-9)


def test_adam_climbs_in_the_example_of_reddi_and_amsgrad_does_not():
    climbing, right = ends("reddi", f"{ADAM}:beta2=0.0588235294", f"{ADAM}:beta2=0.0588235294,amsgrad=true", steps=2000)
    assert climbing["x0"] == pytest.approx(1, abs=0.02)
    assert climbing["regret"] > 1.3
    assert right["x0"] < -0.9


def test_the_same_race_twice_is_the_same_bit_for_bit():
    first, second = (race(PROBLEMS["rosenbrock"], [entrant(ADAM), entrant("adax")], steps=60) for _ in range(2))
    assert first == second


def test_one_that_leaves_the_numbers_is_stopped_and_the_others_go_on():
    record = race(PROBLEMS["rosenbrock"], [entrant("torch.optim:SGD:lr=9"), entrant(ADAM)], steps=100)
    lost, there = record["entrants"]
    assert lost["diverged"] < 20
    assert lost["end"] is None
    assert there["diverged"] is None
    assert math.isfinite(there["end"]["loss"])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("torch.optim:SGD+torch.optim:Adam", Refusal, "one optimizer"),
        ("nosuch", UnknownStone, "nosuch"),
        ("torch.optim:SGD:momentun=1", OptionError, "momentum"),
        ("sgd-g:lr=x", OptionError, "lr"),
        ("spp", Refusal, "kind pool"),
        ("torch.nn:Linear", Refusal, "no optimizer"),
        ("", UnknownStone, "no stone"),
    ],
)
def test_an_entrant_that_cannot_race_is_refused(text, error, words):
    with pytest.raises(error, match=words):
        entrant(text)


def test_options_of_an_entrant_stand_before_the_settings_of_the_problem():
    part = entrant(f"{ADAM}:beta1=0.5,lr=0.25").trainer
    found = run(PROBLEMS["reddi"], part, 3)["options"]
    assert (found["betas"], found["weight_decay"]) == ([0.5, 0.999], 0.0)


def test_networks_race_on_digits_only():
    with pytest.raises(Refusal, match="digits"):
        race(PROBLEMS["quadratic"], [entrant("bn-only+torch.optim:SGD")])


@pytest.mark.parametrize("race", [(s.name, r) for s in stones().values() for r in s.card.races], ids=lambda r: r[0])
def test_what_a_card_states_of_a_race_can_be_run(race):
    _, stated = race
    assert stated.problem in PROBLEMS
    assert stated.measure in PROBLEMS[stated.problem].measures
    assert stated.steps >= 1
    assert stated.within > 0


def test_a_race_that_comes_out_otherwise_is_no_success():
    stated = Race(says="", problem="impulse", measure="travel", expected=2.0, steps=1, within=0.01)
    assert Outcome("x", stated, 2.01).ok
    assert not Outcome("x", stated, 2.1).ok
    assert not Outcome("x", stated, None).ok


def test_all_cards_come_out_as_they_say():
    outcomes = stated()
    assert outcomes
    assert [(o.stone, o.race.says, o.found) for o in outcomes if not o.ok] == []


def test_digits_are_trained_alike_from_the_same_seed_and_learnt():
    training = digits.Training(epochs=2, batch=64)
    entrants = [
        entrant("torch.optim:SGD"),
        entrant("bn-only:train_output=true"),
        entrant("gn:groups=4+torch.optim:SGD"),
    ]
    record, again = digits.race(entrants, training), digits.race(entrants[:1], training)
    assert record["entrants"][0] == again["entrants"][0]
    assert [len(each["points"]) for each in record["entrants"]] == [2, 2, 2]
    assert record["entrants"][0]["end"]["accuracy"] > 0.5
    losses = [each["end"]["loss"] for each in record["entrants"]]
    assert len(set(losses)) == 3


def test_repeats_are_seeds_in_a_row():
    made = [entrant("torch.optim:SGD")]
    alone = [digits.race(made, digits.Training(1, 256, 1, seed))["entrants"][0]["end"] for seed in (3, 4)]
    both = digits.race(made, digits.Training(1, 256, 2, 3))["entrants"][0]["end"]
    assert both["accuracy"] == pytest.approx(sum(end["accuracy"] for end in alone) / 2)
    assert both["accuracy_min"] == min(end["accuracy"] for end in alone)


@pytest.mark.parametrize("name", race_profiles.built_in())
def test_a_built_in_race_is_well_formed(name):
    entrants, training = race_profiles.load(name)
    assert len(entrants) >= 2
    assert training.repeats >= 3
    for each in entrants:
        digits._try(each, digits._data(), training)


def test_a_batch_that_a_network_does_not_admit_is_refused_before_anybody_is_trained():
    entrants = [entrant("torch.optim:SGD"), entrant("mabn:batch=8+torch.optim:SGD")]
    with pytest.raises(Refusal, match=r"mabn.*--batch 2"):
        digits.race(entrants, digits.Training(1000, 2), lambda *_: pytest.fail("somebody is trained"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entrants: [torch.optim:SGD]", "1:1: .*schema"),
        ("schema: stones.race-profile/1", "entrants"),
        ("schema: stones.race-profile/1\nentrants: []", "2:1: .*list"),
        ("schema: stones.race-profile/1\nentrants: [os:system]", "2:12: .*torch.optim"),
        ("schema: stones.race-profile/1\nentrants: ['./x.py:A:lr=1']", "torch.optim"),
        ("schema: stones.race-profile/1\nentrants: [torch.optim:SGD]\nbatch: x", "3:1: .*integer"),
        ("schema: stones.race-profile/1\nentrants: [torch.optim:SGD]\nbatch: 0", "batch=0"),
        ("schema: stones.race-profile/1\nentrants: [torch.optim:SGD]\nspeed: 1", "3:1: .*speed"),
        ("schema: stones.race-profile/1\nentrants: [7]", "7 is not an entrant"),
        ("- 1", "mapping"),
    ],
)
def test_a_bad_file_is_refused_where_it_is_bad(text, words, tmp_path):
    file = tmp_path / "race.yaml"
    file.write_text(text)
    with pytest.raises(Refusal, match=words):
        race_profiles.load(str(file))


def test_the_command_tells_and_draws(tmp_path):
    plot = tmp_path / "race.svg"
    found = invoke("race", ADAM, "torch.optim:SGD", "--problem", "rosenbrock", "--steps", 100, "--plot", plot)
    assert found.exit_code == 0
    assert "At the end" in found.stdout
    assert ET.parse(plot).getroot().tag.endswith("svg")
    first = plot.read_bytes()
    invoke("race", ADAM, "torch.optim:SGD", "--problem", "rosenbrock", "--steps", 100, "--plot", plot)
    assert plot.read_bytes() == first


def test_the_document_holds_every_point():
    found = invoke("race", ADAM, "--problem", "decay", "--steps", 1000, "--json")
    record = json.loads(found.stdout)
    assert record["schema"] == "stones.race/1"
    assert record["entrants"][0]["points"][-1]["step"] == 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ADAM, "--problem", "nosuch"), "nosuch"),
        (("--problem", "reddi"), "who races"),
        ((ADAM, "--problem", "reddi", "--batch", "4"), "--batch"),
        ((ADAM, "--problem", "reddi", "--plot", "x.pdf"), "x.pdf"),
        (("gn", "--problem", "reddi"), "only optimizers race"),
        (("gn",), "states no race"),
        (("--steps", "4"), "--steps needs --problem"),
        (("--profile", "nosuch"), "nosuch"),
        ((ADAM, "--profile", "mabn"), "for entrants named here"),
        ((ADAM, "--problem", "digits", "--batch", "5000"), "batch=5000"),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_2(arguments, words):
    found = invoke("race", *arguments)
    assert found.exit_code == 2
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) <= 2


def test_a_wrong_name_is_refused_without_torch():
    found = process("race", "adamm", "--problem", "reddi", PYTHONPROFILEIMPORTTIME="1")
    assert found.returncode == 2
    modules = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines() if line.startswith("import time")}
    assert "profiles.races.entrants" in modules
    assert "torch" not in modules


def test_ctrl_c_keeps_those_that_came_to_their_end(monkeypatch):
    def interrupted(fraction, label):
        if label == "torch.optim:SGD":
            raise KeyboardInterrupt

    record = race(PROBLEMS["impulse"], [entrant(ADAM), entrant("torch.optim:SGD")], progress=interrupted)
    assert ([each["entrant"] for each in record["entrants"]], record["interrupted"]) == ([ADAM], True)
    training = digits.Training(1, 512)
    record = digits.race([entrant("torch.optim:Adam"), entrant("torch.optim:SGD")], training, interrupted)
    assert ([each["entrant"] for each in record["entrants"]], record["interrupted"]) == ([ADAM], True)


@pytest.mark.parametrize("patience", [0, 1])
def test_an_interrupted_race_tells_what_it_has_and_says_so(monkeypatch, patience):
    from profiles.races import race as races

    calls, real = [], races.run

    def run_or_stop(*arguments):
        if len(calls) == patience:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(races, "run", run_or_stop)
    found = invoke("race", ADAM, "torch.optim:SGD", "--problem", "impulse")
    assert found.exit_code == 130
    assert "Interrupted" in found.stdout
    assert (ADAM in found.stdout) == bool(patience)
