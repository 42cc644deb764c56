"""What `stones draw` probes, in a test."""

from __future__ import annotations

from profiles.pictures.probe import drawing, probe
from profiles.target import resolve


def probed(name, shape=None, **options):
    """The record of a technique's picture."""
    train = options.pop("train", None)
    return probe(drawing(resolve(name), options, shape, train=train))


def panels(name, shape=None, **options):
    """Its panels, by what they are of."""
    return {panel["target"]: panel for panel in probed(name, shape, **options)["panels"]}
