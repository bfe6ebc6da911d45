"""Recurrent networks: split over the batch, whole in time and in width."""

from __future__ import annotations

import math
from dataclasses import replace

from autoplan.strategies.local import LocalContext
from autoplan.strategies.notation import Bound
from autoplan.strategies.rule import OpCall, OpMemory, Rule


def _is_cell(call: OpCall) -> bool:
    """A cell takes one step; the others take all steps of all layers."""
    return "_cell." in call.op


def _num_states(call: OpCall) -> int:
    """Hidden states that go in and come out: an LSTM has its cell state too."""
    return 2 if "lstm" in call.op else 1


def _over_batch(call: OpCall) -> Bound:
    """Sequences are `[t] n [i]` or `n [t] [i]`, states `[layer] n [h]`, weights are whole.

    Of a cell, both are `n [i]`.
    """
    states = _num_states(call)
    batch_first = _is_cell(call) or call.argument(8, "batch_first")
    rows = call.input_shapes[0][0 if batch_first else 1]
    n = "n" if rows > 1 else None
    state = (n, None) if _is_cell(call) else (None, n, None)
    sequence = (n, *[None] * (len(state) - 1)) if batch_first else state
    outputs = [state] * states if _is_cell(call) else [sequence, *[state] * states]
    weights = [(None,) * len(shape) for shape in call.input_shapes[1 + states :]]
    return Bound((sequence, *[state] * states, *weights), tuple(outputs), {"n": rows})


def _flops(call: OpCall) -> float:
    """Every step of every row meets every weight matrix once."""
    weights = call.input_shapes[1 + _num_states(call) :]
    steps_and_rows = math.prod(call.input_shapes[0][:-1])
    return 2.0 * steps_and_rows * sum(math.prod(each) for each in weights if len(each) == 2)


_KEPT_STATES = {"lstm": 17, "gru": 7, "rnn": 1}
"""Tensors as large as the hidden states of all layers and steps that are kept on CPU."""


def _memory(call: OpCall, context: LocalContext, plain: OpMemory) -> OpMemory:
    """What is kept of every step of every layer, in the hidden states' size; measured on CPU."""
    name = call.op.removeprefix("aten.").split("_")[0].split(".")[0]
    steps = 1
    if not _is_cell(call):
        batch_first = call.argument(8, "batch_first")
        steps = call.input_shapes[0][1 if batch_first else 0]
    states = context.input_meta(1).num_bytes  # of one step: [layers x directions] n [h]
    return replace(plain, kept=_KEPT_STATES[name] * steps * states)


_RECURRENT = Rule(_over_batch, kind="matmul", saves=(0, "output"), memory=_memory, flops=_flops)

RULES: dict[str, Rule] = {
    "aten.lstm.input": _RECURRENT,
    "aten.gru.input": _RECURRENT,
    "aten.rnn_tanh.input": _RECURRENT,
    "aten.rnn_relu.input": _RECURRENT,
    "aten.lstm_cell.default": _RECURRENT,
    "aten.gru_cell.default": _RECURRENT,
    "aten.rnn_tanh_cell.default": _RECURRENT,
    "aten.rnn_relu_cell.default": _RECURRENT,
}
