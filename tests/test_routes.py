"""Routes: the paths of Floyd's algorithm, found by relaxing steps along one coordinate."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoplan.routes import cheapest
from tests.floyd import floyd, points_of

Times = list[NDArray[np.float64]]

SIZES = st.sampled_from([(2, 1), (5, 1), (3, 2), (4, 2), (2, 3), (3, 3), (2, 4)])


@st.composite
def grids(draw: st.DrawFn, unit_s: float = 1e-9) -> tuple[Times, int]:
    """Times of steps, whole multiples of a unit so that sums are exact; many are equal or free."""
    size, ndim = draw(SIZES)
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from([1, 3, 1000]))
    missing = draw(st.sampled_from([0.0, 0.3, 0.7]))
    times = []
    for axis in range(ndim):
        shape = (size, size, size**axis, size ** (ndim - 1 - axis))
        amounts = numbers.integers(0, most + 1, shape).astype(np.float64)
        times.append(np.where(numbers.random(shape) < missing, np.inf, amounts * unit_s))
    return times, size


def matrix_of(times: Times, size: int, unit_s: float) -> NDArray[np.float64]:
    """Units of time of every single step, [from, to]."""
    points = list(product(range(size), repeat=len(times)))
    steps = np.full((len(points), len(points)), np.inf)
    for (i, one), (j, other) in product(enumerate(points), repeat=2):
        changed = [axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        if len(changed) == 1:
            axis = changed[0]
            before = after = 0
            for each in one[:axis]:
                before = before * size + each
            for each in one[axis + 1 :]:
                after = after * size + each
            time_s = times[axis][one[axis], other[axis], before, after]
            steps[i, j] = time_s if math.isinf(time_s) else round(time_s / unit_s)
    return steps


@settings(max_examples=150, deadline=None)
@given(grids())
def test_times_and_paths_are_those_of_floyd(grid: tuple[Times, int]) -> None:
    times, size = grid
    routes = cheapest(times, size)
    expected, first = floyd(matrix_of(times, size, 1e-9))
    points = range(len(expected))
    assert np.array_equal(routes.time_s(points, points), expected / 1e9)
    for source, target in product(points, repeat=2):
        if math.isfinite(expected[source, target]):
            path = list(routes.path(source, target))
            assert [point for _, point in path] == points_of(first, source, target)


@settings(max_examples=50, deadline=None)
@given(grids(unit_s=2.0**14))
def test_hours_are_added_up_as_nanoseconds_are(grid: tuple[Times, int]) -> None:
    """Beyond what a path's length can hold with its steps, the unit of time becomes larger."""
    times, size = grid
    routes = cheapest(times, size)
    expected, first = floyd(matrix_of(times, size, 2.0**14))
    points = range(len(expected))
    assert np.array_equal(routes.time_s(points, points), expected * 2.0**14)
    for source, target in product(points, repeat=2):
        if math.isfinite(expected[source, target]):
            path = [point for _, point in routes.path(source, target)]
            assert path == points_of(first, source, target)


@settings(max_examples=50, deadline=None)
@given(grids())
def test_a_step_changes_the_coordinate_that_it_names(grid: tuple[Times, int]) -> None:
    times, size = grid
    routes = cheapest(times, size)
    number = {p: i for i, p in enumerate(product(range(size), repeat=len(times)))}
    coordinates = list(number)
    last = len(coordinates) - 1
    if math.isfinite(routes.lengths[0, last]):
        at = 0
        for axis, point in routes.path(0, last):
            one, other = coordinates[at], coordinates[point]
            assert [a == b for a, b in zip(one, other, strict=True)].count(False) == 1
            assert one[axis] != other[axis]
            at = point
        assert at == last


def test_what_cannot_be_reached_is_infinite() -> None:
    one_way = np.array([[np.inf, 1.0], [np.inf, np.inf]]).reshape(2, 2, 1, 1)
    routes = cheapest([one_way], 2)
    assert routes.time_s([0, 1], [0, 1]).tolist() == [[0.0, 1.0], [math.inf, 0.0]]


def test_without_coordinates_there_is_one_point() -> None:
    assert cheapest([], 3).time_s([0], [0]).tolist() == [[0.0]]


@pytest.mark.parametrize("order", [(0.1, 0.2, 0.3), (0.3, 0.1, 0.2), (0.2, 0.3, 0.1)])
def test_sums_do_not_depend_on_their_order(order: tuple[float, ...]) -> None:
    """In floats 0.1 + 0.2 + 0.3 has two values; equal times must be equal."""
    times = np.full((4, 4, 1, 1), np.inf)
    for at, time_s in enumerate(order):
        times[at, at + 1] = time_s
    assert cheapest([times], 4).time_s([0], [3]).tolist() == [[0.6]]
