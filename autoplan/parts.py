"""What an op does on parts of an example: which dimensions can be cut together, what passes P.

Every set of dimensions of one size is tried, on uneven parts, so that dimensions of accidentally
equal size are told apart: the parts differ from what is not cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # public use in torch.export's own docs

from autoplan.errors import RuleError
from autoplan.layouts import Entry, P, Split
from autoplan.registry import ExampleCall

TOLERANCE = 1e-9
"""Largest error of parts put together, relative to the largest number among them."""

_MOST_TENSORS = 6
"""Of more tensors than this only each alone and all together are tried as addends."""


@dataclass(frozen=True)
class CutIndex:
    """Dimensions cut together, one a tensor at most, and where the outputs then lie.

    addends: inputs that must then be addends, for the result only adds them.
    """

    dims: tuple[int | None, ...]
    outputs: tuple[Entry, ...]
    addends: frozenset[int] = frozenset()

    @property
    def sums(self) -> bool:
        return all(entry == P for entry in self.outputs)


def run(call: ExampleCall, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The op's outputs on other tensors than the example's."""
    with torch.no_grad():
        found = pytree.tree_leaves(call(*(x.clone() for x in tensors)))
    return tuple(each for each in found if isinstance(each, Tensor))


def check_example(call: ExampleCall) -> None:
    """Raise RuleError where the op is random, or its example tells nothing apart."""
    whole = run(call, call.tensors)
    if not call.tensors or not whole:
        raise RuleError(f"{call.op} takes or returns no tensor here: there is nothing to split.")
    for number, x in enumerate(call.tensors):
        if x.numel() > 1 and bool((x == x.flatten()[0]).all()):
            raise RuleError(
                f"tensor {number} of the example of {call.op} holds equal numbers, which tell "
                "nothing apart; fill it with random ones."
            )
    again = run(call, call.tensors)
    if not all(_equal(a, b) for a, b in zip(again, whole, strict=True)):
        raise RuleError(f"{call.op} gives another result each time; no rule can split it.")


# -- dimensions that can be cut -------------------------------------------------------------


def find_indices(call: ExampleCall) -> list[CutIndex]:
    """Every set of dimensions that can be cut together, no dimension in two of them."""
    whole = run(call, call.tensors)
    found = []
    for dims in _sets_of_dims(call.tensors):
        if _has_no_effect(call, whole, dims):
            continue
        others = [i for i in _floating(call.tensors) if dims[i] is None]
        for addends in (frozenset[int](), *_subsets(others)):
            entries = _entries(call, whole, dims, addends)
            if entries is not None and (not addends or set(entries) == {P}):
                found.append(CutIndex(dims, entries, addends))
                break
    found.sort(key=lambda each: (each.sums, len(each.dims) - each.dims.count(None)))
    taken: set[tuple[int, int]] = set()
    kept = []
    for index in found:
        places = _places(index)
        if not places & taken:
            taken |= places
            kept.append(index)
    return sorted(kept, key=lambda each: min(_places(each)))


def still_holds(call: ExampleCall, index: CutIndex) -> bool:
    """Whether `index`, found on a call of the same op, cuts this one alike."""
    whole = run(call, call.tensors)
    return index.outputs == _entries(call, whole, index.dims, index.addends)


def holds_without_rows(call: ExampleCall, index: CutIndex) -> bool:
    """Whether the op does its part on a shard without rows."""
    whole, size = run(call, call.tensors), _size(call, index.dims)
    return all(
        index.outputs == _entries_of_cut(call, whole, index.dims, index.addends, rows)
        for rows in ((size, 0), (0, size))
    )


def with_other_sizes(call: ExampleCall, indices: Sequence[CutIndex]) -> ExampleCall:
    """The example with indices longer, each by another number of rows, where the op takes it.

    Rows are repeated from the start, so that numbers stay what they may be.
    """
    for number, index in enumerate(indices):
        tensors = list(call.tensors)
        for at, dim in enumerate(index.dims):
            if dim is not None:
                size = tensors[at].shape[dim]
                rows = torch.arange(size + 2 + number) % size
                longer = tensors[at].index_select(dim, rows)
                buffer = isinstance(tensors[at], nn.Buffer)
                tensors[at] = nn.Buffer(longer) if buffer else longer
        longer_call = replace(call, tensors=tuple(tensors))
        try:
            run(longer_call, longer_call.tensors)
        except Exception:  # an argument holds the size
            continue
        call = longer_call
    return call


def _has_no_effect(call: ExampleCall, whole: Sequence[Tensor], dims: Sequence[int | None]) -> bool:
    """Whether the result is the same without most of the rows: it depends on a type alone."""
    few = [
        x if dim is None else x.narrow(dim, 0, 1) for x, dim in zip(call.tensors, dims, strict=True)
    ]
    try:
        found = run(call, few)
    except Exception:  # whatever an op says of shapes that it does not take
        return False
    return len(found) == len(whole) and all(map(_equal, found, whole))


def _places(index: CutIndex) -> set[tuple[int, int]]:
    return {(at, dim) for at, dim in enumerate(index.dims) if dim is not None}


def _sets_of_dims(tensors: Sequence[Tensor]) -> Iterator[tuple[int | None, ...]]:
    """Dimensions of one size, at most one of each tensor."""
    for size in sorted({size for x in tensors for size in x.shape if size > 1}):
        choices = [[None, *(d for d, n in enumerate(x.shape) if n == size)] for x in tensors]
        yield from (dims for dims in itertools.product(*choices) if set(dims) != {None})


def _size(call: ExampleCall, dims: Sequence[int | None]) -> int:
    pairs = zip(call.tensors, dims, strict=True)
    return next(x.shape[dim] for x, dim in pairs if dim is not None)


def _entries(
    call: ExampleCall,
    whole: Sequence[Tensor],
    dims: Sequence[int | None],
    addends: frozenset[int],
) -> tuple[Entry, ...] | None:
    """Where the outputs lie if `dims` are cut, the same for all ways to cut; None if nowhere."""
    found: tuple[Entry, ...] | None = None
    for rows in _cuts(_size(call, dims)):
        entries = _entries_of_cut(call, whole, dims, addends, rows)
        if entries is None or found not in (None, entries):
            return None
        found = entries
    return found


def _cuts(size: int) -> list[tuple[int, ...]]:
    """Ways to cut `size` rows: one row apart on either side, in halves, in three as by chunk."""
    third = -(-size // 3)
    half = size // 2
    cuts: list[tuple[int, ...]] = [(1, size - 1), (size - 1, 1), (size - half, half)]
    cuts += [(third, third, size - 2 * third)] if size > 2 * third else []
    return list(dict.fromkeys(cuts))


def _entries_of_cut(
    call: ExampleCall,
    whole: Sequence[Tensor],
    dims: Sequence[int | None],
    addends: frozenset[int],
    rows: tuple[int, ...],
) -> tuple[Entry, ...] | None:
    columns: list[Sequence[Tensor]] = []
    for number, (x, dim) in enumerate(zip(call.tensors, dims, strict=True)):
        if dim is not None:
            columns.append(torch.split(x, list(rows), dim))
        else:
            columns.append(_addends(x, len(rows)) if number in addends else [x] * len(rows))
    try:
        parts = [run(call, part) for part in zip(*columns, strict=True)]
    except Exception:  # whatever an op says of shapes that it does not take
        return None
    if any(len(part) != len(whole) for part in parts):
        return None
    entries = [
        _entry(found, w, rows) for found, w in zip(zip(*parts, strict=True), whole, strict=True)
    ]
    return tuple(each for each in entries if each is not None) if None not in entries else None


def _entry(parts: Sequence[Tensor], whole: Tensor, rows: tuple[int, ...]) -> Entry | None:
    """How the parts make up the whole: S along a dimension, P, or None."""
    for dim, size in enumerate(whole.shape):
        if size != sum(rows):
            continue
        shapes = [(*whole.shape[:dim], n, *whole.shape[dim + 1 :]) for n in rows]
        fits = [tuple(part.shape) for part in parts] == shapes
        if fits and _equal(torch.cat([*parts], dim), whole):
            return Split(dim)
    return P if _adds_up(parts, whole) else None


# -- addends --------------------------------------------------------------------------------


def find_carriers(call: ExampleCall) -> list[frozenset[int]]:
    """The smallest sets of inputs in which the op is linear: P passes through them together."""
    found: list[frozenset[int]] = []
    for carriers in _subsets(_floating(call.tensors)):
        if not any(each <= carriers for each in found) and passes(call, carriers):
            found.append(carriers)
    return found


def passes(call: ExampleCall, carriers: frozenset[int]) -> bool:
    """Whether the op on addends gives addends: large ones too, which a limit would cut off."""
    whole = run(call, call.tensors)
    for count, scale in ((2, 1.0), (3, 1e4), (2, 1e-4)):
        columns = [
            _addends(x, count, scale) if number in carriers else [x] * count
            for number, x in enumerate(call.tensors)
        ]
        try:
            parts = [run(call, part) for part in zip(*columns, strict=True)]
        except Exception:  # whatever an op says of numbers that it does not take
            return False
        if not all(map(_adds_up, zip(*parts, strict=True), whole)):
            return False
    return True


def _floating(tensors: Sequence[Tensor]) -> list[int]:
    """Inputs that may be addends; a whole number is often a place in a table, its addends none."""
    return [i for i, x in enumerate(tensors) if x.is_floating_point() or x.is_complex()]


def _subsets(numbers: Sequence[int]) -> Iterator[frozenset[int]]:
    """Subsets that are not empty, small ones first."""
    sizes = range(1, len(numbers) + 1)
    for size in sizes if len(numbers) <= _MOST_TENSORS else (1, len(numbers)):
        yield from map(frozenset, itertools.combinations(numbers, size))


def _addends(x: Tensor, count: int, scale: float = 1.0) -> list[Tensor]:
    """Arbitrary tensors that sum to `x`."""
    generator = torch.Generator().manual_seed(count)
    weights = torch.randn((count - 1, *x.shape), generator=generator, dtype=torch.float64) * scale
    others = [x * weight.to(x.device) for weight in weights]
    return [x - torch.stack(others).sum(0), *others]


def _adds_up(parts: Sequence[Tensor], whole: Tensor) -> bool:
    """Whether the parts are addends of `whole`; zeros and flags tell nothing."""
    if whole.dtype == torch.bool or not bool(whole.any()):
        return False
    if any(part.shape != whole.shape or part.dtype != whole.dtype for part in parts):
        return False
    scale = max(float(part.abs().max()) for part in parts)
    return _equal(torch.stack([*parts]).sum(0).to(whole.dtype), whole, scale)


def _equal(found: Tensor, expected: Tensor, scale: float = 0.0) -> bool:
    """Equal but for rounding, which is relative to the largest number, or to `scale`."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(found, expected)
    finite = expected[expected.isfinite()].abs()
    scale = max(scale, float(finite.max()) if finite.numel() else 0.0)
    if not math.isfinite(scale):
        return False
    return torch.allclose(found, expected, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)
