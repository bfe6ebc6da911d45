"""Hints shared out to the stages of a pipeline: read on the whole model, applied where they fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.annotate import annotate
from autoplan.capture import Captured, capture
from autoplan.errors import HintError
from autoplan.hints import Hint
from autoplan.hints.by_stage import hints_by_stage
from autoplan.hints.narrowing import nodes_pinned
from autoplan.mesh import Mesh
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.splitting import split
from autoplan.registry import rules_in_force
from autoplan.request import make_request
from autoplan.search import hints_on, user_hints

MESH: dict[str, Any] = {"pipeline": 2, "mesh": {"a": 2}}


class Body(nn.Module):
    """Four blocks, each followed by a tanh of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class Model(nn.Module):
    """An embedding tied to the head, a container of blocks, and a skip from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.body = Body()
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        first = self.embed(ids)
        return F.cross_entropy(self.head(self.body(first) + first).flatten(0, 1), labels.flatten())


@pytest.fixture(scope="module")
def model() -> Captured:
    ids = torch.zeros(4, 6, dtype=torch.long)
    return capture(Model(), (ids, ids))


def stages_of(captured: Captured) -> tuple[Captured, ...]:
    """Two stages, the second beginning at block 2."""
    pieces = pieces_of(captured)
    cut = pieces.names.index("body.blocks.2")
    return split(captured, pieces, [int(i >= cut) for i in range(len(pieces))]).stages


def shared_out(captured: Captured, hints: Mapping[str, Any]) -> list[list[Hint]]:
    request = make_request(4, "cpu", MESH, hints=hints)
    found = user_hints(captured, request, request.meshes[0])
    return [list(each) for each in hints_by_stage(captured, found, stages_of(captured))]


@pytest.mark.parametrize(
    ("hints", "first", "second"),
    [
        ({"body.blocks.0.weight": "S(0)"}, ["body.blocks.0.weight"], []),
        ({"body.blocks.3.weight": "use: B"}, [], ["body.blocks.3.weight"]),
        ({"body.blocks.*.weight": "S(0)"},
         ["body.blocks.0.weight", "body.blocks.1.weight"],
         ["body.blocks.2.weight", "body.blocks.3.weight"]),
        ({"head.weight": "S(1)"}, ["embed.weight"], ["embed.weight"]),  # tied: in both
        ({"ids": "B"}, ["ids"], []),
        ({"labels": "B"}, [], ["labels"]),
        ({"body.blocks.0": "S(0)"}, ["body.blocks.0"], []),
        ({"embed": "S(0)"}, ["embed"], ["embed"]),  # its value skips to the second stage
        ({"body.blocks.1": "op: o"}, ["body.blocks.1"], []),
        ({"output": "B"}, [], ["output"]),
        ({"embed": "stage: 0"}, [], []),
    ],
    ids=str,
)  # fmt: skip
def test_hints_go_where_what_they_name_is(
    model: Captured, hints: Any, first: list[str], second: list[str]
) -> None:
    found = shared_out(model, hints)
    assert [[hint.pattern for hint in each] for each in found] == [first, second]


def test_what_leaves_a_module_is_seen_in_the_whole_model(model: Captured) -> None:
    """What the first stage sends on from within `body` is no result of it."""
    hints = {"body": "S(0)"}
    none, (hint,) = shared_out(model, hints)
    assert none == []
    assert [hint.node] == [node.name for node, _ in nodes_pinned(model, [hint])]
    first, _ = stages_of(model)
    alone = [node.name for node, _ in nodes_pinned(first, [Hint("body", "value", {}, "body")])]
    assert alone, "the stage by itself takes what it sends for a result of `body`"
    assert hint.node not in alone


def test_every_stage_is_annotated_under_its_own_hints(model: Captured) -> None:
    """Two weights in each stage lose candidates, and nothing else of the first stage does."""
    hints = {"body.blocks.*.weight": "S(0)", "body": "S(0)", "embed.weight": "S(1) | S(0) | B"}
    request = make_request(4, "cpu", MESH, hints=hints)
    found = hints_on(model, request, request.meshes[0])
    stages = stages_of(model)
    narrowed = []
    for stage, own in zip(stages, hints_by_stage(model, found, stages), strict=True):
        bound = annotate(stage, Mesh.of(a=2), rules_in_force(), own).sites
        count = {site.name: len(site.candidates) for site in bound}
        free = annotate(stage, Mesh.of(a=2), rules_in_force()).sites
        fewer = [site for site in free if count.get(site.name, 0) < len(site.candidates)]
        narrowed.append([site.path for site in fewer if site.kind == "parameter"])
    assert narrowed == [[f"body.blocks.{i}.weight" for i in pair] for pair in ((0, 1), (2, 3))]


def test_an_index_may_be_in_another_stage(model: Captured) -> None:
    """`v` is an index of the embedding; the ops of the second stage's blocks have none."""
    _, second = stages_of(model)
    for hints in ({"embed": "op: v"}, {"[eb]*": "op: v"}, {"body.blocks.*": "op: v"}):
        own = shared_out(model, hints)[1]
        assert all(hint.elsewhere for hint in own)
        annotate(second, Mesh.of(a=2), rules_in_force(), own)


def test_an_index_that_is_nowhere_is_refused(model: Captured) -> None:
    """All that the hint names is in one stage."""
    _, second = stages_of(model)
    (hint,) = shared_out(model, {"body.blocks.3": "op: v"})[1]
    assert not hint.elsewhere
    with pytest.raises(HintError, match="names an index that no op there"):
        annotate(second, Mesh.of(a=2), rules_in_force(), [hint])


def test_a_hint_on_nothing_is_refused_once_for_all_stages(model: Captured) -> None:
    hint = Hint("labels.nowhere", "value", {}, "'labels.nowhere': 'S(0)'")
    with pytest.raises(HintError, match=r"'labels\.nowhere': 'S\(0\)' names modules, none of"):
        hints_by_stage(model, [hint], stages_of(model))


def test_globs_of_schemes_go_everywhere(model: Captured) -> None:
    parallel = {"pipeline": 2, "tensor": {"size": 2, "mode": "1d"}}
    request = make_request(4, "cpu", parallel)
    found = hints_on(model, request, request.meshes[0])
    globs = [hint for hint in found if hint.pattern == "*"]
    assert globs
    for own in hints_by_stage(model, found, stages_of(model)):
        assert [hint.pattern for hint in own if hint.pattern == "*"] == ["*"] * len(globs)
