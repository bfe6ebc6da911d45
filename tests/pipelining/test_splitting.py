"""Splitting: stages run one after the other are the model."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autoplan.capture import Captured, capture
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.pipelining.splitting import crossing_values, split
from tests.end_to_end.piping import example_of, model_of

MODELS = ("gpt2", "bert", "t5", "resnet")


@cache
def captured(name: str) -> Captured:
    return capture(model_of(name).eval(), *example_of(name))


@cache
def pieces(name: str) -> Pieces:
    return pieces_of(captured(name))


@st.composite
def cuts(draw: Any) -> tuple[str, tuple[int, ...]]:
    """A model, and a stage for each of its pieces."""
    name = draw(st.sampled_from(MODELS))
    count = len(pieces(name))
    starts = draw(st.sets(st.integers(1, count - 1), min_size=1, max_size=4))
    return name, tuple(sum(at >= start for start in starts) for at in range(count))


def run(stage: Captured, name: str, received: dict[str, Any]) -> dict[str, Any]:
    """Values of every node of a stage."""
    model = model_of(name)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    leaves = pytree.tree_leaves(example_of(name))
    given = {each.node: each for each in stage.inputs}
    values: dict[str, Any] = {}
    for node in stage.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            each = given[node.name]
            if each.kind == "received":
                values[node.name] = received[node.name]
            elif each.kind == "input":
                values[node.name] = leaves[each.position]
            else:
                values[node.name] = tensors.get(each.path, stage.constants.get(each.path))
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n.name])
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
            if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
                values[node.name] = args[0].reshape(args[1])
            else:
                values[node.name] = node.target(*args, **kwargs)
    return values


@given(cuts())
@settings(max_examples=25, deadline=None)
def test_stages_in_a_row_compute_what_the_model_does(cut: tuple[str, tuple[int, ...]]) -> None:
    name, stage_of = cut
    whole = captured(name)
    parts = split(whole, pieces(name), stage_of)
    truth = run(whole, name, {})
    found: list[Any] = [None] * len(whole.output_nodes)
    updated: dict[str, Tensor] = {}
    received: dict[str, Any] = {}
    for number, stage in enumerate(parts.stages):
        assert [e.node for e in stage.inputs_of("received")] == list(received)
        values = run(stage, name, received)
        received = {each: values[each] for each in stage.sent}
        for position, owner in enumerate(parts.owners):
            node = stage.output_nodes[position]
            if owner == number and isinstance(node, fx.Node):
                found[position] = values[node.name]
            elif owner != number:
                assert node is None
        updated |= {path: values[node.name] for path, node in stage.updated_buffers.items()}
    assert not received
    for node, value in zip(whole.output_nodes, found, strict=True):
        assert torch.equal(value, truth[node.name])
    assert updated.keys() == whole.updated_buffers.keys()
    for path, node in whole.updated_buffers.items():
        assert torch.equal(updated[path], truth[node.name])


@given(cuts())
@settings(max_examples=25, deadline=None)
def test_every_op_runs_in_its_stage_alone_and_only_tensors_travel(
    cut: tuple[str, tuple[int, ...]],
) -> None:
    name, stage_of = cut
    parts = split(captured(name), pieces(name), stage_of)
    homes: dict[str, list[int]] = {}
    for number, stage in enumerate(parts.stages):
        for node in stage.graph.nodes:
            if node.op == "call_function":
                homes.setdefault(node.name, []).append(number)
        for each in stage.inputs_of("received"):
            assert isinstance(
                next(n for n in stage.graph.nodes if n.name == each.node).meta["val"], Tensor
            )
    for node, piece in pieces(name).of.items():
        assert homes[node] == [stage_of[piece]]
    last = parts.stages[-1]
    position = captured(name).loss_position
    assert position is not None
    assert isinstance(last.output_nodes[position], fx.Node)
    assert all(each.loss_elsewhere for each in parts.stages[:-1])


@given(cuts())
@settings(max_examples=25, deadline=None)
def test_what_crosses_a_cut_is_what_a_stage_sends(cut: tuple[str, tuple[int, ...]]) -> None:
    name, stage_of = cut
    crossing = crossing_values(captured(name), pieces(name))
    parts = split(captured(name), pieces(name), stage_of)
    for number, stage in enumerate(parts.stages[:-1]):
        begins = stage_of.index(number + 1)
        assert {node.name for node in crossing[begins]} == set(stage.sent)


@pytest.mark.parametrize(
    ("name", "path"), [("gpt2", "transformer.wte.weight"), ("t5", "shared.weight")]
)
def test_a_tied_parameter_is_read_by_several_stages(name: str, path: str) -> None:
    count = len(pieces(name))
    parts = split(captured(name), pieces(name), [2 * at // count for at in range(count)])
    assert parts.shared[path] == (0, 1)


def test_getitems_stay_with_what_they_take_apart() -> None:
    for name in MODELS:
        of = pieces(name).of
        for node in captured(name).graph.nodes:
            if node.target is operator.getitem and node.name in of:
                assert of[node.name] == of[node.args[0].name]
