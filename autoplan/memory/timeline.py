"""The timeline of a step: which bytes are alive at which moment, as sums over choices and pairs.

The moments, in order: the prologue gathers parameters; forward, site by site; backward, in reverse;
the prologue's backward reduces gradients; the optimizer steps. What is alive at a moment is a sum
of terms, each of one site's choice or of the choices at both ends of an edge, so that the solver
can limit it (`Timeline.limit`), and a plan's peak is read off the same terms (`Timeline.peak`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autoplan.memory.schedule import Schedule
from autoplan.sites import Annotated, Candidate
from autoplan.solver import Limit

FloatArray: TypeAlias = NDArray[np.float64]
Kind = Literal[
    "parameters", "gradients", "optimizer", "gathered", "activations", "inputs", "temporaries"
]
Amounts = Callable[[Sequence[Candidate], Sequence[Candidate]], FloatArray]
"""Bytes of candidates of a site and of its reader: [k, k reader], or [k, 1] without a reader."""


@dataclass(frozen=True)
class Term:
    """Bytes that are alive from moment `first` to moment `last`.

    `key` names the function `amounts` among the terms of equal candidates. `made`: of a parameter's
    gradient that adds up, the moment at which a microbatch's comes to it.
    """

    kind: Kind
    first: int
    last: int
    site: int
    amounts: Amounts
    key: Any
    reader: int | None = None
    made: int = 0


@dataclass(frozen=True, eq=False)
class Peak:
    """Bytes alive at the worst moment, by kind."""

    moment: int
    kinds: dict[Kind, float]

    @property
    def total(self) -> float:
        return sum(self.kinds.values())


@dataclass(frozen=True, eq=False)
class Timeline:
    """All terms of a step of `annotated`, and `constants`: bytes that no choice changes.

    rounds: how often the moments of the body stand there, for several microbatches.
    """

    annotated: Annotated
    num_moments: int
    terms: tuple[Term, ...]
    constants: tuple[tuple[Kind, float], ...]
    schedule: Schedule
    rounds: int = 1
    _values: dict[Any, float] = field(default_factory=dict)
    _arrays: dict[Any, FloatArray] = field(default_factory=dict)

    def totals(self, choices: Sequence[int]) -> FloatArray:
        """Bytes alive under `choices`: [num_moments]."""
        change = np.zeros(self.num_moments + 1)
        for term in self.terms:
            value = self.value(term, choices)
            change[term.first] += value
            change[term.last + 1] -= value
        totals: FloatArray = np.cumsum(change)[:-1] + sum(size for _, size in self.constants)
        return totals

    def peak(self, choices: Sequence[int]) -> Peak:
        """What is alive at the worst moment of `choices`."""
        return self.at(choices, int(self.totals(choices).argmax()))

    def at(self, choices: Sequence[int], moment: int) -> Peak:
        """What is alive at one moment."""
        kinds: dict[Kind, float] = {}
        for kind, size in self.constants:
            kinds[kind] = kinds.get(kind, 0.0) + size
        for term in self._alive(moment):
            kinds[term.kind] = kinds.get(term.kind, 0.0) + self.value(term, choices)
        return Peak(moment, kinds)

    def limit(self, moment: int, most: float) -> Limit:
        """The bytes alive at one moment, as a limit of `most` for the solver."""
        vectors: dict[int, FloatArray] = {}
        matrices: dict[tuple[int, int], FloatArray] = {}
        for term in self._alive(moment):
            array = self.array(term)
            if term.reader is None:
                vectors[term.site] = vectors.get(term.site, 0.0) + array[:, 0]
            elif array.any():
                edge = term.site, term.reader
                matrices[edge] = matrices.get(edge, 0.0) + array
        constant = sum(size for _, size in self.constants)
        return Limit(self.name(moment), most, vectors, matrices, constant)

    def name(self, moment: int) -> str:
        """The moment in words."""
        if moment == 0:
            return "gathering parameters"
        last = self.schedule.last
        if moment > self.rounds * last:
            return ("reducing gradients", "the optimizer's step")[moment - self.rounds * last - 1]
        number, place = divmod(moment - 1, last)
        doing, at = self.schedule.moments[place]
        site = self.annotated.sites[at]
        whose = ", of a later microbatch" if number else ""
        return f"{doing} of {site.name} in {site.path or 'the model'}{whose}"

    def _alive(self, moment: int) -> Iterator[Term]:
        return (term for term in self.terms if term.first <= moment <= term.last)

    def value(self, term: Term, choices: Sequence[int]) -> float:
        sites = self.annotated.sites
        one = sites[term.site].candidates[choices[term.site]]
        other = None if term.reader is None else sites[term.reader].candidates[choices[term.reader]]
        key = term.key, id(one), id(other)
        if key not in self._values:
            array = term.amounts([one], [] if other is None else [other])
            self._values[key] = float(array[0, 0])
        return self._values[key]

    def array(self, term: Term) -> FloatArray:
        """Bytes of a term by candidates of its site and its reader: [k, k reader], or [k, 1]."""
        sites = self.annotated.sites
        one = sites[term.site].candidates
        other = () if term.reader is None else sites[term.reader].candidates
        key = term.key, id(one), id(other)
        if key not in self._arrays:
            self._arrays[key] = term.amounts(one, other)
        return self._arrays[key]
