"""What all tests share: one thread, because they compare numbers bit by bit and the machine is shared."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def nothing_built(monkeypatch):
    """Forget the layers that the harness built, before and after: a mutant has the name of the true stone."""
    import harness  # reads every card, which not every test should depend on

    monkeypatch.setattr(harness, "_built", {})
