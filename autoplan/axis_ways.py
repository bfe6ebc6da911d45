"""Axis ways: the name of what a plan does on one axis, or on the axes of a grid, by its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from autoplan.axis_rows import BLOCK, LEAST, WORDS, AxisRows, Parameter, named, numel_of
from autoplan.layouts import BP, B, Split
from autoplan.policies import Policy

_MOST = 0.5
"""The part of the weights above which a way of working names an axis."""


@dataclass(frozen=True)
class Way:
    """The family of a scheme, its name, its ranks, what follows these, and departures."""

    family: str
    name: str
    size: int
    suffix: str = ""
    departures: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.size}{self.suffix}"


def way_of(axis: AxisRows) -> Way:
    """The scheme of one axis; "mixed" where no way of working has most of the weights."""
    if axis.share("column", "row") > _MOST:
        return _tensor(axis)
    if axis.share("sequence") > _MOST:
        return _sequence(axis)
    if axis.share("batch", "experts") > _MOST:
        return _data(axis)
    if axis.share("whole") > _MOST:
        departures = (*axis.departing("whole"), *axis.stored_split())
        return Way("replicated", "replicated", axis.size, "", departures)
    if not axis.products:
        splits = bool(axis.arguments) and axis.splits_arguments
        return _data(axis) if splits else Way("replicated", "replicated", axis.size)
    shares = sorted(((axis.share(kind), kind) for kind in WORDS), reverse=True)
    told = ", ".join(f"{share:.0%} {WORDS[kind]}" for share, kind in shares if share)
    return Way("mixed", "mixed", axis.size, f" (of the weights {told})")


def _tensor(axis: AxisRows) -> Way:
    """Columns, then rows (Shoeybi et al. 2019), values between blocks whole, or split along the
    sequence (Korthikanti et al. 2022)."""
    blocks = [product for product in axis.products if BLOCK.match(product.row.path)]
    inside = {product.kind for product in blocks or axis.products}
    between = max(axis.blocks, key=axis.blocks.count, default=B)
    departures = axis.departing("column", "row", "experts")
    if axis.attention and axis.attention != "h":
        departures.append(f"attention split by {axis.attention}, not over heads")
    extras = ["expert"] if "experts" in inside else []
    name = "1D tensor parallelism"
    if {"column", "row"} <= inside and between in (B, BP, Split(1)):
        name = "Megatron-TP"
        departures += axis.between((B, BP) if between != Split(1) else (Split(1),))
        extras = ["sequence", *extras] if between == Split(1) else extras
    suffix = f" with {' and '.join(extras)} parallelism" if extras else ""
    return Way("tensor", name, axis.size, suffix, tuple(departures))


def _sequence(axis: AxisRows) -> Way:
    """Ulysses (Jacobs et al. 2023), ring attention (Liu et al. 2023), or gathered keys."""
    names = {"h": "Ulysses", "g": "Ulysses", "ring": "ring attention"}
    name = names.get(axis.attention, "context parallelism")
    gathers = axis.attention and axis.attention not in names
    suffix = " with gathered keys and values" if gathers else ""
    departures = (
        *axis.departing("sequence"),
        *axis.between((Split(1),)),
        *axis.read_split(),
    )
    return Way("sequence", name, axis.size, suffix, departures)


def _data(axis: AxisRows) -> Way:
    """The batch split: replicas, shards (Rajbhandari et al. 2020), experts (Lepikhin et al.)."""
    spread = _experts_are_split(axis)
    name, stored = _storage(axis)
    departures = (
        *axis.unsplit_arguments(),
        *axis.departing("batch", *(["experts"] if spread else [])),
        *axis.between((Split(0),)),
        *axis.read_split(),
        *stored,
    )
    if spread:
        suffix = f" (other parameters {name})"
        return Way("expert", "expert parallelism", axis.size, suffix, departures)
    return Way("data", name, axis.size, "", departures)


def _experts_are_split(axis: AxisRows) -> bool:
    """Whether a rank reads its own experts alone."""
    paths = {product.row.path for product in axis.products if product.kind == "experts"}
    own = [p for p in axis.parameters if p.row.path.rpartition(".")[0] in paths]
    return any(isinstance(p.use, Split) and len(p.row.shape) > 2 for p in own)


def _storage(axis: AxisRows) -> tuple[str, Iterator[str]]:
    """DDP, or FSDP and ZeRO by the policy of what is stored split; and what is not so."""
    kinds: dict[str, list[Parameter]] = {}
    for each in axis.parameters:
        if each.fits and not isinstance(each.use, Split):
            split = isinstance(each.stored, Split)
            name = _sharded(each.row.policy, axis.plan.microbatches) if split else "DDP"
            kinds.setdefault(name, []).append(each)
    sizes = {name: sum(numel_of(p.row.shape) for p in each) for name, each in kinds.items()}
    most = max(sizes, key=lambda name: sizes[name], default="DDP")
    told = (
        f"{len(each)} of {len(axis.parameters)} parameters {_STORED[name]}: "
        f"{named(p.row.path for p in each)}"
        for name, each in kinds.items()
        if name != most
    )
    return most, told


def _sharded(policy: Policy, microbatches: int) -> str:
    """FSDP, or what gathers less often: with one microbatch they do the same between steps."""
    return _SHARDED[policy] if microbatches > 1 else "FSDP"


_SHARDED: dict[Policy, str] = {"step": "ZeRO-1", "reduce": "ZeRO-2", "microbatch": "FSDP"}
"""Of parameters stored split, by when they are gathered and their gradients reduced."""
_STORED = {
    "DDP": "stored whole",
    "ZeRO-1": "stored split, gathered and reduced once a step",
    "ZeRO-2": "stored split, gathered once a step, reduced in each microbatch",
    "FSDP": "stored split",
}


# -- grids ----------------------------------------------------------------------------------------


def grid_of(axes: Sequence[AxisRows]) -> tuple[tuple[int, ...], Way] | None:
    """The axes of a 2D, 2.5D or 3D grid of tensor parallelism, and its way; None without one."""
    numbers = range(len(axes))
    for row, column in permutations(numbers, 2):
        on = [
            one.streams and other.streams and one.kind in _TOKENS and other.kind == "column"
            for one, other in zip(axes[row].products, axes[column].products, strict=True)
        ]
        if _part(axes[row], on) > _MOST:
            sides = f"SUMMA {axes[row].size} × {axes[column].size}"
            size = axes[row].size * axes[column].size
            departures = _otherwise(axes[row], on, "not multiplied by SUMMA")
            for depth in numbers:
                if depth not in (row, column) and _splits_inside_alone(axes[depth]):
                    suffix = f" (depth {axes[depth].size}, {sides})"
                    size *= axes[depth].size
                    way = Way("grid", "2.5D tensor parallelism", size, suffix, departures)
                    return (depth, row, column), way
            return (row, column), Way(
                "grid", "2D tensor parallelism", size, f" ({sides})", departures
            )
    for one, other, weight in permutations(numbers, 3):
        on = [
            {a.kind, b.kind} == {"column", "row"} and c.kind in _TOKENS
            for a, b, c in zip(*(axes[n].products for n in (one, other, weight)), strict=True)
        ]
        if one < other and _part(axes[one], on) > _MOST and _splits_inside_alone(axes[weight]):
            sizes = [axes[n].size for n in (one, other, weight)]
            suffix = f" ({' × '.join(map(str, sizes))})"
            departures = _otherwise(axes[one], on, "not multiplied over the whole cube")
            size = sizes[0] * sizes[1] * sizes[2]
            way = Way("grid", "3D tensor parallelism", size, suffix, departures)
            return (one, other, weight), way
    return None


_TOKENS = ("batch", "sequence")


def _part(axis: AxisRows, on: Sequence[bool]) -> float:
    total = sum(product.numel for product in axis.products)
    part = sum(p.numel for p, is_on in zip(axis.products, on, strict=True) if is_on)
    return part / total if total else 0.0


def _splits_inside_alone(axis: AxisRows) -> bool:
    """Rows split between products, but not the batch: the axis is part of a grid, not of data."""
    return axis.share(*_TOKENS) > _MOST and not axis.splits_arguments


def _otherwise(axis: AxisRows, on: Sequence[bool], text: str) -> tuple[str, ...]:
    others = [p for p, is_on in zip(axis.products, on, strict=True) if not is_on]
    total = sum(product.numel for product in axis.products)
    if sum(product.numel for product in others) < LEAST * total:
        return ()
    return (f"{named(product.row.path for product in others)} {text}",)
