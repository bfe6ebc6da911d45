"""Stage hints and stage maps: which pieces they bind, and what they say of those that clash."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import autoplan
from autoplan.capture import Captured, capture
from autoplan.errors import HintError
from autoplan.hints import Hint
from autoplan.hints.inside import hints_in_forward
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.pipelining.stage_hints import allowed_stages, stage_map_text, stages_by_piece
from autoplan.request import make_request
from autoplan.search import user_hints
from tests.models import gpt2, language_batch

Allowed = list[list[int]]
"""Of each piece, the stages on which it may be."""


@pytest.fixture(scope="module")
def transformer() -> Captured:
    args, kwargs = language_batch()
    return capture(gpt2(n_layer=4), args, kwargs)


class Chain(nn.Module):
    """A gate of an argument alone, an embedding, blocks, a free parameter, and a head."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.gate = nn.Sigmoid()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
            for _ in range(blocks)
        )
        self.shift = nn.Parameter(torch.zeros(4))
        self.unread = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        keep = self.gate(y)
        x = self.embed(x) * keep
        for block in self.blocks:
            x = x + block(x)
        out = self.head(x + self.shift)
        return F.mse_loss(out, out.detach() * 0.5)


@pytest.fixture(scope="module")
def chain() -> Captured:
    return capture(Chain(), (torch.zeros(3, 4), torch.zeros(3, 4)))


def read(
    captured: Captured,
    hints: Mapping[str, Any],
    size: int = 2,
    stage_map: Sequence[int] | None = None,
) -> tuple[Pieces, Allowed, tuple[tuple[str, ...], ...]]:
    """What hints, as users write them, leave of `size` stages."""
    pipeline = {"size": size, "stage_map": stage_map}
    request = make_request(2 * size, "cpu", {"pipeline": pipeline}, hints=hints)
    assert request.pipeline is not None
    found = user_hints(captured, request, request.meshes[0])
    pieces = pieces_of(captured)
    allowed, origins = allowed_stages(pieces, captured, found, request.pipeline.stage_map, size)
    assert allowed.shape == (len(pieces), size)
    assert allowed.dtype == np.bool_
    return pieces, [np.flatnonzero(row).tolist() for row in allowed], origins


def bound(captured: Captured, hints: Mapping[str, Any], size: int = 2) -> dict[str, int]:
    """The stages of the pieces that hints bind, by name."""
    pieces, allowed, origins = read(captured, hints, size)
    assert all(bool(said) == (len(on) == 1) for said, on in zip(origins, allowed, strict=True))
    named = zip(pieces.names, allowed, strict=True)
    return {name: on[0] for name, on in named if len(on) == 1}


# -- what a hint binds ------------------------------------------------------------------------


def test_without_hints_every_piece_may_be_anywhere(transformer: Captured) -> None:
    pieces, allowed, origins = read(transformer, {}, 3)
    assert allowed == [[0, 1, 2]] * len(pieces)
    assert origins == ((),) * len(pieces)


@pytest.mark.parametrize(
    ("hints", "size", "expected"),
    [
        ({"lm_head": {"stage": -1}}, 2, {"lm_head": 1}),
        ({"lm_head": "stage: -1"}, 4, {"lm_head": 3}),
        ({"lm_head": {"stage": "2"}}, 3, {"lm_head": 2}),
        ({"transformer.wpe.weight": "stage: 0"}, 2, {"transformer/add": 0}),
        ({"transformer.wpe": "stage: 0"}, 2, {"transformer/add": 0}),
        ({"transformer.h.2": "stage:1"}, 2, {"transformer.h.2": 1}),
        ({"transformer.h.2.mlp.c_fc": "stage:1"}, 2, {"transformer.h.2": 1}),
        ({"transformer.h.2.mlp.c_fc.weight": "stage:1"}, 2, {"transformer.h.2": 1}),
        ({"transformer.h.[01]": "stage:0"}, 2, {"transformer.h.0": 0, "transformer.h.1": 0}),
        ({"transformer.h.*.ln_1.bias": "stage:1"}, 2, {f"transformer.h.{i}": 1 for i in range(4)}),
        ({"transformer.h.*": "stage:1"}, 3, {f"transformer.h.{i}": 1 for i in range(4)}),
        ({"lm_head": "S(1); stage: -1", "transformer.h.0": "S(0)"}, 2, {"lm_head": 1}),
        ({"output.0": "stage: -1"}, 2, {"lm_head": 1}),
        ({"transformer.wte": "stage: 0", "lm_head": "stage: 1"}, 2,
         {"transformer.wte": 0, "lm_head": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_hints_bind_the_pieces_that_they_name(
    transformer: Captured, hints: Any, size: int, expected: dict[str, int]
) -> None:
    assert bound(transformer, hints, size) == expected


def test_a_container_binds_everything_below_it(transformer: Captured) -> None:
    found = bound(transformer, {"transformer": "stage: 0"})
    names = pieces_of(transformer).names
    assert found == {name: 0 for name in names if name.startswith("transformer")}
    assert len(found) == len(names) - 1  # the head, with the loss behind it


def test_a_parameter_binds_every_piece_that_reads_it(chain: Captured) -> None:
    pieces = pieces_of(chain)
    (reader,) = (n for n, paths in zip(pieces.names, pieces.parameters, strict=True)
                 if "shift" in paths)  # fmt: skip
    assert bound(chain, {"shift": "stage: -1"}) == {reader: 1}


def test_a_hint_inside_forward_binds_the_piece_of_its_value() -> None:
    class Hinted(Chain):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = self.embed(x)
            for block in self.blocks:
                x = x + block(x)
                if block is self.blocks[1]:
                    x = autoplan.hint(x, "stage: 1")
            return self.head(x).square().mean() + y.sum()

    captured = capture(Hinted(), (torch.zeros(3, 4), torch.zeros(3, 4)))
    mesh = make_request(6, "cpu", {"pipeline": 3}).meshes[0].mesh
    hints = hints_in_forward(captured.pins, mesh, (), 3)
    pieces = pieces_of(captured)
    allowed, origins = allowed_stages(pieces, captured, hints, None, 3)
    (at,) = np.flatnonzero(~allowed.all(axis=1))
    assert pieces.of[captured.pins[0].node] == at
    assert np.flatnonzero(allowed[at]).tolist() == [1]
    assert re.fullmatch(
        r"autoplan\.hint\(\.\.\., 'stage: 1'\) at .*test_stage_hints\.py:\d+", *origins[at]
    )
    with pytest.raises(HintError, match=r"test_stage_hints\.py:\d+: the plan has 1 stage"):
        hints_in_forward(captured.pins, mesh)


def test_what_is_computed_from_parameters_alone_goes_with_its_readers() -> None:
    """A table of positions and its lookup are in no piece: what adds them to the stream is."""
    args, kwargs = language_batch()
    captured = capture(gpt2(), args, kwargs)
    pieces = pieces_of(captured)
    lookup = {n.name for n in captured.graph.nodes if n.meta.get("path") == "transformer.wpe"}
    assert lookup
    assert not lookup & set(pieces.of)
    found = bound(captured, {"transformer.wpe": "stage: 0"})
    assert found == bound(captured, {"transformer.wpe.weight": "stage: 0"})
    ((name, stage),) = found.items()
    assert stage == 0
    assert "transformer.wpe.weight" in pieces.parameters[pieces.names.index(name)]


def test_a_tied_parameter_says_which_modules_read_it(transformer: Captured) -> None:
    """The head's weight is the embedding's: its hint would take the embedding along."""
    for path in ("lm_head.weight", "transformer.wte.weight"):
        with pytest.raises(HintError) as caught:
            read(transformer, {path: "stage: -1"})
        message = str(caught.value)
        assert repr(path) in message
        assert "'transformer.wte.weight' is read by 2 parts of the model" in message
        assert "hint the module that is meant instead" in message


@pytest.mark.parametrize(
    ("hints", "named"),
    [
        ({"gate": "stage: 0"}, "'gate'"),  # computed from an argument alone
        ({"y": "stage: 0"}, "'y'"),
    ],
    ids=str,
)
def test_a_hint_on_what_every_stage_computes_is_refused(
    chain: Captured, hints: Any, named: str
) -> None:
    with pytest.raises(HintError, match="no stage is its own") as caught:
        read(chain, hints)
    assert named in str(caught.value)


def test_a_glob_may_name_more_than_has_a_stage(chain: Captured) -> None:
    """`gate` has no stage of its own, and `embed` does."""
    assert bound(chain, {"[eg]*": {"stage": 0}}) == bound(chain, {"embed": {"stage": 0}})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (4, r"'lm_head': \{'stage': 4\}: the plan has 4 stages.*0 to 3, or -4 to -1.*got 4"),
        (-5, r"-4 to -1 from the end, got -5"),
    ],
)
def test_stages_out_of_range_say_how_many_there_are(
    transformer: Captured, stage: int, message: str
) -> None:
    with pytest.raises(HintError, match=message):
        read(transformer, {"lm_head": {"stage": stage}}, 4)


# -- stage maps -------------------------------------------------------------------------------


def pieces_named(names: Sequence[str], outer: Sequence[str]) -> Pieces:
    return Pieces(tuple(names), {}, tuple(outer), ((),) * len(names))


DEEP = pieces_named(
    ["embed", "enc.0.a.0", "enc.0.a.1", "enc.1", "mid", "dec.0", "head"],
    ["", "enc.0", "enc.0", "enc.1", "", "dec.0", ""],
)
"""Blocks inside a block: 3 outermost ones, 4 in all, 7 pieces."""


@pytest.mark.parametrize(
    ("stage_map", "found"),
    [
        ([0, 1, 2], (None, 0, 0, 1, None, 2, None)),
        ([0, 1, 1, 2], (None, 0, 1, 1, None, 2, None)),
        ([0, 0, 1, 1, 1, 2, 2], (0, 0, 1, 1, 1, 2, 2)),
    ],
)
def test_a_map_counts_outer_blocks_or_blocks_or_pieces(
    stage_map: list[int], found: tuple[int | None, ...]
) -> None:
    assert stages_by_piece(stage_map, DEEP, 3) == found


@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 8, 24])
def test_a_map_of_another_length_names_those_that_fit(length: int) -> None:
    with pytest.raises(HintError) as caught:
        stages_by_piece([0] * length, DEEP, 3)
    message = str(caught.value)
    assert f"has {length} entries" in message
    assert "3 outermost blocks ('enc.0', 'enc.1', 'dec.0')" in message
    assert "4 blocks ('enc.0.a.0', 'enc.0.a.1', 'enc.1', ...)" in message
    assert "7 pieces, stray ones too ('embed', 'enc.0.a.0', 'enc.0.a.1', ...)" in message


def test_a_model_without_blocks_is_mapped_by_pieces() -> None:
    flat = pieces_named(["first", "second"], ["", ""])
    assert stages_by_piece([0, 1], flat, 2) == (0, 1)
    with pytest.raises(HintError, match=r"has 3 entries, and the model has 2 pieces"):
        stages_by_piece([0, 0, 1], flat, 2)


def test_a_map_with_a_stage_too_many() -> None:
    with pytest.raises(HintError, match=r"stage_map=\[0, 1, 2\] names stage 2"):
        stages_by_piece([0, 1, 2], DEEP, 2)


def test_a_map_of_a_transformer(transformer: Captured) -> None:
    pieces, allowed, origins = read(transformer, {}, 2, [0, 0, 0, 1])
    fixed = {n: on for n, on in zip(pieces.names, allowed, strict=True) if on != [0, 1]}
    assert fixed == {f"transformer.h.{i}": [int(i == 3)] for i in range(4)}
    assert {said for said in origins if said} == {("stage_map=[0, 0, 0, 1]",)}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_the_text_of_a_map_is_the_map(stages: list[int]) -> None:
    stage_map = sorted(stages)
    text = stage_map_text(stage_map)
    assert eval(text.removeprefix("stage_map=")) == stage_map
    assert len(stage_map) <= 12 or len(text) < 80


# -- contradictions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "size", "stage_map", "named", "fix"),
    [
        ({"transformer.h.3": "stage:0", "transformer.h.1": {"stage": 1}}, 2, None,
         ["hint 'transformer.h.3': 'stage:0'", "hint 'transformer.h.1': {'stage': 1}"],
         "'transformer.h.3' runs after 'transformer.h.1'.*stage 1 or later"),
        ({"transformer.h.1": "stage:0", "transformer.h.1.ln_1": "stage:1"}, 2, None,
         ["hint 'transformer.h.1': 'stage:0'", "hint 'transformer.h.1.ln_1': 'stage:1'"],
         "Drop or change one"),
        ({"transformer.h.1": "stage:0", "transformer.h.1.ln_1.weight": "stage:1"}, 2, None,
         ["hint 'transformer.h.1.ln_1.weight': 'stage:1'", "reads 'transformer.h.1.ln_1.weight'"],
         "Drop or change one"),
        ({"transformer.h.1": "stage:0"}, 2, [0, 1, 1, 1],
         ["stage_map=[0, 1, 1, 1]", "hint 'transformer.h.1': 'stage:0'"], "Drop or change one"),
        ({"transformer.h.2": "stage:0", "transformer.h.3": "stage:3"}, 4, None,
         ["hint 'transformer.h.2': 'stage:0'", "hint 'transformer.h.3': 'stage:3'"],
         "between them are 0 parts of the model for 2 stages. Bring the stages nearer"),
        ({"transformer.wte": "stage:-1"}, 2, None, ["hint 'transformer.wte': 'stage:-1'"],
         "before it are 0 parts of the model for 1 stage. Give it stage 0, or drop"),
        ({"transformer.h.0": "stage:3"}, 4, None, ["hint 'transformer.h.0': 'stage:3'"],
         "before it are 2 parts of the model for 3 stages. Give it stage 2 or earlier"),
        ({"output.0": "stage:0"}, 2, None, ["hint 'output.0': 'stage:0'"],
         "after it are 0 parts of the model for 1 stage. Give it stage 1, or drop"),
    ],
)  # fmt: skip
def test_contradictions_name_the_hints_and_the_fix(
    transformer: Captured,
    hints: Any,
    size: int,
    stage_map: Any,
    named: list[str],
    fix: str,
) -> None:
    with pytest.raises(HintError, match=fix) as caught:
        read(transformer, hints, size, stage_map)
    for each in named:
        assert each in str(caught.value)


def cuts(num_pieces: int, num_stages: int) -> list[tuple[int, ...]]:
    """Every cut: the stage of each piece."""
    found = []
    for firsts in combinations(range(1, num_pieces), num_stages - 1):
        found.append(tuple(sum(piece >= first for first in firsts) for piece in range(num_pieces)))
    return found


def pins(chain: Captured) -> list[tuple[str, frozenset[int]]]:
    """Modules and parameters to hint, with the pieces that each is to bind, by another way."""
    pieces = pieces_of(chain)
    found = []
    for path in ("embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head", "blocks"):
        inside = frozenset(
            pieces.of[node.name]
            for node in chain.graph.nodes
            if node.name in pieces.of and f"{node.meta.get('path', '')}.".startswith(f"{path}.")
        )
        found.append((path, inside))
    for path in ("shift", "blocks.2.1.weight", "head.bias"):
        readers = (i for i, paths in enumerate(pieces.parameters) if path in paths)
        found.append((path, frozenset(readers)))
    return found


@given(data=st.data(), num_stages=st.integers(1, 5))
def test_hints_are_refused_exactly_where_no_cut_satisfies_them(
    chain: Captured, data: st.DataObject, num_stages: int
) -> None:
    """By brute force over all cuts; the hints that an error names leave none by themselves."""
    named = pins(chain)
    assert all(where for _, where in named)
    drawn = data.draw(
        st.lists(st.tuples(st.sampled_from(named), st.integers(0, num_stages - 1)), max_size=4)
    )
    pieces = pieces_of(chain)
    every = cuts(len(pieces), num_stages)

    def satisfied(cut: tuple[int, ...], which: Sequence[int]) -> bool:
        return all(cut[piece] == drawn[i][1] for i in which for piece in drawn[i][0][1])

    hints = [
        Hint(path, "stage", {}, f"<hint {number}>", stage=stage)
        for number, ((path, _), stage) in enumerate(drawn)
    ]
    all_of_them = range(len(drawn))
    try:
        allowed, origins = allowed_stages(pieces, chain, hints, None, num_stages)
    except HintError as error:
        assert not any(satisfied(cut, all_of_them) for cut in every)
        blamed = [i for i in all_of_them if f"<hint {i}>" in str(error)]
        assert 1 <= len(blamed) <= 2
        assert not any(satisfied(cut, blamed) for cut in every)
        return
    assert any(satisfied(cut, all_of_them) for cut in every)
    for cut in every:
        legal = all(allowed[piece, stage] for piece, stage in enumerate(cut))
        assert legal == satisfied(cut, all_of_them)
    for piece, said in enumerate(origins):
        expected = {f"<hint {i}>" for i in all_of_them if piece in drawn[i][0][1]}
        assert set(said) == expected


def test_more_stages_than_pieces_are_left_to_the_solver(chain: Captured) -> None:
    """No hint is to blame."""
    pieces = pieces_of(chain)
    hint = Hint("embed", "stage", {}, "<hint>", stage=0)
    allowed, _ = allowed_stages(pieces, chain, [hint], None, len(pieces) + 1)
    assert np.flatnonzero(allowed[pieces.names.index("embed")]).tolist() == [0]


def test_cuts_are_all_of_them() -> None:
    """The brute force itself: every non-falling assignment that uses all stages."""
    for n, stages in ((1, 1), (4, 2), (6, 3), (5, 5)):
        expected = [
            each
            for each in product(range(stages), repeat=n)
            if list(each) == sorted(each) and set(each) == set(range(stages))
        ]
        assert sorted(cuts(n, stages)) == expected
