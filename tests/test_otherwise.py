"""What the page of performance puts beside a stone gives the same outputs and gradients, where it says so."""

from __future__ import annotations

import otherwise
import otherwise_norms
import performance
import performance_cases
import pytest
import torch

from layers import catalog
from profiles.subject import Setup, subject
from profiles.target import resolve

SAME = sorted(performance_cases.SAME)


def ours_and_theirs(name):
    stone = catalog.stone(name)
    shape = (8, 6, 3, 3) if stone.card.works_on_weights else (4, 64, 12, 8)
    setup = Setup(shape=shape, dtype="float64")
    ours = subject(stone, performance_cases.options_of(stone), setup).build()
    if stone.card.role == "layer":
        ours(torch.randn(setup.shape, dtype=torch.float64))  # what happens once happens here
    theirs = subject(resolve(performance_cases.SAME[name]), {}, setup).build()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, setup


@pytest.mark.parametrize("name", [name for name in SAME if catalog.stone(name).card.role != "initializer"])
def test_it_computes_what_the_stone_computes(name):
    ours, theirs, setup = ours_and_theirs(name)
    x = torch.randn(setup.shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in SAME if catalog.stone(n).card.role in ("layer", "penalty")])
def test_it_has_the_gradients_of_the_stone(name):
    ours, theirs, setup = ours_and_theirs(name)
    x = torch.randn(setup.shape, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (ours, theirs):
        y = module(x)
        inputs = {"x": x, **dict(module.named_parameters())}
        found.append(dict(zip(inputs, torch.autograd.grad((y * y.detach().cos()).sum(), inputs.values()), strict=True)))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(
            found[1][key], value, rtol=1e-7, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", [name for name in SAME if catalog.stone(name).card.role == "initializer"])
def test_it_draws_what_the_stone_draws(name):
    stone, theirs = catalog.stone(name), resolve(performance_cases.SAME[name]).factory
    drawn = []
    for fill in (stone.load(), theirs):
        torch.manual_seed(0)
        drawn.append(fill(torch.empty(16, 6, 3, 3, dtype=torch.float64)))
    torch.testing.assert_close(*drawn)


def test_all_that_is_written_here_stands_beside_some_stone():
    written = {
        f"{module.__name__}:{name}"
        for module in (otherwise, otherwise_norms)
        for name, made in vars(module).items()
        if getattr(made, "__module__", "") == module.__name__ and not name.islower()
    }
    helpers = {"otherwise:ConvNorm", "otherwise_norms:Batch", "otherwise_norms:Convolution"}
    assert written <= set(performance_cases.SAME.values()) | helpers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["splt"], "no stone is called 'splt'"),
        (["gn", "bn-only"], "bn-only transforms a model"),
        (["gn", "--seconds", "nan"], "--seconds nan: a positive number"),
        (["--page"], "no results of a former run"),
        (["gn", "--merge"], "no results of a former run"),
    ],
)
def test_what_the_page_of_performance_cannot_have_is_said_before_anything_runs(
    arguments, said, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(performance, "RESULTS", tmp_path / "performance.json")
    monkeypatch.setattr("sys.argv", ["performance.py", *arguments])
    with pytest.raises(SystemExit) as refused:
        performance.main()
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_a_measurement_of_performance_that_is_interrupted_ends_with_status_130(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(performance, "RESULTS", tmp_path / "performance.json")
    monkeypatch.setattr("sys.argv", ["performance.py", "gn"])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(performance, "measured", interrupted)
    assert performance.main() == 130
    assert "interrupted" in capsys.readouterr().err
