"""Schemes: which known form of parallelism each axis of a plan is, and where the plan departs.

Read from the plan alone. Products with weights say how an axis works: over rows of the batch, over
the sequence, over columns and rows of the weights, or over experts. What most of them do, by size
of the weights, names the axis; storage and policy of the parameters, attention, and the values
between blocks say which kind of it. What does otherwise is a departure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autoplan.axis_rows import BLOCK, PRODUCTS, AxisRows
from autoplan.axis_ways import Way, grid_of, way_of
from autoplan.plan import Plan

_SCHEDULES = {
    "naive": "no schedule",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved-1f1b": "interleaved 1F1B",
}


@dataclass(frozen=True)
class Scheme:
    """What a plan is called, and in short what of it is not as that name says."""

    name: str
    departures: tuple[str, ...] = ()


def scheme_of(plan: Plan) -> Scheme:
    """Which known scheme a plan is: "FSDP 8 × Megatron-TP 4 with sequence parallelism"."""
    if plan.pipeline is not None:
        return _pipeline(plan)
    if not plan.axes:
        return Scheme("one device")
    rows = [AxisRows(plan, at) for at in range(len(plan.axes))]
    grid = grid_of(rows)
    members, of_grid = grid if grid is not None else ((), None)
    ways: list[Way] = []
    departures: list[str] = []
    for at, (axis, row) in enumerate(zip(plan.axes, rows, strict=True)):
        if at in members and at != min(members):
            continue
        way = of_grid if of_grid is not None and at in members else way_of(row)
        ways.append(way)
        alone = len(plan.axes) == max(1, len(members))
        departures += [each if alone else f"on {axis}: {each}" for each in way.departures]
    return Scheme(" × ".join(map(str, _joined(ways))), tuple(departures))


def _joined(ways: Sequence[Way]) -> list[Way]:
    """Axes that together have one name: data parallelism twice, HSDP (Zhao et al. 2023)."""
    result: list[Way] = []
    for way in ways:
        last = result[-1] if result else None
        if last is not None and last.family == way.family == "data":
            if last.name == way.name and last.suffix == way.suffix:
                result[-1] = Way("data", way.name, last.size * way.size, way.suffix)
                continue
            names = {last.name: last.size, way.name: way.size}
            if names.keys() == {"DDP", "FSDP"}:
                result[-1] = Way("hsdp", f"HSDP {names['DDP']} ×", names["FSDP"])
                continue
        result.append(way)
    return result


def _pipeline(plan: Plan) -> Scheme:
    """The stages' own schemes, once where they are one."""
    pipeline = plan.pipeline
    assert pipeline is not None
    schedule = _SCHEDULES.get(pipeline.schedule, pipeline.schedule)
    chunks = len(plan.stages) // pipeline.size
    stages = f", {len(plan.stages)} stages" if chunks > 1 else ""
    name = (
        f"pipeline {pipeline.size} ({schedule}{stages}, "
        f"{plan.microbatches} microbatch{'es' * (plan.microbatches > 1)})"
    )
    found = [scheme_of(stage) for stage in plan.stages]
    telling = [f for f, stage in zip(found, plan.stages, strict=True) if _has_blocks(stage)]
    names = dict.fromkeys(each.name for each in (telling or found))
    where: dict[str, list[int]] = {}
    for number, each in enumerate(found):
        for departure in each.departures:
            where.setdefault(departure, []).append(number)
    departures = tuple(
        text if len(at) == len(found) else f"stage{'s' * (len(at) > 1)} {_listed(at)}: {text}"
        for text, at in where.items()
    )
    if not plan.stages[0].axes:
        return Scheme(name, departures)
    if len(names) == 1:
        return Scheme(f"{name} × {next(iter(names))}", departures)
    of = [f"{each.name} on stage {number}" for number, each in enumerate(found)]
    return Scheme(f"{name} × ({', '.join(of)})", departures)


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and all(b == a + 1 for a, b in pairwise(numbers)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _has_blocks(plan: Plan) -> bool:
    """Whether the stage has more of the model than its ends."""
    return any(PRODUCTS.match(row.op) and BLOCK.match(row.path) for row in plan.operations)
