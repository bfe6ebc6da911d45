"""Narrowing: hints take candidates away; wishes put a price on those that break them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from autoplan.capture import Captured
from autoplan.errors import HintError, HintTextError, LayoutError
from autoplan.hints import At, Hint
from autoplan.layouts import Entry
from autoplan.mesh import Mesh
from autoplan.sites import Annotated, Candidate, Preference, results_by_module, tensor_of
from autoplan.strategies.rule import TensorMeta

Part = Callable[[Candidate], Sequence[Entry | str]]
"""What a hint looks at of a candidate: a layout, or the names of the split indices."""


@dataclass(frozen=True)
class Narrowed:
    """The candidates that hints leave a site, and what its wishes charge each of them."""

    candidates: tuple[Candidate, ...]
    wishes: tuple[tuple[Hint, tuple[float, ...]], ...] = ()

    def preferences(self, site: int) -> Iterable[Preference]:
        return (Preference(site, penalty_s, hint) for hint, penalty_s in self.wishes)


class Narrowing:
    """The hints of one mesh, applied site by site."""

    def __init__(self, captured: Captured, mesh: Mesh, hints: Sequence[Hint]) -> None:
        self.mesh = mesh
        self.values = _pinned_values(captured, hints)
        """Graph node and output -> the hints on this value."""
        self._hints = {at: _ByPath(h for h in hints if h.at == at) for at in _PATHS}
        self._kept: dict[Any, tuple[Candidate, ...]] = {}
        self._not_applied: list[str] = []
        self._unmet: dict[str, list[str]] = {}
        self._met: set[str] = set()
        self._indices = {
            h.origin: set[str]() for h in hints if h.at == "op" and h.required and not h.elsewhere
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Hints that were not applied, and wishes that no candidate meets."""
        unmet = (f"{hint} cannot be met {_places(paths)}" for hint, paths in self._unmet.items())
        return (*self._not_applied, *unmet)

    def parameter(self, candidates: tuple[Candidate, ...], path: str) -> Narrowed:
        """`candidates` of the parameter at `path`, by how it is stored and read."""
        pins: list[tuple[Hint, Part]] = []
        pins += ((hint, _stored) for hint in self._hints["storage"].of(path))
        pins += ((hint, _read) for hint in self._hints["use"].of(path))
        pins += ((hint, _gathered) for hint in self._hints["gather"].of(path))
        return self._narrow(candidates, pins, path)

    def not_gathered(self, candidates: tuple[Candidate, ...], path: str) -> Narrowed | None:
        """As `parameter`, for a parameter that its readers cannot read as the body gathers it.

        Hints that ask for that and are not required give way, and are noted; None if none is there.
        """
        yields = [each for each in self._hints["gather"].of(path) if _gives_way(each)]
        if not yields:
            return None
        self._not_applied += (_not_applied(hint, path) for hint in yields)
        pins: list[tuple[Hint, Part]] = []
        pins += ((hint, _stored) for hint in self._hints["storage"].of(path))
        pins += ((hint, _read) for hint in self._hints["use"].of(path))
        gathers = self._hints["gather"].of(path)
        pins += ((hint, _gathered) for hint in gathers if hint not in yields)
        return self._narrow(candidates, pins, path)

    def op(self, candidates: tuple[Candidate, ...], path: str, op: str) -> Narrowed:
        """`candidates` of an op of the module at `path`; a hint on an index it lacks is no pin."""
        pins: list[tuple[Hint, Part]] = []
        for hint in self._hints["op"].of(path):
            if hint.ops and op not in hint.ops:
                continue
            known = any(hint.accepts(self.mesh, each.labels) for each in candidates)
            if known or not hint.required:
                pins.append((hint, _labels))
                self._met.add(hint.origin)
            elif hint.origin in self._indices:
                labels = {label for each in candidates for label in each.labels}
                self._indices[hint.origin] |= labels
        return self._narrow(candidates, pins, path)

    def value(
        self,
        candidates: tuple[Candidate, ...],
        pins: Sequence[Hint],
        path: str,
        meta: TensorMeta,
        is_input: bool,
    ) -> Narrowed:
        """`candidates` of the boxing site behind a value that `pins` speak of."""
        for hint in pins:
            possible = any(hint.accepts(self.mesh, each.outputs[0]) for each in candidates)
            splits = all(each.only_splits for each in hint.conditions.values())
            if is_input and splits and not possible and hint.required and hint.price_s is None:
                raise HintError(_unsplittable(hint, self.mesh, path, meta))
        return self._narrow(candidates, [(hint, _read) for hint in pins], path)

    def refuse_idle(self) -> None:
        """Raise HintTextError for a hint on an index that no op of its modules has."""
        for origin, labels in self._indices.items():
            if origin not in self._met and not labels:
                raise HintTextError(
                    f"hint {origin} speaks of ops, and the modules that it names have none of "
                    "their own; name the modules inside them."
                )
            if origin not in self._met:
                raise HintTextError(
                    f"hint {origin} names an index that no op there is split over on mesh "
                    f"{self.mesh}; there are {', '.join(sorted(labels))}. plan.explain(path) shows "
                    "the ops."
                )

    def _narrow(
        self, candidates: tuple[Candidate, ...], pins: Sequence[tuple[Hint, Part]], path: str
    ) -> Narrowed:
        left, fixed = candidates, dict[str, None]()
        for hint, part in pins:
            if hint.price_s is not None:
                continue
            kept = tuple(each for each in left if hint.accepts(self.mesh, part(each)))
            if not kept and hint.required:
                alone = any(hint.accepts(self.mesh, part(each)) for each in candidates)
                raise HintError(_none_left(hint, path, self.mesh, fixed if alone else ()))
            if not kept:
                self._not_applied.append(_not_applied(hint, path))
                continue
            if len(kept) < len(left):
                fixed[hint.origin] = None
            left = self._kept.setdefault((id(left), tuple(map(id, kept))), kept)
        wishes = tuple(self._wishes(left, pins, path))
        if wishes:
            # A tuple of their own: repeated blocks with other wishes are other blocks.
            key = ("wishes", id(left), tuple(penalty_s for _, penalty_s in wishes))
            left = self._kept.setdefault(key, tuple(each for each in left))
        return Narrowed(left, wishes)

    def _wishes(
        self, left: Sequence[Candidate], pins: Sequence[tuple[Hint, Part]], path: str
    ) -> Iterator[tuple[Hint, tuple[float, ...]]]:
        for hint, part in pins:
            if hint.price_s is None:
                continue
            price_s = hint.price_s
            met = [hint.accepts(self.mesh, part(each)) for each in left]
            if not any(met):
                self._unmet.setdefault(hint.origin, []).append(path)
            elif not all(met):
                yield hint, tuple(0.0 if each else price_s for each in met)


def _not_applied(hint: Hint, path: str) -> str:
    return f"{hint} does not fit {path!r} and is not applied there"


def _gives_way(hint: Hint) -> bool:
    """Whether a hint on when a parameter is gathered is skipped where nothing satisfies it."""
    usual = all(each.accepts("step") for each in hint.conditions.values())
    return not usual and not hint.required and hint.price_s is None


def _places(paths: Sequence[str]) -> str:
    named = " and ".join(map(repr, paths[:2]))
    return f"at {named}" + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def _stored(candidate: Candidate) -> Sequence[Entry | str]:
    return candidate.storage or ()


def _read(candidate: Candidate) -> Sequence[Entry | str]:
    return candidate.outputs[0]


def _gathered(candidate: Candidate) -> Sequence[Entry | str]:
    return candidate.policies


def _labels(candidate: Candidate) -> Sequence[Entry | str]:
    return candidate.labels


def unmet_preferences(annotated: Annotated, choices: Sequence[int]) -> tuple[str, ...]:
    """A line for every wish that a plan breaks: at how many places, for what price."""
    broken: dict[str, list[float]] = {}
    for each in annotated.preferences:
        penalty_s = each.penalty_s[choices[each.site]]
        if penalty_s:
            broken.setdefault(each.hint.origin, []).append(penalty_s)
    wished: dict[str, int] = {}
    for each in annotated.preferences:
        wished[each.hint.origin] = wished.get(each.hint.origin, 0) + 1
    return tuple(
        f"{origin} is not met at {len(prices)} of {wished[origin]} places: what it would cost is "
        f"above its price of {sum(prices) * 1e3:.12g} ms"
        for origin, prices in broken.items()
    )


_PATHS: tuple[At, ...] = ("storage", "use", "gather", "op")


class _ByPath:
    """Hints by the path they name; globs are tried one by one."""

    def __init__(self, hints: Iterable[Hint]) -> None:
        self._exact: dict[str, list[tuple[int, Hint]]] = {}
        self._globs: list[tuple[int, Hint]] = []
        for number, hint in enumerate(hints):
            if re.search(r"[*?\[]", hint.pattern):
                self._globs.append((number, hint))
            else:
                self._exact.setdefault(hint.pattern, []).append((number, hint))

    def of(self, path: str) -> list[Hint]:
        """Those that match, in the order in which they were given."""
        found = [each for each in self._globs if each[1].matches(path)]
        found += self._exact.get(path, [])
        return [hint for _, hint in sorted(found, key=lambda each: each[0])]


def _pinned_values(
    captured: Captured, hints: Sequence[Hint]
) -> Mapping[tuple[str, int], Sequence[Hint]]:
    """The results of hinted modules, hinted arguments, and values hinted inside forward."""
    pinned: dict[tuple[str, int], list[Hint]] = {}
    for node, hint in nodes_pinned(captured, hints):
        pinned.setdefault(tensor_of(node), []).append(hint)
    return pinned


def nodes_pinned(captured: Captured, hints: Sequence[Hint]) -> list[tuple[fx.Node, Hint]]:
    """The nodes whose values hints speak of, each with its hint for a value of that shape.

    Raises HintTextError for a hint on modules of which none computes a tensor that others read.
    """
    hints = [hint for hint in hints if hint.at == "value"]
    if not hints:
        return []
    nodes = {node.name: node for node in captured.graph.nodes}
    named = {
        **captured.named_outputs,
        **{each.path: nodes[each.node] for each in captured.inputs_of("input")},
    }
    results = results_by_module(captured)
    pinned: list[tuple[fx.Node, Hint]] = []
    for hint in hints:
        if hint.node:
            found = [nodes[hint.node]]
        elif hint.pattern in named:
            found = [named[hint.pattern]]
        else:
            found = results.get(hint.pattern, [])
        pinned += _resolved(hint, found)
    origins = {hint.origin for _, hint in pinned}
    for hint in hints:
        if hint.origin not in origins and not hint.elsewhere:
            raise HintTextError(
                f"hint {hint} names modules, none of which computes a tensor that others read; "
                "name one that does, or use autoplan.hint inside forward."
            )
    return pinned


def _resolved(hint: Hint, nodes: Sequence[fx.Node]) -> list[tuple[fx.Node, Hint]]:
    """The hint for each of several results; those that lack its dimensions are not meant."""
    result = []
    failure: LayoutError | None = None
    for node in nodes:
        try:
            result.append((node, hint.resolve(node.meta["val"].ndim)))
        except LayoutError as error:
            failure = error
    if failure is not None and not result:
        raise HintTextError(f"hint {hint}: {failure}")
    return result


def _none_left(hint: Hint, path: str, mesh: Mesh, fixed: Iterable[str]) -> str:
    others = " and ".join(fixed)
    if others:
        return (
            f"hint {hint} leaves {path!r} no layout on mesh {mesh} together with {others}. Drop or "
            "widen one."
        )
    return (
        f"hint {hint} leaves {path!r} no layout on mesh {mesh}: enough ranks must hold a part of "
        "each split dimension, and a parameter is never held as addends. Drop or widen it."
    )


def _unsplittable(hint: Hint, mesh: Mesh, path: str, meta: TensorMeta) -> str:
    """Why an argument cannot lie as it must: its batch leaves ranks without rows."""
    rows = meta.shape[0] if meta.shape else 1
    ranks = math.prod(mesh.size(axis) for axis in hint.conditions)
    axes = " x ".join(f"{axis} {mesh.size(axis)}" for axis in hint.conditions)
    return (
        f"{hint}: {path!r} has {rows} rows (shape {list(meta.shape)}), which cannot be split over "
        f"{axes}: most ranks would get none. Use a batch (or microbatch) that is a multiple of "
        f"{ranks}, fewer devices on that axis, or no such hint."
    )
