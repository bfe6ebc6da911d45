"""Boxing: the table, its duality, and the cheapest paths over layouts."""

from __future__ import annotations

import heapq
import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from autoplan.boxing import COLLECTIVES, Move, Router, Step, action, layout_entries, moves_from
from autoplan.errors import LayoutError
from autoplan.layouts import (
    BP,
    B,
    Entry,
    Layout,
    P,
    Partial,
    S,
    dual_entry,
    local_ranges,
    local_shape,
)
from autoplan.mesh import Mesh
from tests.floyd import floyd, points_of
from tests.runtime.logical import random_price

# The table of docs/DESIGN, section 1, with every pair that it leaves to the reader.
TABLE: list[tuple[Entry, Entry, str, str]] = [
    (S(0), B, "all_gather", "slice"),
    (S(0), BP, "all_gather", "reduce_scatter"),
    (S(0), S(1), "all_to_all", "all_to_all"),
    (S(1), S(0), "all_to_all", "all_to_all"),
    (P, B, "all_reduce", "identity"),
    (P, BP, "all_reduce", "all_reduce"),
    (P, S(0), "reduce_scatter", "all_gather"),
    (B, BP, "identity", "all_reduce"),
    (BP, B, "identity", "keep_one"),
    (B, S(0), "slice", "all_gather"),
    (BP, S(0), "slice", "zero_pad"),
    (B, P, "keep_one", "identity"),
    (BP, P, "keep_one", "keep_one"),
    (S(0), P, "zero_pad", "slice"),
    *[(entry, entry, "identity", "identity") for entry in (S(0), S(1), P, B, BP)],
]
ENTRIES = st.sampled_from([B, BP, P, S(0), S(1), S(2)])


@pytest.mark.parametrize(("source", "target", "forward", "backward"), TABLE)
def test_the_table(source: Entry, target: Entry, forward: str, backward: str) -> None:
    step = Step("x", source, target, (4, 8))
    assert (step.forward, step.backward) == (forward, backward)
    assert action(source, target) == forward
    move = Move(0, Layout((source,)), Layout((target,)))
    assert move.actions(needs_gradient=True) == (forward, backward)
    assert move.actions(needs_gradient=False) == (forward,)


def test_the_table_is_complete() -> None:
    pairs = {(source, target) for source, target, _, _ in TABLE}
    missing = {(s, t) for s, t in product([B, BP, P, S(0)], repeat=2)} - pairs
    assert not missing
    assert {forward for _, _, forward, _ in TABLE} - set(COLLECTIVES) == {
        "identity",
        "slice",
        "keep_one",
        "zero_pad",
    }


@given(ENTRIES, ENTRIES, st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_backward_is_the_step_between_the_duals(
    source: Entry, target: Entry, sizes: tuple[int, int]
) -> None:
    step = Step("x", source, target, sizes)
    assert step.reversed == Step("x", dual_entry(target), dual_entry(source), sizes[::-1])
    assert step.reversed.reversed == step
    assert step.backward == step.reversed.forward
    assert step.forward == step.reversed.backward


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_maxima_are_only_taken_apart(reduction: str) -> None:
    partial = Partial(reduction)
    assert action(partial, B) == "all_reduce"
    assert action(partial, S(0)) == "reduce_scatter"
    assert action(partial, partial) == "identity"
    lost: list[tuple[Entry, Entry]] = [(B, partial), (S(0), partial), (P, partial), (partial, P)]
    for source, target in lost:
        with pytest.raises(LayoutError) as caught:
            action(source, target)
        assert f"{source} to {target}" in str(caught.value)


# -- legality -----------------------------------------------------------------------------


def held_along(axis: int, layout: Layout, shape: tuple[int, ...], mesh: Mesh) -> list[set[object]]:
    """The positions that the ranks of each group along `axis` hold together."""
    result = []
    for group in mesh.groups(mesh.axes[axis]):
        positions: set[object] = set()
        for rank in group:
            ranges = local_ranges(shape, layout, mesh, mesh.coordinates(rank))
            positions.update(product(*(range(*each) for each in ranges)))
        result.append(positions)
    return result


@pytest.mark.parametrize("mesh", [Mesh.of(x=2, y=2), Mesh.of(x=2, y=2, z=2), Mesh.of(x=3, y=2)])
def test_a_move_is_legal_where_each_group_keeps_what_it_holds(mesh: Mesh) -> None:
    shape = (12, 12)
    entries = layout_entries(shape, needs_gradient=False)
    for layout in map(Layout, product(entries, repeat=mesh.ndim)):
        legal = {(move.axis, move.target) for move in moves_from(layout, entries)}
        possible = {
            (axis, target)
            for axis, entry in product(range(mesh.ndim), entries)
            if (target := layout.replace(axis, entry)) != layout
            and held_along(axis, layout, shape, mesh) == held_along(axis, target, shape, mesh)
        }
        assert legal == possible, layout


def test_entries_of_a_tensor() -> None:
    assert layout_entries((4, 1, 3), needs_gradient=True) == (B, BP, P, S(0), S(2))
    assert layout_entries((4, 1, 3), needs_gradient=False) == (B, P, S(0), S(2))
    assert layout_entries((), needs_gradient=True) == (B, BP, P)


@given(st.integers(2, 9), st.integers(2, 9), st.data())
def test_a_bound_step_knows_the_sizes_before_its_cut(
    rows: int, columns: int, data: st.DataObject
) -> None:
    mesh = Mesh.of(x=2, y=3)
    entries = layout_entries((rows, columns), needs_gradient=True)
    layout = Layout(data.draw(st.sampled_from(entries)) for _ in mesh.axes)
    move = data.draw(st.sampled_from(list(moves_from(layout, entries))))
    for rank in range(mesh.num_devices):
        at = mesh.coordinates(rank)
        step = move.bind((rows, columns), mesh, at)
        assert step.axis == mesh.axes[move.axis]
        assert (step.source, step.target) == (layout[move.axis], move.target[move.axis])
        uncut = local_shape((rows, columns), layout.replace(move.axis, B), mesh, at)
        for entry, size in zip((step.source, step.target), step.sizes, strict=True):
            assert size == (uncut[entry.dim] if isinstance(entry, S) else 0)
        if rank == 0:
            assert move.whole_bytes((rows, columns), 4, mesh) == 4 * math.prod(uncut)


# -- paths --------------------------------------------------------------------------------

MESHES = [Mesh.of(x=3), Mesh.of(x=2, y=2), Mesh.of(x=2, y=3), Mesh.of(x=2, y=2, z=2)]


@cache
def router(mesh: Mesh, seed: int) -> Router:
    return Router(mesh, random_price(seed))


@st.composite
def routed(draw: DrawFn) -> tuple[Mesh, int, tuple[int, ...], bool]:
    mesh = draw(st.sampled_from(MESHES))
    ndim = 1 if mesh.ndim == 3 else 2
    shape = draw(st.sampled_from([(5,), (8,), (1,)] if ndim == 1 else [(4, 6), (5, 3), (1, 7)]))
    return mesh, draw(st.integers(0, 7)), shape, draw(st.booleans())


def step_price(
    layout: Layout, axis: int, target: Entry, case: tuple[Mesh, int, tuple[int, ...], bool]
) -> float:
    """Price of one change of entry, from the words of the design."""
    mesh, seed, shape, needs_gradient = case
    price = random_price(seed)
    largest = local_shape(shape, layout.replace(axis, B), mesh)
    size, name = 4 * math.prod(largest), mesh.axes[axis]
    total = price(action(layout[axis], target), name, size)
    if needs_gradient:
        total += price(action(dual_entry(target), dual_entry(layout[axis])), name, size)
    return total


def dijkstra(
    source: Layout, entries: tuple[Entry, ...], case: tuple[Mesh, int, tuple[int, ...], bool]
) -> dict[Layout, tuple[float, int]]:
    """Price and number of steps of the best path to every layout."""
    best: dict[Layout, tuple[float, int]] = {}
    queue: list[tuple[float, int, str, Layout]] = [(0.0, 0, "", source)]
    while queue:
        time_s, steps, _, layout = heapq.heappop(queue)
        if layout in best:
            continue
        best[layout] = (time_s, steps)
        for axis, target in product(range(len(layout)), entries):
            inner = [entry for entry in layout[axis + 1 :] if isinstance(entry, S)]
            if target == layout[axis] or target in inner or layout[axis] in inner:
                continue
            after = layout.replace(axis, target)
            further = time_s + step_price(layout, axis, target, case)
            heapq.heappush(queue, (further, steps + 1, str(after), after))
    return best


@settings(max_examples=25, deadline=None)
@given(routed(), st.data())
def test_costs_are_those_of_dijkstra(
    case: tuple[Mesh, int, tuple[int, ...], bool], data: st.DataObject
) -> None:
    mesh, seed, shape, needs_gradient = case
    entries = layout_entries(shape, needs_gradient)
    layouts = [Layout(each) for each in product(entries, repeat=mesh.ndim)]
    source = data.draw(st.sampled_from(layouts))
    best = dijkstra(source, entries, case)
    this = router(mesh, seed)
    costs = this.costs([source], layouts, shape, 4, needs_gradient)
    assert costs.tolist() == [[best[target][0] for target in layouts]]
    for target in layouts:
        path = this.path(source, target, shape, 4, needs_gradient)
        assert len(path) == best[target][1]


@settings(max_examples=100, deadline=None)
@given(routed(), st.data())
def test_a_path_leads_from_source_to_target_for_its_cost(
    case: tuple[Mesh, int, tuple[int, ...], bool], data: st.DataObject
) -> None:
    mesh, seed, shape, needs_gradient = case
    entries = layout_entries(shape, needs_gradient)
    layouts = st.lists(st.sampled_from(entries), min_size=mesh.ndim, max_size=mesh.ndim)
    source, target = Layout(data.draw(layouts)), Layout(data.draw(layouts))
    this = router(mesh, seed)
    path = this.path(source, target, shape, 4, needs_gradient)
    at, paid = source, 0.0
    for move in path:
        assert move.source == at
        assert move in list(moves_from(at, entries))
        paid += step_price(at, move.axis, move.target[move.axis], case)
        at = move.target
    assert at == target
    assert this.costs([source], [target], shape, 4, needs_gradient) == [[paid]]
    assert (source == target) == (path == ())


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        (Mesh.of(x=3), (4, 6, 5)),
        (Mesh.of(x=2, y=3), (7, 1, 5)),
        (Mesh.of(x=4, y=2), (6, 9)),
        (Mesh.of(x=4, y=2), (6, 0, 9)),
        (Mesh.of(x=2, y=2, z=4), (3, 8)),
    ],
)
def test_conversions_are_those_of_floyd(
    mesh: Mesh, shape: tuple[int, ...], needs_gradient: bool
) -> None:
    """All costs, and the very paths: of equal ones the one that Floyd's algorithm finds."""
    price = random_price(5)
    entries = layout_entries(shape, needs_gradient)
    layouts = [Layout(each) for each in product(entries, repeat=mesh.ndim)]
    index = {layout: i for i, layout in enumerate(layouts)}
    steps = np.full((len(layouts), len(layouts)), np.inf)
    for layout, i in index.items():
        for move in moves_from(layout, entries):
            size, axis = move.whole_bytes(shape, 4, mesh), mesh.axes[move.axis]
            names = move.actions(needs_gradient)
            steps[i, index[move.target]] = sum(price(name, axis, size) for name in names)
    times, first = floyd(steps)
    this = Router(mesh, price)
    assert np.array_equal(this.costs(layouts, layouts, shape, 4, needs_gradient), times)
    for source, target in product(layouts[::3], layouts[::2]):
        path = this.path(source, target, shape, 4, needs_gradient)
        assert [index[m.target] for m in path] == points_of(first, index[source], index[target])


@pytest.mark.parametrize("shape", [(1, 4, 6), (4, 1, 6), (4, 6, 1)])
def test_dimensions_of_size_1_change_nothing_but_the_numbers(shape: tuple[int, ...]) -> None:
    this = router(MESHES[1], 3)
    real = [dim for dim, size in enumerate(shape) if size > 1]

    def renumbered(layout: Layout) -> Layout:
        return Layout(S(real[e.dim]) if isinstance(e, S) else e for e in layout)

    entries = layout_entries((4, 6), needs_gradient=True)
    layouts = [Layout(each) for each in product(entries, repeat=2)]
    same = [renumbered(layout) for layout in layouts]
    costs = this.costs(layouts, layouts, (4, 6), 2, True)
    assert np.array_equal(this.costs(same, same, shape, 2, True), costs)
    for source, target in product(layouts, repeat=2):
        given = this.path(source, target, (4, 6), 2, True)
        moved = this.path(renumbered(source), renumbered(target), shape, 2, True)
        assert [renumbered(m.target) for m in given] == [m.target for m in moved]
        assert [m.axis for m in given] == [m.axis for m in moved]


def test_the_diagonal_is_free_and_rectangles_are_cut_from_one_table() -> None:
    this = router(MESHES[1], 0)
    entries = layout_entries((4, 6), needs_gradient=True)
    layouts = [Layout(each) for each in product(entries, repeat=2)]
    costs = this.costs(layouts, layouts, (4, 6), 4, True)
    assert not costs.diagonal().any()
    assert costs.max() < math.inf
    rows, columns = [3, 0, 3], [7, 1]
    part = this.costs([layouts[r] for r in rows], [layouts[c] for c in columns], (4, 6), 4, True)
    assert np.array_equal(part, costs[np.ix_(rows, columns)])


def test_slice_first_gather_last() -> None:
    """With prices by size, a conversion works on the smallest tensor it can."""
    mesh = Mesh.of(x=2, y=2)
    this = Router(mesh, lambda name, axis, size: float(size) if name in COLLECTIVES else 0.0)
    path = this.path(Layout((S(0), B)), Layout((B, S(1))), (8, 8), 4, False)
    assert [move.actions(False) for move in path] == [("slice",), ("all_gather",)]


@pytest.mark.parametrize(
    "layout",
    [
        Layout((S(2),)),
        Layout((S(-1),)),
        Layout((BP,)),
        Layout((Partial("max"),)),
        Layout(()),
        Layout((B, B)),
    ],
)
def test_layouts_that_the_tensor_cannot_have_are_named(layout: Layout) -> None:
    this = Router(Mesh.of(x=2), random_price(0))
    whole = Layout((B,))
    for source, target in [(layout, whole), (whole, layout)]:
        with pytest.raises(LayoutError) as caught:
            this.path(source, target, (4, 4), 4, False)
        assert str(layout) in str(caught.value)
        with pytest.raises(LayoutError):
            this.costs([source], [target], (4, 4), 4, False)
