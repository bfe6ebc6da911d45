"""Patterns: lines that stand for exactly the paths that were grouped, in one order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.planfiles.patterns import MOST_PATHS, Key, expanded, grouped, in_order

names = st.sampled_from(["a", "b", "0", "1", "2", "3", "10", "007", "{0..1}", "{", "{{x", "c}"])
paths = st.lists(names, min_size=0, max_size=4).map(".".join)
leaves = st.sampled_from(["", "/op#1", "/op#2", "/op#1:0", ":0"])
texts = st.one_of(
    st.builds(str.__add__, paths, leaves),
    st.sampled_from(["a.0 .. b.3 (2 tensors)", "output 0", "output 1", "a/b.1/op#1"]),
)
rows = st.dictionaries(texts, st.sampled_from(["x", "y"]), min_size=1, max_size=25)


@given(rows)
@settings(max_examples=400, deadline=None)
def test_lines_stand_for_exactly_the_rows(rows: dict[str, str]) -> None:
    lines = grouped({Key.of(text): value for text, value in rows.items()})
    paths = [(path, value) for pattern, value in lines for path in expanded(pattern)]
    assert len(paths) == len(rows)
    assert dict(paths) == rows
    assert len({pattern for pattern, _ in lines}) == len(lines)


@given(rows)
@settings(max_examples=400, deadline=None)
def test_the_order_of_the_lines_is_the_order_of_the_rows(
    rows: dict[str, str],
) -> None:
    """What is ordered stays as it is, and comes back in that order from its lines."""
    keys = [Key.of(text) for text in rows]
    keys = [keys[at] for at in in_order(keys)]
    assert in_order(keys) == list(range(len(keys)))
    lines = grouped(dict(zip(keys, rows.values(), strict=True)))
    read = [Key.of(path) for pattern, _ in lines for path in expanded(pattern)]
    assert [read[at] for at in in_order(read)] == keys


@given(rows)
@settings(max_examples=200, deadline=None)
def test_what_was_read_is_written_as_it_was(rows: dict[str, str]) -> None:
    lines = grouped({Key.of(text): value for text, value in rows.items()})
    read = {Key.of(path): value for pattern, value in lines for path in expanded(pattern)}
    assert grouped(read) == lines


def test_blocks_are_one_line_and_the_odd_one_another() -> None:
    rows = {Key.of(f"h.{n}.mlp/mul#1"): "o" if n != 7 else "i" for n in range(12)}
    assert grouped(rows) == [("h.{0..6,8..11}.mlp/mul#1", "o"), ("h.7.mlp/mul#1", "i")]
    nested = {Key.of(f"h.{n}.experts.{m}.up"): "x" for n in (0, 1) for m in range(3)}
    assert grouped(nested) == [("h.{0,1}.experts.{0..2}.up", "x")]


def test_ops_stand_between_the_modules_that_they_join() -> None:
    texts = ["l.0.a/x#1", "l.0/add#1", "l.0.b/x#1", "l.1.a/x#1", "l.1/add#1", "l.1.b/x#1", "/sum#1"]
    keys = [Key.of(text) for text in texts]
    assert in_order(keys) == list(range(len(keys)))
    assert [line for line, _ in grouped(dict.fromkeys(keys, ""))] == [
        "l.{0,1}.a/x#1",
        "l.{0,1}/add#1",
        "l.{0,1}.b/x#1",
        "/sum#1",
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a.{0..3", "no set of numbers"),
        ("a.{0..3}b", "no set of numbers"),
        ("a.{}", "neither a number nor a range"),
        ("a.{0...3}", "neither a number nor a range"),
        ("a.{3..0}", "neither a number nor a range"),
        ("a.{0,x}", "neither a number nor a range"),
        ("a.{-1..2}", "neither a number nor a range"),
        ("a.{0, 1}", "without spaces"),
        ("a.{1,0}", "not ascending"),
        ("a.{0..3,2}", "not ascending"),
        ("a.{0..999999999}", f"more than {MOST_PATHS:,} paths"),
        ("{0..9999}.{0..9999}", f"more than {MOST_PATHS:,} paths"),
        ("a.{0..99999999999}", "neither a number nor a range"),
    ],
)
def test_malformed_patterns(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expanded(pattern)
