"""The language of hints: every form has a text, and a text means what its objects mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan import BP, B, Layout, P, S
from autoplan.errors import HintError, LayoutError
from autoplan.hints.conditions import ANY, SPLIT, Condition
from autoplan.hints.text import Clause, Prefer, clauses_of, text_of
from autoplan.layouts import Entry, Partial

MAX = Partial("max")
ENTRIES: list[Entry] = [S(0), S(1), S(2), S(-1), P, MAX, B, BP]


def condition(*allowed: Entry | str, refused: tuple[Entry | str, ...] = ()) -> Condition:
    return Condition(frozenset(allowed) or None, frozenset(refused))


ATOMS: Any = st.sampled_from([*ENTRIES, SPLIT])
CONDITIONS = st.builds(
    lambda allowed, refused: Condition(allowed, refused),
    st.none() | st.frozensets(ATOMS | st.just(ANY), min_size=1, max_size=3),
    st.frozensets(ATOMS, max_size=2),
).filter(lambda each: each.allowed is not None or bool(each.refused))
SPREADS = (
    CONDITIONS
    | st.lists(CONDITIONS, min_size=2, max_size=3).map(tuple)
    | st.dictionaries(st.sampled_from(["a", "data", "tensor_2"]), CONDITIONS, min_size=1)
)
PRICES = st.none() | st.integers(1, 10**11).map(lambda nanoseconds: nanoseconds / 1e9)
CLAUSES = st.builds(Clause, st.sampled_from(["value", "storage", "use"]), SPREADS, PRICES)
STAGES = st.integers(-3, 9).map(lambda n: Clause("stage", Condition(None), stage=n))


@given(st.lists(CLAUSES | STAGES, min_size=1, max_size=3))
def test_a_text_reads_as_what_it_was_written_from(clauses: list[Clause]) -> None:
    read = clauses_of("; ".join(map(str, clauses)))
    assert len(read) == len(clauses)
    for one, other in zip(read, clauses, strict=True):
        assert (one.slot, one.where, one.stage) == (other.slot, other.where, other.stage)
        assert one.price_s == other.price_s


PAIRS: list[tuple[Any, str]] = [
    (S(1), "S(1)"),
    ((B, S(0)), "(B, S(0))"),
    ((B, S(0)), "B, S(0)"),
    (Layout((S(0), B)), " ( S(0) ,B ) "),
    (["S(0)|S(1)", "!P"], "(S(1)|S(0), !P)"),
    ((S(0),), "(S(0),)"),
    ((S(0),), "S(0)"),
    (Layout(()), "()"),
    ({"tensor": S(0)}, "tensor=S(0)"),
    ({"tensor": S(0), "data": "B|B/P"}, "tensor=S(0), data=B/P|B"),
    ({"tensor": ("!S",)}, "tensor=!S"),
    ({"use": BP, "storage": (S(0), B)}, "use: B/P; storage: (S(0), B)"),
    ({"use": {"tensor": "S(0)", "data": B}}, "use: tensor=S(0), data=B"),
    ({"op": "i|o"}, "op: o|i"),
    ({"op": {"tensor": "!i"}}, "op: tensor=!i"),
    ({"op": ["i", "o|B"]}, "op: (i, B|o)"),
    ({"stage": -1}, "stage: -1"),
    ({"stage": "0", "tensor": "S(1)"}, "tensor=S(1); stage: 0"),
    (Prefer("S(1)", ms=0.5), "S(1) ~ 0.5 ms"),
    (Prefer("S(1)", ms=0.5), "S(1) ~ 500us"),
    (Prefer({"a": "B", "use": BP}, ms=2), "a=B ~ 2 ms; use: B/P ~ 0.002 s"),
    ({"a": Prefer(S(0), ms=1), "b": "B"}, "b=B; a=S(0) ~ 1 ms"),
    ({"a": "S(0) ~ 1 ms", "b": "B"}, "b=B; a=S(0) ~ 1e0 ms"),
    ({"use": Prefer("!S", ms=3)}, "use: !S ~ 3 ms"),
]


@pytest.mark.parametrize(("value", "text"), PAIRS, ids=[text for _, text in PAIRS])
def test_objects_and_texts_mean_the_same(value: Any, text: str) -> None:
    def ordered(clauses: tuple[Clause, ...]) -> list[str]:
        return sorted(map(str, clauses))

    assert ordered(clauses_of(value)) == ordered(clauses_of(text))
    assert ordered(clauses_of(text_of(value))) == ordered(clauses_of(value))


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("S(1)", [S(1)]),
        ("S(0)|B", [S(0), B]),
        ("S", [S(0), S(1), S(2), S(-1)]),
        ("*", ENTRIES),
        ("!S", [P, MAX, B, BP]),
        ("!S(1)", [S(0), S(2), S(-1), P, MAX, B, BP]),
        ("!P", [S(0), S(1), S(2), S(-1), B, BP]),
        ("!P(max)", [S(0), S(1), S(2), S(-1), P, B, BP]),
        ("!B", [S(0), S(1), S(2), S(-1), P, MAX]),
        ("!B/P", [S(0), S(1), S(2), S(-1), P, MAX, B]),
        ("!S & !P", [B, BP]),
        ("S & !S(0)", [S(1), S(2), S(-1)]),
        ("S(0)|B|P & !B", [S(0), P]),
        ("!B&S(0)|B", [S(0)]),
    ],
)
def test_what_a_condition_accepts(text: str, accepted: list[Entry]) -> None:
    (clause,) = clauses_of(text)
    assert isinstance(clause.where, Condition)
    assert [each for each in ENTRIES if clause.where.accepts(each)] == accepted


def test_dimensions_count_from_the_end() -> None:
    both = condition(S(-1), SPLIT, B, refused=(S(-2),))
    assert both.resolve(3) == condition(S(2), SPLIT, B, refused=(S(1),))
    with pytest.raises(LayoutError, match=r"S\(2\).*2 dimensions"):
        condition(B, refused=(S(2),)).resolve(2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", r"cannot read layout '' at ''.*e\.g\."),
        ("Q", r"cannot read layout 'Q' at 'Q'; entries are S\(dim\), S, P, B, B/P"),
        ("S(0)|", r"cannot read layout 'S\(0\)\|' at ''"),
        ("S(0) S(1)", r"at 'S\(0\) S\(1\)'"),
        ("S(x)", "cannot read layout"),
        ("(B, S(0)", "cannot read layout"),
        ("!", "cannot read layout"),
        ("!*", "refuses every layout"),
        ("S & B", "'&' joins one list of alternatives and what is refused"),
        ("a=S(0), B", "where one entry names its axis all do"),
        ("=B", "where one entry names its axis all do"),
        ("S(1) ~", r"cannot read the price in 'S\(1\) ~'; write e\.g\. 'S\(1\) ~ 0\.5 ms'"),
        ("S(1) ~ 3", "cannot read the price"),
        ("S(1) ~ 0 ms", "cannot read the price"),
        ("S(1) ~ -2 ms", "cannot read the price"),
        ("S(1) ~ 3 days", "cannot read the price"),
        ("S(1) ~ 1 ms ~ 2 ms", "cannot read the price"),
        ("used: B", "before ':' stands one of storage, use, op, stage, not 'used'"),
        ("stage: first", "a stage is a whole number"),
        ("stage: 0 ~ 1 ms", "a stage has no price"),
        ({"stage": 1.5}, "a stage is a whole number"),
        ({"stage": True}, "a stage is a whole number"),
        ("op: S(1)", r"cannot read index 'S\(1\)'"),
        ({}, "an empty dict says nothing"),
        ({3: "B"}, "names of axes as keys, got 3"),
        ({"a": "(B, B)"}, "is not the layout of one axis"),
        ({"a": {"b": "B"}}, "is not the layout of one axis"),
        ({"use": "storage: B"}, "cannot read"),
        ({"use": {"stage": 0}}, "a layout belongs there"),
        (None, "cannot read None as a layout"),
        (3, "cannot read 3 as a layout"),
        ([3], "a layout entry is"),
        (Prefer(Prefer("B", ms=1), ms=1), "price, or a second one"),
        (Prefer("B ~ 1 ms", ms=1), "price, or a second one"),
        (Prefer({"stage": 0}, ms=1), "price, or a second one"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(value: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        clauses_of(value)


@pytest.mark.parametrize("ms", [0, -1.0, float("inf"), float("nan"), "1", None, True])
def test_a_price_is_a_positive_number(ms: Any) -> None:
    with pytest.raises(HintError, match="the price is a positive number of milliseconds"):
        Prefer("B", ms=ms)
