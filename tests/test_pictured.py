"""The pictures on cards show what the running stones do."""

import pytest
from pictured import PICTURES

from layers.catalog import stone, stones


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_the_stone_shows(name):
    assert list(stone(name).card.picture) == PICTURES[name]()
    assert max(map(len, stone(name).card.picture)) <= 80


def test_every_picture_is_drawn_from_the_running_stone():
    assert {name for name, found in stones().items() if found.card.picture} == set(PICTURES)
