"""What microbatches in flight add to a pipeline stage: all that one keeps from forward to backward.

A stage that has run forward on several microbatches, and backward on none of them, holds the
activations of each. The timeline follows one of them; the others only lie there.

GPipe holds the most before the first backward, when parameters have no gradients yet. Then the
timeline follows two microbatches: the one whose backward comes first, and a later one, beside fewer
others, with gradients that were there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from autoplan.memory.timeline import Amounts, FloatArray, Term, Timeline
from autoplan.sites import Candidate

PARAMETER_GRADIENT = "parameter gradient"
"""Begins the key of what the body makes of a parameter's gradient, and adds up."""
ACCUMULATING = "accumulating"
"""Begins the key of a parameter's gradient beside the sum that it is added to."""


def with_others(one: Timeline, in_flight: int, later: int) -> Timeline:
    """The timeline of one microbatch beside others: `in_flight` together at most.

    later: at most together once parameters have gradients.
    """
    if later < in_flight:
        return _in_two_rounds(one, in_flight, later)
    last = one.schedule.last
    return replace(one, terms=(*one.terms, *_of_others(one, one.terms, in_flight, 1, last)))


def _in_two_rounds(one: Timeline, in_flight: int, later: int) -> Timeline:
    """The moments of the body twice: of the first backward, and of a later one."""
    last = one.schedule.last
    terms = [each for term in one.terms for each in _twice(term, one)]
    terms += _of_others(one, one.terms, in_flight, 1, last)
    terms += _of_others(one, one.terms, later, last + 1, 2 * last)
    return replace(one, num_moments=one.num_moments + last, terms=tuple(terms), rounds=2)


def _twice(term: Term, one: Timeline) -> Iterator[Term]:
    """A term of one microbatch's timeline, on that of two."""
    last = one.schedule.last
    if term.key[0] == ACCUMULATING:
        yield replace(term, first=term.first + last, last=term.last + last)
    elif term.key[0] == PARAMETER_GRADIENT:
        yield replace(term, first=term.made, last=term.last + last)
    elif term.first > 0 and term.last <= last:
        yield term
        yield replace(term, first=term.first + last, last=term.last + last)
    else:
        first = term.first + last * (term.first > last)
        yield replace(term, first=first, last=term.last + last * (term.last > 0))


def _of_others(
    one: Timeline, terms: Iterable[Term], in_flight: int, first: int, last: int
) -> Iterator[Term]:
    """A term for every one that is alive across the turn from forward to backward."""
    if in_flight == 1:
        return
    turn = len(one.annotated.sites)  # the last moment of forward
    for term in terms:
        if term.kind == "activations" and term.first <= turn < term.last:
            amounts = _times(term.amounts, in_flight - 1)
            key = ("in flight", in_flight, term.key)
            yield replace(term, first=first, last=last, amounts=amounts, key=key)


def _times(amounts: Amounts, count: int) -> Amounts:
    def several(one: Sequence[Candidate], other: Sequence[Candidate]) -> FloatArray:
        return count * amounts(one, other)

    return several
