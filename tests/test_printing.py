"""How layers print, and what `help` says of them."""

from typing import NamedTuple

import pytest
import torch

from fundl import (
    Dropout,
    Report,
    apply,
    batch_norm,
    gru,
    initialize,
    key,
    linear,
    normal,
    residual,
    self_attention,
    tree,
    zeros,
)


def test_a_layer_of_layers_prints_as_a_tree_if_it_is_long() -> None:
    layer = residual(linear(16, 64), linear(64, 16), residual(linear(16, 64), linear(64, 16)))
    assert str(layer) == repr(layer)
    assert repr(layer).splitlines() == [
        "Residual(",
        "    layers=(",
        "        Linear(weight=float32[64, 16], bias=float32[64]),",
        "        Linear(weight=float32[16, 64], bias=float32[16]),",
        "        Residual(",
        "            layers=(",
        "                Linear(weight=float32[64, 16], bias=float32[64]),",
        "                Linear(weight=float32[16, 64], bias=float32[16]),",
        "            ),",
        "        ),",
        "    ),",
        ")",
    ]


def test_a_short_one_prints_in_a_line() -> None:
    assert repr(residual(linear(2, 2))) == "Residual(layers=(Linear(weight=float32[2, 2], bias=float32[2]),))"


def test_one_without_layers_prints_in_a_line_however_long() -> None:
    assert "\n" not in repr(self_attention(16, 2, weight_init=normal(0.1), bias_init=normal(0.1), output_bias_init=normal(0.1)))


def test_descriptions_and_notes_stay_one_line() -> None:
    layer = initialize(key(0), residual(gru(3, 3, bidirectional=True, depth=2), linear(6, 3)))
    assert "\n" not in tree.describe(layer)
    assert len(repr(layer).splitlines()) > 10
    with pytest.raises(ValueError, match="expects") as raised:
        apply(layer, torch.zeros(2, 5, 4))
    assert all("\n" not in note for note in raised.value.__notes__)


def test_named_tuples_are_described_by_name() -> None:
    class Batch(NamedTuple):
        x: torch.Tensor
        labels: torch.Tensor | None

    assert tree.describe(Batch(torch.zeros(2, 3), None)) == "Batch(x=float32[2, 3], labels=None)"
    assert tree.describe((Batch(torch.zeros(2, 3), None),)) == "(Batch(x=float32[2, 3], labels=None),)"


def test_initialisers_that_were_not_chosen_are_not_shown() -> None:
    assert "init" not in repr(self_attention(16, 2))
    assert "bias_init" not in repr(self_attention(16, 2, weight_init=normal(0.1)))
    assert repr(self_attention(16, 2, weight_init=normal(0.1))).endswith(", weight_init=Normal(std=0.1, mean=0.0))")
    assert repr(linear(2, 3, bias_init=zeros())).endswith(", bias_init=Constant(value=0.0))")


def test_tensors_that_were_not_given_are_not_shown() -> None:
    assert repr(Dropout(0.5)) == "Dropout(rate=0.5)"
    assert repr(Dropout(0.5, key(0))) == "Dropout(rate=0.5, key=int64[2])"
    assert repr(batch_norm(2)) == "BatchNorm(weight=float32[2], bias=float32[2])"
    assert repr(linear(2, 3, bias=False)) == "Linear(weight=float32[3, 2], bias=None)"  # which has no default
    assert repr(Report(torch.tensor(0.5), torch.zeros(3, 1))) == "Report(loss=float32[], prediction=float32[3, 1])"
    assert repr(Report(torch.tensor(0.5), None, torch.tensor(3))) == "Report(loss=float32[], prediction=None, weight=int64[])"
