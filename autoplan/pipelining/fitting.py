"""Fit a loaded pipeline to the stages that a model is cut into: decisions follow their parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from autoplan.capture import Captured
from autoplan.describe import site_keys
from autoplan.errors import PlanFileError
from autoplan.layouts import Layout
from autoplan.layouts import Split as Slice
from autoplan.pipelining.pieces import pieces_of
from autoplan.pipelining.prices import common_wire
from autoplan.pipelining.splitting import Split
from autoplan.plan import Plan
from autoplan.planfiles.fitting import annotate_as
from autoplan.planfiles.read import EDITED
from autoplan.sites import node_meta
from autoplan.strategies.rule import TensorMeta


def fitted(plan: Plan, parts: Split) -> tuple[Plan, ...]:
    """The plans of all stages, with the layouts of what passes between them as they are cut now.

    Where the file was edited, the decisions on parts that another stage has now are moved there, if
    it has the same mesh, and left out otherwise.
    """
    stages = tuple(
        msgspec.structs.replace(stage, wires=wires)
        for stage, wires in zip(plan.stages, _wires(plan, parts), strict=True)
    )
    if EDITED not in plan.notes:
        return stages
    marked = [_marked(stage) for stage in stages]
    annotated = [annotate_as(c, stage) for c, stage in zip(parts.stages, marked, strict=True)]
    keys = [site_keys(each) for each in annotated]
    return tuple(
        _with_moved(number, marked, keys, blocks)
        for number, blocks in enumerate(_blocks(plan, parts))
    )


def _marked(stage: Plan) -> Plan:
    """A stage of a file that was edited, which makes its errors the file's."""
    return msgspec.structs.replace(stage, notes=tuple(dict.fromkeys((*stage.notes, EDITED))))


# -- what passes between stages -----------------------------------------------------------------


def _wires(plan: Plan, parts: Split) -> list[dict[str, str]]:
    """Of each stage, how what it receives and sends lies; PlanFileError where two disagree."""
    alike = all(stage.mesh == plan.stages[0].mesh for stage in plan.stages)
    metas = _metas(parts)
    known: dict[TensorMeta, str] = {}
    for stage in plan.stages if alike else ():
        for name, text in stage.wires.items():
            if name in metas and _fits(text, metas[name]):
                known.setdefault(metas[name], text)
    result = []
    for number, (stage, captured) in enumerate(zip(plan.stages, parts.stages, strict=True)):
        own = {}
        for name in _passing(captured):
            meta, said = metas[name], stage.wires.get(name)
            common = str(common_wire(meta, stage.mesh.num_devices, stage.mesh.ndim))
            own[name] = known.get(meta, common) if said is None else said
            unlike = said is not None and not alike and Layout.parse(said) != Layout.parse(common)
            if not _fits(own[name], meta) or unlike:
                if EDITED in plan.notes:
                    raise PlanFileError(_wrong(number, name, own[name], common, alike))
                own[name] = common
        result.append(own)
    _check_ends(result, alike)
    return result


def _passing(captured: Captured) -> Iterator[str]:
    yield from (each.node for each in captured.inputs_of("received"))
    yield from captured.sent


def _metas(parts: Split) -> dict[str, TensorMeta]:
    """What travels, by graph node."""
    found: dict[str, TensorMeta] = {}
    for captured in parts.stages:
        nodes = {node.name: node for node in captured.graph.nodes}
        for name in _passing(captured):
            found.setdefault(name, node_meta(nodes[name]))
    return found


def _fits(text: str, meta: TensorMeta) -> bool:
    return all(
        not isinstance(entry, Slice) or entry.dim < len(meta.shape) for entry in Layout.parse(text)
    )


def _wrong(number: int, name: str, text: str, common: str, alike: bool) -> str:
    why = "which it is too small for" if alike else "and the meshes of the stages differ"
    return (
        f"the plan file, [stage.{number}.wires] {name!r} says {text!r}, {why}; write {common!r}, "
        "or take the line out."
    )


def _check_ends(wires: Sequence[Mapping[str, str]], alike: bool) -> None:
    """Both ends say the same, where they can be compared."""
    first: dict[str, tuple[int, str]] = {}
    for number, own in enumerate(wires):
        for name, text in own.items():
            at, said = first.setdefault(name, (number, text))
            if alike and Layout.parse(said) != Layout.parse(text):
                raise PlanFileError(
                    f"the plan file, [stage.{at}.wires] {name!r} says {said!r}, and [stage.{number}"
                    f".wires] {text!r}: what one stage sends the next receives; make them agree."
                )


# -- parts that were moved ----------------------------------------------------------------------


def _with_moved(
    number: int, stages: Sequence[Plan], keys: Sequence[Sequence[str]], blocks: tuple[str, ...]
) -> Plan:
    """A stage with the decisions on its parts, wherever the file has them, and on no others."""
    own, mine = stages[number], set(keys[number])
    elsewhere = {key for at, each in enumerate(keys) if at != number for key in each}
    choices = {k: text for k, text in own.choices.items() if k in mine or k not in elsewhere}
    alike = [s for s in stages if s is not own and s.mesh == own.mesh]
    for other in alike:
        moved = {k: text for k, text in other.choices.items() if k in mine}
        choices = moved | choices
    return msgspec.structs.replace(
        own,
        choices=choices,
        operations=tuple(row for stage in (*alike, own) for row in stage.operations),
        tensors=tuple(row for stage in (*alike, own) for row in stage.tensors),
        recomputed=blocks,
    )


def _blocks(plan: Plan, parts: Split) -> list[tuple[str, ...]]:
    """Of each stage, the blocks that it computes again; unknown ones stay where they are."""
    names = [pieces_of(captured).names for captured in parts.stages]
    known = {name for own in names for name in own}
    every = [name for stage in plan.stages for name in stage.recomputed]
    return [
        (
            *(name for name in every if name in own),
            *(name for name in stage.recomputed if name not in known),
        )
        for stage, own in zip(plan.stages, names, strict=True)
    ]
