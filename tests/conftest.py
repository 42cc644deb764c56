"""What all tests share: one thread, because they compare numbers bit by bit and the machine is shared; no plug-ins; a
cache of their own, with ceilings of this machine that were measured in no time.
"""

import os
import sys

import pytest
import torch

os.environ["STONES_NO_PLUGINS"] = "1"  # what else is installed is none of these tests' business

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what tests remember out of the home of whoever runs them, in processes that they start too."""
    from profiles.speed import ceilings_measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STONES_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(ceilings_measured, "LADDER", (2**15, 2**19, 2**23))
        patch.setattr(ceilings_measured, "SIDES", (64, 128))
        patch.setattr(ceilings_measured, "SECONDS", 0.05)
        yield


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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that is empty: the file of ceilings in it."""
    monkeypatch.setenv("STONES_CACHE", str(tmp_path / "own" / "stones"))
    return tmp_path / "own" / "stones" / "ceilings.json"


@pytest.fixture
def profile(tmp_path):
    """What writes a profile for `stones run`, under its schema, and returns its path."""
    from profiles.run_profiles import SCHEMA

    def written(text):
        path = tmp_path / "p.yaml"
        path.write_text(f"schema: {SCHEMA}\n{text}")
        return path

    return written


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """What `stones bench` saves: two stones, forward + backward, with a gate."""
    from command_line import invoke

    from stones_cli.status import Status

    file = tmp_path_factory.mktemp("bench") / "bench.json"
    quick = ("-i", "4x12x6x6", "--rounds", "5", "--budget", "0.01", "--max-ratio", "1000")
    assert invoke("bench", "in", "bn", "--both", *quick, "-o", file).exit_code == Status.DONE
    return file
