"""Layouts: their text, their duals, and the shards they cut."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from autoplan.errors import LayoutError
from autoplan.layouts import (
    BP,
    B,
    Layout,
    P,
    Partial,
    S,
    chunk_range,
    dual_entry,
    local_ranges,
    local_shape,
    parse_entry,
)
from autoplan.mesh import Mesh
from tests.runtime.logical import spread

ENTRIES = st.one_of(st.sampled_from([B, BP, P]), st.integers(-4, 9).map(S))
MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
    lambda sizes: Mesh(tuple("xyz"[: len(sizes)]), tuple(sizes))
)


@st.composite
def cut_tensors(draw: DrawFn) -> tuple[tuple[int, ...], Layout, Mesh]:
    mesh = draw(MESHES)
    shape = tuple(draw(st.lists(st.integers(0, 13), min_size=1, max_size=3)))
    dims = st.integers(-len(shape), len(shape) - 1)
    entries = st.one_of(dims.map(S), st.sampled_from([B, BP]))
    return shape, Layout(draw(entries) for _ in mesh.axes), mesh


# -- text ---------------------------------------------------------------------------------


@given(st.lists(ENTRIES | st.sampled_from([Partial("max"), Partial("min")]), max_size=4))
def test_print_and_parse_are_inverse(entries: list[object]) -> None:
    layout = Layout(entries)  # type: ignore[arg-type]
    assert Layout.parse(str(layout)) == layout
    assert Layout.parse([str(entry) for entry in layout]) == layout
    assert Layout.parse(list(layout)) == layout
    for entry in layout:
        assert parse_entry(str(entry)) == entry
        assert Layout.parse(entry) == (entry,)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("S(0)", (S(0),)),
        ("(S(0))", (S(0),)),
        ("(S(0),)", (S(0),)),
        (" ( B ,S( -1 ) ) ", (B, S(-1))),
        ("B/P, P", (BP, P)),
        ("P(sum), P(max)", (P, Partial("max"))),
        ("()", ()),
    ],
)
def test_accepted_texts(text: str, layout: tuple[object, ...]) -> None:
    assert Layout.parse(text) == layout


@pytest.mark.parametrize(
    "text",
    ["", "(,)", ",", "B,,B", ",B", "B P", "S", "S()", "S(a)", "S(0", "S(1.5)", "s(0)", "B/S(0)"]
    + ["P/B", "P(avg)", "(B", "B)", "((B, S(1)))", "R", "B;P", "[B, P]", "S(0)S(1)"],
)
def test_unreadable_texts_are_named(text: str) -> None:
    with pytest.raises(LayoutError) as caught:
        Layout.parse(text)
    assert repr(text) in str(caught.value)
    with pytest.raises(LayoutError):
        parse_entry(text)


def test_an_entry_is_exactly_one() -> None:
    with pytest.raises(LayoutError, match=r"B, P"):
        parse_entry("B, P")
    with pytest.raises(LayoutError, match=r"S\(0\), S\(1\)"):
        Layout.parse(["B", "S(0), S(1)"])


def test_entries_of_another_kind_are_named() -> None:
    with pytest.raises(LayoutError, match="'B'"):
        Layout(["B"])  # type: ignore[list-item]


# -- duals --------------------------------------------------------------------------------


@given(st.lists(ENTRIES, max_size=4))
def test_dual_is_an_involution(entries: list[object]) -> None:
    layout = Layout(entries)  # type: ignore[arg-type]
    assert layout.dual.dual == layout
    assert layout.dual == tuple(dual_entry(entry) for entry in layout)


def test_dual_of_each_entry() -> None:
    assert Layout((S(2), P, BP, B)).dual == (S(2), BP, P, B)


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_only_sums_have_a_gradient(reduction: str) -> None:
    with pytest.raises(LayoutError, match=reduction):
        dual_entry(Partial(reduction))


def test_without_gradient_is_the_same_value() -> None:
    assert Layout((S(2), P, BP, B)).without_gradient() == (S(2), P, B, B)


# -- dimensions ---------------------------------------------------------------------------


@given(cut_tensors())
def test_negative_dimensions_count_from_the_end(case: tuple[tuple[int, ...], Layout, Mesh]) -> None:
    shape, layout, mesh = case
    resolved = layout.resolve(len(shape))
    assert all(entry.dim >= 0 for entry in resolved if isinstance(entry, S))
    assert resolved.resolve(len(shape)) == resolved
    for rank in range(mesh.num_devices):
        at = mesh.coordinates(rank)
        assert local_ranges(shape, layout, mesh, at) == local_ranges(shape, resolved, mesh, at)


@pytest.mark.parametrize(("dim", "ndim"), [(2, 2), (-3, 2), (0, 0), (-1, 0)])
def test_dimensions_that_do_not_exist_are_named(dim: int, ndim: int) -> None:
    with pytest.raises(LayoutError) as caught:
        Layout((B, S(dim))).resolve(ndim)
    assert f"S({dim})" in str(caught.value)


def test_axes_of_a_dimension_are_outermost_first() -> None:
    layout = Layout((S(1), B, S(0), S(1)))
    assert list(layout.axes_of(1)) == [0, 3]
    assert list(layout.axes_of(0)) == [2]
    assert list(layout.axes_of(2)) == []


# -- shards -------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 9))
def test_chunk_ranges_are_those_of_torch(size: int, parts: int) -> None:
    rows = torch.arange(size)
    pieces = [rows[slice(*chunk_range(size, parts, index))] for index in range(parts)]
    chunked = torch.chunk(rows, parts)
    for piece, chunk in zip(pieces, chunked, strict=False):
        assert torch.equal(piece, chunk)
    assert all(piece.numel() == 0 for piece in pieces[len(chunked) :])
    assert torch.equal(torch.cat(pieces), rows)


def test_a_vocabulary_that_does_not_divide() -> None:
    mesh = Mesh.of(tensor=4)
    shapes = [local_shape((50257, 8), Layout((S(0),)), mesh, (k,)) for k in range(4)]
    assert shapes == [(12565, 8), (12565, 8), (12565, 8), (12562, 8)]


@settings(max_examples=200)
@given(cut_tensors())
def test_shards_are_nested_chunks(case: tuple[tuple[int, ...], Layout, Mesh]) -> None:
    shape, layout, mesh = case
    size = torch.Size(shape).numel()
    whole = torch.arange(size).reshape(shape)
    expected = spread(whole, layout, mesh, random.Random(0))
    for rank, shard in enumerate(expected):
        at = mesh.coordinates(rank)
        ranges = local_ranges(shape, layout, mesh, at)
        assert torch.equal(whole[tuple(slice(*each) for each in ranges)], shard)
        assert local_shape(shape, layout, mesh, at) == tuple(shard.shape)
    largest = max(shard.numel() for shard in expected)
    assert torch.Size(local_shape(shape, layout, mesh)).numel() == largest


@given(cut_tensors())
def test_shards_partition_the_tensor(case: tuple[tuple[int, ...], Layout, Mesh]) -> None:
    shape, layout, mesh = case
    seen = torch.zeros(shape, dtype=torch.int64)
    copies = 1
    for entry, size in zip(layout, mesh.sizes, strict=True):
        copies *= 1 if isinstance(entry, S) else size
    for rank in range(mesh.num_devices):
        ranges = local_ranges(shape, layout, mesh, mesh.coordinates(rank))
        seen[tuple(slice(*each) for each in ranges)] += 1
    assert torch.equal(seen, torch.full(shape, copies))
