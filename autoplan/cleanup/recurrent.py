"""Dropout inside recurrent networks becomes an op of its own, drawn by position as any other."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def separate_recurrent_dropout(graph: fx.Graph) -> None:
    """A recurrent op of several layers with dropout becomes an op a layer, dropout between them.

    The op drops elements of each layer's output but the last one's, in time-major order. Afterwards
    no recurrent op draws random numbers, and all say so by a dropout of zero.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _RECURRENT:
            continue
        layers, dropout, train = node.args[4:7]
        if dropout and train and layers > 1:
            _separate_layers(graph, node)
        else:
            node.args = (*node.args[:5], 0.0, *node.args[6:])


def _separate_layers(graph: fx.Graph, node: fx.Node) -> None:
    given: tuple[Any, ...] = node.args
    x, states, weights, biases, layers, dropout, train, two_ways, batch_first = given
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    directions = 2 if two_ways else 1
    per_layer = len(weights) // layers
    whole: tuple[torch.Tensor, ...] = node.meta["val"]

    def emit(target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta.update(node.meta)
        made.meta["val"] = value
        return made

    def turned(sequence: fx.Node) -> fx.Node:
        """Batch-major to time-major, or back."""
        if not batch_first:
            return sequence
        value = sequence.meta["val"].transpose(0, 1)
        return emit(aten.transpose.int, (sequence, 0, 1), value)

    with graph.inserting_before(node):
        x = turned(x)
        outputs = [whole[0].transpose(0, 1) if batch_first else whole[0]]
        outputs += [each[:directions] for each in whole[1:]]
        last_states: list[list[fx.Node]] = [[] for _ in states]
        for layer in range(layers):
            start, stop = layer * directions, (layer + 1) * directions
            first = [
                emit(aten.slice.Tensor, (each, 0, start, stop), each.meta["val"][start:stop])
                for each in states
            ]
            options = (biases, 1, 0.0, train, two_ways, False)
            of_layer = list(weights[layer * per_layer : (layer + 1) * per_layer])
            hidden = first if len(first) > 1 else first[0]
            step = emit(node.target, (x, hidden, of_layer, *options), tuple(outputs))
            x, *last = (emit(operator.getitem, (step, i), each) for i, each in enumerate(outputs))
            for held, state in zip(last_states, last, strict=True):
                held.append(state)
            if layer < layers - 1:
                x = emit(aten.dropout.default, (x, dropout, True), outputs[0])
        results = [turned(x)]
        for held, value in zip(last_states, whole[1:], strict=True):
            results.append(emit(aten.cat.default, (held, 0), value))
    for user in list(node.users):
        number: Any = user.args[1]
        user.replace_all_uses_with(results[number])
        graph.erase_node(user)
    graph.erase_node(node)
