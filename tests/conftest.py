"""What all tests share: one thread, because they compare numbers bit by bit and the machine is shared; no plug-ins."""

import os
import sys

import pytest
import torch

os.environ["STONES_NO_PLUGINS"] = "1"  # what else is installed is none of these tests' business

torch.set_num_threads(1)


@pytest.fixture
def nothing_built(monkeypatch):
    """Forget the layers that the harness built, before and after: a mutant has the name of the true stone."""
    import harness  # reads every card, which not every test should depend on

    monkeypatch.setattr(harness, "_built", {})


@pytest.fixture
def site(tmp_path):
    """A folder to install plug-ins into."""
    return tmp_path / "site"


@pytest.fixture
def see(monkeypatch):
    """What lets this process see the plug-ins in a folder; afterwards they are forgotten."""
    from plugged import forget, seen

    modules = set(sys.modules)
    yield lambda *sites: seen(monkeypatch, *sites)
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("stones_example", "other"):
            del sys.modules[name]
    monkeypatch.undo()
    forget()
