"""Pieces: blocks and stray parts are read off the graph, each op in one of them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from autoplan.capture import Captured, capture
from autoplan.pipelining.pieces import Pieces, Roles, pieces_of
from tests.end_to_end.piping import example_of, model_of

MODELS = ("gpt2", "bert", "t5", "resnet")


@cache
def captured(name: str) -> Captured:
    return capture(model_of(name), *example_of(name))


def names(name: str) -> tuple[str, ...]:
    return pieces_of(captured(name)).names


def test_a_decoder_is_its_layers_between_stray_parts() -> None:
    assert names("gpt2") == (
        "transformer.wte",
        "transformer/add",
        *(f"transformer.h.{layer}" for layer in range(4)),
        "transformer.ln_f",
        "lm_head",
    )


def test_embeddings_and_heads_are_whole() -> None:
    layers = [f"bert.encoder.layer.{layer}" for layer in range(6)]
    assert names("bert") == ("bert.embeddings", *layers, "cls")


def test_blocks_inside_a_block_are_blocks_where_as_little_crosses_between_them() -> None:
    found = pieces_of(captured("t5"))
    blocks = [n for n, block in zip(found.names, found.blocks, strict=True) if block]
    assert blocks[:2] == ["encoder.block.0.layer.0", "encoder.block.0.layer.1"]
    assert found.outer_blocks == (
        "encoder.block.0",
        "encoder.block.1",
        "decoder.block.0",
        "decoder.block.1",
    )


def test_residual_blocks_stay_whole_and_statistics_stay_with_their_layer() -> None:
    assert [n for n in names("resnet") if "stages" in n] == [
        f"resnet.encoder.stages.{stage}.layers.{layer}" for stage in range(2) for layer in range(3)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_op_is_in_one_piece_or_copied(name: str) -> None:
    graph, pieces = captured(name).graph, pieces_of(captured(name))
    roles = Roles.of(captured(name))
    calls = {node.name for node in graph.nodes if node.op == "call_function"}
    assert roles.body | roles.copied == calls
    assert not roles.body & roles.copied
    assert pieces.of.keys() == roles.body
    assert sorted(set(pieces.of.values())) == list(range(len(pieces)))


@pytest.mark.parametrize("name", MODELS)
def test_no_op_reads_a_later_piece(name: str) -> None:
    pieces = pieces_of(captured(name))
    for node in captured(name).graph.nodes:
        for source in node.all_input_nodes if node.name in pieces.of else ():
            if source.name in pieces.of:
                assert pieces.of[source.name] <= pieces.of[node.name]


def test_what_depends_on_arguments_alone_is_copied_and_what_a_gradient_needs_is_not() -> None:
    roles = Roles.of(captured("bert"))
    for node in captured("bert").graph.nodes:
        if node.name in roles.copied and node.meta["requires_grad"]:
            assert all(
                source.name in roles.copied or source.op == "placeholder"
                for source in node.all_input_nodes
            )


class Counting(nn.Module):
    """Two layers that count their calls in one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x) * (1 + self.calls)
        self.calls += x.detach().mean()
        x = self.layers[1](x) * (1 + self.calls)
        return self.layers[2](x).square().mean()


def test_a_buffer_that_changes_is_in_one_piece() -> None:
    found = capture(Counting(), (torch.zeros(2, 4),))
    pieces: Pieces = pieces_of(found)
    buffer = next(each.node for each in found.inputs if each.path == "calls")
    users = next(n for n in found.graph.nodes if n.name == buffer).users
    assert len({pieces.of[user.name] for user in users if user.name in pieces.of}) == 1
    assert len(pieces) > 1


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_of_pieces_are_those_of_the_model(name: str) -> None:
    pieces = pieces_of(captured(name))
    read = {path for each in pieces.parameters for path in each}
    assert read == {each.path for each in captured(name).inputs_of("parameter")}


@pytest.mark.parametrize("name", MODELS)
def test_every_piece_has_parameters(name: str) -> None:
    assert all(pieces_of(captured(name)).parameters)
