"""`inspect` of a transformation: what it touches in a model, without touching the model."""

from __future__ import annotations

import pytest
import torch

from layers import catalog
from profiles import transforms
from profiles.errors import Refusal
from profiles.subject import Setup, subject
from profiles.target import resolve


def inspected(name, options=None, model=None):
    return transforms.inspect(subject(catalog.stone(name), options or {}, Setup()), model and resolve(model))


def test_bn_only_trains_the_papers_numbers():
    params = inspected("bn-only")["params"]
    assert (params["total"], params["trainable"], params["trainable_before"]) == (175258, 14 * 16 * 5, 175258)
    assert {row["module"] for row in params["tensors"] if row["trainable"]} == {"BatchNorm"}
    assert params["set"] == 7 * 16 * 5  # every γ is drawn anew, every β was 0 already


def test_train_output_adds_the_classifier():
    assert inspected("bn-only", {"train_output": True})["params"]["trainable"] == 14 * 16 * 5 + 650


def test_affine_decay_reaches_gamma_and_beta():
    record = inspected("bn-affine-decay")
    assert record["params"]["penalized"] == 14 * 16 * 5
    assert record["params"]["trainable"] == record["params"]["trainable_before"] == 175258
    assert record["penalty"] == 0.0  # γ = 1 and β = 0 at the start
    assert inspected("bn-affine-decay", {"apply_to": "gamma"})["params"]["penalized"] == 7 * 16 * 5


def test_models_that_are_refused():
    state = torch.random.get_rng_state()
    with pytest.raises(Refusal, match="made a Fraction"):
        inspected("bn-only", model="fractions:Fraction")
    with pytest.raises(Refusal, match="cannot be read"):
        inspected("bn-only", model="builtins:dict")
    with pytest.raises(Refusal, match="cannot be built without arguments"):
        inspected("bn-only", model="torch.nn:Linear")
    with pytest.raises(Refusal, match="no batch normalization"):
        inspected("bn-only", model="torch.nn:ReLU")
    assert torch.equal(state, torch.random.get_rng_state())
