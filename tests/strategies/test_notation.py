import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.errors import RuleError
from autoplan.layouts import chunk_range
from autoplan.strategies.notation import Bound, Dim, Shape, Term, bind, bind_reshape, parse


def _bound(text: str, *inputs: Shape, output: Shape) -> Bound:
    return bind(parse(text), inputs, (output,))


# -- parse ----------------------------------------------------------------------------------


def test_a_term_is_a_dim_per_token() -> None:
    notation = parse("*b [k] (h d) 1, +o -> o2")
    assert notation.inputs == (
        Term((Dim(("*b",)), Dim(("k",), whole=True), Dim(("h", "d")), Dim(("1",)))),
        Term((Dim(("o",)),), addend=True),
    )
    assert notation.outputs == (Term((Dim(("o2",)),)),)


def test_a_scalar_is_an_empty_term() -> None:
    assert parse("k, k -> ").outputs == (Term(()),)
    assert parse(", a -> a").inputs[0] == Term(())
    assert parse("+, a -> a").inputs[0] == Term((), addend=True)


def test_several_outputs_are_several_terms() -> None:
    assert len(parse("a b -> a, b, a b").outputs) == 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a b", "'->'"),
        ("a -> b -> c", "'->'"),
        ("a {b} -> a", "'{b}'"),
        ("a (b -> a", "'(b'"),
        ("a [b c] -> a", "'[b c]'"),
        ("*a *b -> a", "one '*'"),
        ("B h -> B h", "B names a layout"),
        ("a P1 -> a", "P1 names a layout"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, part: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert part in str(caught.value)


# -- bind -----------------------------------------------------------------------------------


def test_stars_align_from_the_right() -> None:
    bound = _bound("*b k, *b -> *b", (5, 4, 3), (4,), output=(5, 4))
    assert bound.inputs == (("b0", "b1", "k"), ("b1",))
    assert bound.outputs == (("b0", "b1"),)
    assert bound.sizes == {"b0": 5, "b1": 4, "k": 3}


def test_a_star_may_stand_for_nothing() -> None:
    bound = _bound("*b i, o i -> *b o", (3,), (2, 3), output=(2,))
    assert bound.inputs == (("i",), ("o", "i"))
    assert bound.outputs == (("o",),)


def test_dimensions_of_size_one_broadcast_and_are_never_split() -> None:
    bound = _bound("*b, *b -> *b", (1, 4), (5, 1), output=(5, 4))
    assert bound.inputs == ((None, "b1"), ("b0", None))
    assert bound.outputs == (("b0", "b1"),)
    assert _bound("a -> a", (1,), output=(1,)).indices == ()


def test_a_whole_index_is_whole_wherever_it_stands() -> None:
    bound = _bound("*b [k], k j -> *b j", (5, 4), (4, 3), output=(5, 3))
    assert bound.inputs == (("b0", None), (None, "j"))
    assert bound.indices == ("b0", "j")
    assert bound.sizes["k"] == 4


def test_a_written_one_carries_no_index() -> None:
    bound = _bound("a b -> a 1", (5, 4), output=(5, 1))
    assert bound.outputs == (("a", None),)


def test_a_group_splits_by_its_leading_factor_and_evenly() -> None:
    bound = _bound("*b (h d) -> *b h d", (5, 12), output=(5, 4, 3))
    assert bound.inputs == (("b0", "h"),)
    assert bound.outputs == (("b0", "h", "d"),)
    assert bound.aligned == {"h"}
    assert "d" in bound.indices  # of the output alone; it cannot be seen inside the group


def test_a_factor_that_no_dimension_shows_is_what_is_left_of_the_group() -> None:
    bound = _bound("(h g) d, h d -> (h g) d", (8, 3), (2, 3), output=(8, 3))
    assert bound.sizes["g"] == 4
    given_sizes = bind(parse("(h g) -> (h g)"), [(8,)], [(8,)], group_sizes={"h": 4})
    assert given_sizes.sizes == {"h": 4, "g": 2}


def test_addends_are_the_marked_inputs() -> None:
    bound = _bound("x i, o i, +o -> x o", (5, 4), (3, 4), (3,), output=(5, 3))
    assert bound.addends == {2}


@pytest.mark.parametrize(
    ("text", "inputs", "output"),
    [
        ("a, a -> a", [(5,), (4,)], (5,)),
        ("a b -> a", [(5,)], (5,)),
        ("*b k j -> *b k", [(5,)], (5,)),
        ("(h d) -> h d", [(12,)], (5, 2)),
        ("(h d) -> (h d)", [(12,)], (12,)),
        ("a -> a", [(5,), (5,)], (5,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(text: str, inputs: list[Shape], output: Shape) -> None:
    with pytest.raises(RuleError):
        bind(parse(text), inputs, [output])


# -- reshape --------------------------------------------------------------------------------


def _factorizations(numbers: list[int]) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of prod(numbers) elements: neighbours multiplied together, ones strewn in."""

    @st.composite
    def shape(draw: st.DrawFn) -> tuple[int, ...]:
        order = draw(st.permutations(numbers))
        merge = draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
        dims = [1] if draw(st.integers(0, 1)) else []
        for number, merged in zip(order, merge, strict=True):
            if dims and merged:
                dims[-1] *= number
            else:
                dims.append(number)
        return tuple(dims)

    return shape()


_reshapes = st.lists(st.sampled_from([1, 2, 2, 3, 4, 5, 6]), min_size=1, max_size=5).flatmap(
    lambda numbers: st.tuples(_factorizations(numbers), _factorizations(numbers))
)


def _part_counts(size: int) -> list[int]:
    return [parts for parts in (2, 3, 4, 5, 6, 8, 12) if parts <= size]


def _cut(array: np.ndarray, dim: int, parts: int, index: int) -> np.ndarray:
    start, stop = chunk_range(array.shape[dim], parts, index)
    return array.take(range(start, stop), axis=dim)


def _commutes(source: Shape, target: Shape, at: int, to: int, parts: int) -> bool:
    """Whether reshaping the parts of dimension `at` gives the parts of dimension `to`."""
    whole = np.arange(math.prod(source)).reshape(source)
    for index in range(parts):
        expected = _cut(whole.reshape(target), to, parts, index)
        shard = _cut(whole, at, parts, index)
        if shard.size != expected.size or (shard.reshape(expected.shape) != expected).any():
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(_reshapes)
def test_the_index_of_a_reshape_cuts_both_sides_alike(shapes: tuple[Shape, Shape]) -> None:
    source, target = shapes
    bound = bind_reshape(source, target)
    for index in bound.indices:
        at, to = bound.inputs[0].index(index), bound.outputs[0].index(index)
        for parts in _part_counts(bound.sizes[index]):
            if index not in bound.aligned or bound.sizes[index] % parts == 0:
                assert _commutes(source, target, at, to, parts), (index, parts)


@settings(max_examples=150, deadline=None)
@given(_reshapes)
def test_no_even_cut_of_a_reshape_is_missed(shapes: tuple[Shape, Shape]) -> None:
    source, target = shapes
    bound = bind_reshape(source, target)
    for at, rows in enumerate(source):
        for to, columns in enumerate(target):
            common = math.gcd(rows, columns)
            for parts in _part_counts(common):
                if common % parts == 0 and _commutes(source, target, at, to, parts):
                    index = bound.inputs[0][at]
                    assert index is not None
                    assert index == bound.outputs[0][to]
                    assert bound.sizes[index] % parts == 0


def test_an_empty_tensor_has_nothing_to_split() -> None:
    assert bind_reshape((0, 3), (0,)).indices == ()
    assert bind_reshape((3, 0), (0, 5)).indices == ()
