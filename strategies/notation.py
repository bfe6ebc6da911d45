"""Index notation: which index each dimension of an op's tensors carries.

    linear        "*b i, o i, +o -> *b o"     an index absent from the output is summed over
    softmax       "*b [k] -> *b [k]"          [k] must be whole on every rank
    heads         "*b (h d) -> *b h d"        only the leading factor of a group can be split

`*b` stands for any number of dimensions, aligned from the right as broadcasting does; `1` is a
dimension of size one; `+` marks an addend, an argument that the result only adds. After einops
(Rogozhnikov 2022), with brackets, groups and addends given the meaning that sharding needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoplan.errors import RuleError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dim:
    """One dimension as written: its factors, outermost first; `whole` if in brackets."""

    factors: tuple[str, ...]
    whole: bool = False

    @property
    def is_star(self) -> bool:
        return self.factors[0].startswith("*")


@dataclass(frozen=True)
class Term:
    """One tensor as written."""

    dims: tuple[Dim, ...]
    addend: bool = False


@dataclass(frozen=True)
class Notation:
    """A parsed rule text: the tensors that go in and come out."""

    inputs: tuple[Term, ...]
    outputs: tuple[Term, ...]


@dataclass(frozen=True)
class Bound:
    """A notation on real shapes.

    `inputs` and `outputs` give for each dimension the index by which it can be split, or None.
    Indices in `aligned` split only where the number of parts divides them, because their shards
    must line up with those of a merged dimension. `sizes` holds every index, whole ones too.
    """

    inputs: tuple[tuple[str | None, ...], ...]
    outputs: tuple[tuple[str | None, ...], ...]
    sizes: Mapping[str, int]
    aligned: frozenset[str] = frozenset()
    addends: frozenset[int] = frozenset()

    @property
    def indices(self) -> tuple[str, ...]:
        """The indices that can be split, in order of first appearance, inputs first."""
        seen: dict[str, None] = {}
        for dims in (*self.inputs, *self.outputs):
            seen.update((index, None) for index in dims if index is not None)
        return tuple(seen)


_TOKEN = re.compile(r"\s*(\*\w+|\w+|\[\s*\w+\s*\]|\([^()]*\))")


_LABEL = re.compile(r"B|P\d*")


def numbered(count: int) -> list[str]:
    """An index for each of `count` dimensions."""
    return [f"d{i}" for i in range(count)]


def parse(text: str) -> Notation:
    """Read `"*b i, o i, +o -> *b o"`; raises RuleError naming the part that cannot be read."""
    sides = text.split("->")
    if len(sides) != 2:
        raise RuleError(f"rule {text!r} needs exactly one '->' between inputs and outputs.")
    inputs, outputs = (tuple(_parse_term(t, text) for t in _terms(side)) for side in sides)
    return Notation(inputs, outputs)


def _terms(side: str) -> list[str]:
    return side.split(",") if side.strip() or "," in side else [""]


def _parse_term(term: str, text: str) -> Term:
    body = term.strip()
    addend = body.startswith("+")
    body = body.removeprefix("+")
    dims: list[Dim] = []
    position = 0
    while position < len(body.rstrip()):
        match = _TOKEN.match(body, position)
        if match is None:
            raise RuleError(f"rule {text!r}: cannot read {body[position:].strip()!r}.")
        token = match.group(1)
        if token.startswith("["):
            dims.append(Dim((token[1:-1].strip(),), whole=True))
        elif token.startswith("("):
            dims.append(Dim(tuple(token[1:-1].split())))
        else:
            dims.append(Dim((token,)))
        for name in dims[-1].factors:
            if _LABEL.fullmatch(name):
                raise RuleError(f"rule {text!r}: {name} names a layout; call the index otherwise.")
        position = match.end()
    if sum(dim.is_star for dim in dims) > 1:
        raise RuleError(f"rule {text!r}: one '*' a tensor at most, got {body!r}.")
    return Term(tuple(dims), addend)


@dataclass
class _Binding:
    """Work space of `bind`."""

    text: str
    sizes: dict[str, int] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    aligned: set[str] = field(default_factory=set)

    def see(self, index: str, size: int) -> None:
        known = self.sizes.get(index, 1)
        if known != 1 and size not in (1, known):
            raise RuleError(f"rule {self.text!r}: index {index} is {known} here and {size} there.")
        self.sizes[index] = max(known, size)


def bind(
    notation: Notation,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    group_sizes: Mapping[str, int] | None = None,
) -> Bound:
    """Put `notation` on shapes; raises RuleError where they do not fit.

    `group_sizes` gives sizes of factors that no dimension shows alone.
    """
    text = str(notation)
    if len(inputs) != len(notation.inputs) or len(outputs) != len(notation.outputs):
        raise RuleError(
            f"rule has {len(notation.inputs)} inputs and {len(notation.outputs)} outputs, "
            f"the op {len(inputs)} and {len(outputs)}."
        )
    terms = (*notation.inputs, *notation.outputs)
    shapes = (*inputs, *outputs)
    star = max(
        (len(s) - len(t.dims) + 1 for t, s in zip(terms, shapes, strict=True) if _has_star(t)),
        default=0,
    )
    spelled = [
        _spell(term, len(shape), star, text) for term, shape in zip(terms, shapes, strict=True)
    ]
    work = _Binding(text, sizes=dict(group_sizes or {}))
    for dims, shape in zip(spelled, shapes, strict=True):
        for dim, size in zip(dims, shape, strict=True):
            if len(dim.factors) == 1:
                if dim.factors[0] != "1":
                    work.see(dim.factors[0], size)
                if dim.whole:
                    work.whole.add(dim.factors[0])
            else:
                work.aligned.add(dim.factors[0])
    for dims, shape in zip(spelled, shapes, strict=True):
        for dim, size in zip(dims, shape, strict=True):
            _close_group(dim, size, work)
    names = [
        tuple(_split_index(dim, size, work) for dim, size in zip(dims, shape, strict=True))
        for dims, shape in zip(spelled, shapes, strict=True)
    ]
    count = len(inputs)
    addends = frozenset(i for i, term in enumerate(notation.inputs) if term.addend)
    return Bound(
        tuple(names[:count]), tuple(names[count:]), work.sizes, frozenset(work.aligned), addends
    )


def _has_star(term: Term) -> bool:
    return any(dim.is_star for dim in term.dims)


def _spell(term: Term, ndim: int, star: int, text: str) -> tuple[Dim, ...]:
    """Replace `*b` by numbered dimensions, aligned from the right."""
    if not _has_star(term):
        if len(term.dims) != ndim:
            raise RuleError(f"a tensor of {ndim} dimensions does not fit {term.dims} in {text}.")
        return term.dims
    length = ndim - len(term.dims) + 1
    if length < 0:
        raise RuleError(f"a tensor of {ndim} dimensions does not fit {term.dims} in {text}.")
    result: list[Dim] = []
    for dim in term.dims:
        if dim.is_star:
            name = dim.factors[0][1:]
            result.extend(Dim((f"{name}{i}",)) for i in range(star - length, star))
        else:
            result.append(dim)
    return tuple(result)


def _close_group(dim: Dim, size: int, work: _Binding) -> None:
    if len(dim.factors) == 1:
        return
    unknown = [factor for factor in dim.factors if factor not in work.sizes]
    known = math.prod(work.sizes[factor] for factor in dim.factors if factor in work.sizes)
    if len(unknown) > 1 or size % max(known, 1) or (not unknown and known != size):
        raise RuleError(f"group {' '.join(dim.factors)} does not fit a dimension of size {size}.")
    for factor in unknown:
        work.sizes[factor] = size // known


def _split_index(dim: Dim, size: int, work: _Binding) -> str | None:
    index = dim.factors[0]
    if index == "1" or dim.whole or index in work.whole or work.sizes.get(index, 1) == 1:
        return None
    if len(dim.factors) == 1 and size == 1:
        return None
    return index


def bind_reshape(source: Shape, target: Shape) -> Bound:
    """The notation of a row-major reshape, found from the shapes.

    Dimensions pair up where running products agree. Inside a group of unequal dimensions only the
    leading factor common to both sides can be split, and only evenly.
    """
    if 0 in source:
        return Bound(((None,) * len(source),), ((None,) * len(target),), {})
    left: list[str | None] = [None] * len(source)
    right: list[str | None] = [None] * len(target)
    sizes: dict[str, int] = {}
    aligned: set[str] = set()
    i = j = 0
    while i < len(source) or j < len(target):
        first_i, first_j = i, j
        here = source[i] if i < len(source) else 1
        there = target[j] if j < len(target) else 1
        i, j = min(i + 1, len(source)), min(j + 1, len(target))
        while here != there:
            if here < there:
                here, i = here * source[i], i + 1
            else:
                there, j = there * target[j], j + 1
        lead_i = next((k for k in range(first_i, i) if source[k] > 1), None)
        lead_j = next((k for k in range(first_j, j) if target[k] > 1), None)
        if lead_i is None or lead_j is None:
            continue
        size = math.gcd(source[lead_i], target[lead_j])
        if size == 1:
            continue
        name = f"r{len(sizes)}"
        sizes[name] = size
        left[lead_i] = right[lead_j] = name
        if not source[lead_i] == target[lead_j] == here:
            aligned.add(name)
    return Bound((tuple(left),), (tuple(right),), sizes, frozenset(aligned))
