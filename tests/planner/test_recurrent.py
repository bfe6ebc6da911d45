"""Recurrent networks: dropout between their layers becomes an op, and is drawn by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoplan
from autoplan.capture import capture
from tests.planner.models import captured_and_equal, ops


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.recurrent = getattr(nn, kind)(6, 4, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.recurrent(x)
        return (y, *(state if isinstance(state, tuple) else (state,)))


_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two ways": ("LSTM", {"num_layers": 2, "bidirectional": True, "dropout": 0.1}),
    "projected": (
        "LSTM",
        {"num_layers": 3, "proj_size": 3, "dropout": 0.5, "bidirectional": True, "bias": False},
    ),
    "batch first": ("GRU", {"num_layers": 2, "batch_first": True, "dropout": 0.3}),
    "simple": ("RNN", {"num_layers": 2, "nonlinearity": "relu", "dropout": 0.3}),
}

_NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu", "dropout")


def _model(name: str) -> Recurrent:
    kind, options = _CASES[name]
    torch.manual_seed(0)
    return Recurrent(kind, **options)


@pytest.mark.parametrize("name", _CASES)
def test_dropout_of_a_recurrent_network_is_that_of_the_original(name: str) -> None:
    model, x = _model(name), torch.randn(5, 3, 6)
    check = autoplan.parallelize(model, (x,), devices=2).verify((x,))
    assert check.ok, check


@pytest.mark.parametrize("name", _CASES)
def test_a_layer_is_an_op_where_dropout_is_between_layers(name: str) -> None:
    model, x = _model(name), torch.randn(5, 3, 6)
    layers = model.recurrent.num_layers
    captured = capture(model, (x,))
    found = [op for op in ops(captured) if op in _NAMES]
    assert found == [found[0], *["dropout", found[0]] * (layers - 1)]
    made = [node for node in captured.graph.nodes if node.op == "call_function"]
    assert {node.meta["path"] for node in made} == {"recurrent"}
    assert all(node.meta["source"] for node in made)


@pytest.mark.parametrize("name", _CASES)
def test_without_dropout_a_recurrent_network_stays_one_op(name: str) -> None:
    model, x = _model(name).eval(), torch.randn(5, 3, 6)
    captured = captured_and_equal(model, x)
    assert sum(op in _NAMES for op in ops(captured)) == 1
    assert "dropout" not in ops(captured)
