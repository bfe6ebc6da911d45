"""Examples of recurrent networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.strategies.examples.base import add, constant, real

aten = torch.ops.aten

_WIDTH, _HIDDEN = 3, 2


def _weights(
    gates: int, layers: int = 1, directions: int = 1, projection: int = 0, biases: bool = True
) -> list[Tensor]:
    """As `nn.LSTM` orders them: per layer and direction W_ih, W_hh, b_ih, b_hh, W_hr."""
    rows, out = gates * _HIDDEN, projection or _HIDDEN
    result = []
    for layer in range(layers):
        width = _WIDTH if layer == 0 else out * directions
        for _ in range(directions):
            result += [real(rows, width), real(rows, out)]
            result += [real(rows), real(rows)] if biases else []
            result += [real(out, _HIDDEN)] if projection else []
    return result


def _run(op: Any, states: int, *options: Any) -> Any:
    """The op on a sequence, its states, and its weights."""

    def fn(x: Any, *given: Any) -> Any:
        hidden = list(given[:states])
        return op(x, hidden if op is aten.lstm.input else hidden[0], list(given[states:]), *options)

    return fn


add(
    "lstm.input",
    one_layer=(
        _run(aten.lstm.input, 2, True, 1, 0.0, True, False, False),
        real(4, 5, _WIDTH),
        real(1, 5, _HIDDEN),
        real(1, 5, _HIDDEN),
        *_weights(4),
    ),
    two_ways=(
        _run(aten.lstm.input, 2, True, 2, 0.0, True, True, True),
        real(7, 3, _WIDTH),
        constant(torch.zeros(4, 7, _HIDDEN, dtype=torch.float64)),
        constant(torch.zeros(4, 7, _HIDDEN, dtype=torch.float64)),
        *_weights(4, 2, 2),
    ),
    projected=(
        _run(aten.lstm.input, 2, False, 2, 0.3, False, False, False),
        real(3, 6, _WIDTH),
        real(2, 6, 1),
        real(2, 6, _HIDDEN),
        *_weights(4, 2, 1, projection=1, biases=False),
    ),
)
for _op, _gates in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
    _call = getattr(aten, _op).input
    add(
        f"{_op}.input",
        one_layer=(
            _run(_call, 1, True, 1, 0.0, True, False, True),
            real(5, 4, _WIDTH),
            real(1, 5, _HIDDEN),
            *_weights(_gates),
        ),
        two_ways=(
            _run(_call, 1, False, 2, 0.0, True, True, False),
            real(3, 7, _WIDTH),
            real(4, 7, _HIDDEN),
            *_weights(_gates, 2, 2, biases=False),
        ),
    )
for _op, _gates in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
    add(
        f"{_op}_cell.default",
        biases=(
            getattr(aten, f"{_op}_cell").default,
            real(5, _WIDTH),
            real(5, _HIDDEN),
            *_weights(_gates),
        ),
        plain=(
            getattr(aten, f"{_op}_cell").default,
            real(7, _WIDTH),
            real(7, _HIDDEN),
            *_weights(_gates, biases=False),
        ),
    )
add(
    "lstm_cell.default",
    biases=(
        lambda x, h, c, *weights: aten.lstm_cell.default(x, [h, c], *weights),
        real(5, _WIDTH),
        real(5, _HIDDEN),
        real(5, _HIDDEN),
        *_weights(4),
    ),
)
