"""Stage hints: on which pipeline stage hints and a stage map put each piece of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from autoplan.capture import Captured
from autoplan.errors import HintError, HintTextError
from autoplan.hints import Hint
from autoplan.pipelining.pieces import Pieces

BoolArray: TypeAlias = npt.NDArray[np.bool_]


def stage_map_text(stage_map: Sequence[int]) -> str:
    """A stage map as the user could write it, equal entries together where it is long."""
    if len(stage_map) <= 12:
        return f"stage_map={list(stage_map)}"
    counts: dict[int, int] = {}
    for stage in stage_map:
        counts[stage] = counts.get(stage, 0) + 1
    return "stage_map=" + " + ".join(f"[{stage}]*{count}" for stage, count in counts.items())


def stages_by_piece(
    stage_map: Sequence[int], pieces: Pieces, num_stages: int
) -> tuple[int | None, ...]:
    """The stage that a map fixes for each piece; None for stray pieces that it does not count.

    A map has an entry for every outermost block, every block, or every piece. Raises
    HintTextError for any other length, naming these, and for a stage not below `num_stages`.
    """
    if max(stage_map, default=0) >= num_stages:
        raise HintTextError(
            f"{stage_map_text(stage_map)} names stage {max(stage_map)}, and the plan has "
            f"{num_stages}."
        )
    outer, length = pieces.outer_blocks, len(stage_map)
    if outer and length == len(outer):
        by_block = dict(zip(outer, stage_map, strict=True))
        return tuple(by_block.get(each) for each in pieces.outer)
    if length == sum(pieces.blocks):
        numbers = iter(stage_map)
        return tuple(next(numbers) if is_block else None for is_block in pieces.blocks)
    if length == len(pieces):
        return tuple(stage_map)
    raise HintTextError(_wrong_length(stage_map, pieces))


def _wrong_length(stage_map: Sequence[int], pieces: Pieces) -> str:
    blocks = [name for name, block in zip(pieces.names, pieces.blocks, strict=True) if block]
    counted = {"outermost blocks": list(pieces.outer_blocks), "blocks": blocks}
    if len(blocks) == len(pieces.outer_blocks):
        del counted["outermost blocks"]
    counted["pieces, stray ones too"] = list(pieces.names)
    known = ", or ".join(
        f"{len(names)} {what} ({_first(names)})" for what, names in counted.items() if names
    )
    return (
        f"{stage_map_text(stage_map)} has {len(stage_map)} entries, and the model has {known}; "
        "give a stage for each of these."
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def allowed_stages(
    pieces: Pieces,
    captured: Captured,
    hints: Sequence[Hint],
    stage_map: Sequence[int] | None,
    num_stages: int,
) -> tuple[BoolArray, tuple[tuple[str, ...], ...]]:
    """On which stages each piece may be: bool[pieces, stages]; and for each piece, what says so.

    A hint on a module puts every piece there that holds an op of it, one on a parameter every piece
    that reads it, one inside forward the piece that computes the value. What is computed from
    parameters alone belongs to no piece: the hint is on the pieces that read it. Raises HintError,
    naming what the user wrote, where two contradict each other, where no cut into stages in the
    model's order satisfies them, and where one names nothing that has a stage.
    """
    pins = [*_of_stage_map(stage_map, pieces, num_stages), *_of_hints(pieces, captured, hints)]
    found: list[dict[str, None]] = [{} for _ in pieces.names]
    by_piece: dict[int, _Pin] = {}
    for pin in pins:
        first = by_piece.setdefault(pin.piece, pin)
        if first.stage != pin.stage:
            raise HintError(_twice(first, pin, pieces))
        found[pin.piece][pin.origin] = None
    _check_order([by_piece[piece] for piece in sorted(by_piece)], pieces, num_stages)
    allowed = np.ones((len(pieces), num_stages), dtype=np.bool_)
    for pin in by_piece.values():
        allowed[pin.piece] = np.arange(num_stages) == pin.stage
    return allowed, tuple(tuple(each) for each in found)


@dataclass(frozen=True)
class _Pin:
    """What puts one piece on one stage; `parameter` where it is what the piece reads."""

    piece: int
    stage: int
    origin: str
    parameter: str = ""


def _of_stage_map(
    stage_map: Sequence[int] | None, pieces: Pieces, num_stages: int
) -> Iterator[_Pin]:
    if stage_map is not None:
        text = stage_map_text(stage_map)
        for piece, stage in enumerate(stages_by_piece(stage_map, pieces, num_stages)):
            if stage is not None:
                yield _Pin(piece, stage, text)


def _of_hints(pieces: Pieces, captured: Captured, hints: Sequence[Hint]) -> Iterator[_Pin]:
    hints = [hint for hint in hints if hint.at == "stage"]
    by_node = _pieces_by_node(pieces, captured) if hints else {}
    by_module = _pieces_by_module(pieces, captured, by_node)
    by_parameter: dict[str, dict[int, None]] = {}
    for piece, paths in enumerate(pieces.parameters):
        for path in paths:
            by_parameter.setdefault(path, {})[piece] = None
    outputs = {name: node.name for name, node in captured.named_outputs.items()}
    parameters = {each.path for each in captured.inputs_of("parameter")}
    idle: dict[str, str] = {}
    placed: set[str] = set()
    for hint in hints:
        assert hint.stage is not None
        origin = f"hint {hint}" if hint.origin.startswith(("'", '"')) else str(hint)
        where: Mapping[int, None]
        if hint.node or hint.pattern in outputs:
            where = by_node.get(hint.node or outputs[hint.pattern], {})
        elif hint.pattern in parameters:
            where = by_parameter.get(hint.pattern, {})
        else:
            where = by_module.get(hint.pattern, {})
        named = hint.pattern if hint.pattern in parameters and not hint.node else ""
        yield from (_Pin(piece, hint.stage, origin, named) for piece in where)
        if where:
            placed.add(origin)
        else:
            idle.setdefault(origin, "a value" if hint.node else repr(hint.pattern))
    for origin, what in idle.items():
        if origin not in placed:
            raise HintError(
                f"{origin} puts {what} on a stage, and no stage is its own: arguments, and what "
                "depends on arguments alone, such as masks, are in every stage that reads them. "
                "Name a module that computes with parameters, or drop the hint."
            )


def _pieces_by_node(pieces: Pieces, captured: Captured) -> dict[str, dict[int, None]]:
    """The piece of each node; of one computed from parameters alone, the pieces that read it."""
    parameters = {each.node for each in captured.inputs_of("parameter")}
    found: dict[str, dict[int, None]] = {}
    through: dict[str, dict[str, None]] = {}
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        sources = [each.name for each in node.all_input_nodes]
        stored = {name: None for source in sources for name in through.get(source, ())}
        piece = pieces.of.get(node.name)
        if piece is not None:
            for name in (node.name, *stored):
                found.setdefault(name, {})[piece] = None
        elif stored or parameters & set(sources):
            through[node.name] = {**stored, node.name: None}
    return found


def _pieces_by_module(
    pieces: Pieces, captured: Captured, by_node: Mapping[str, Mapping[int, None]]
) -> dict[str, dict[int, None]]:
    """The pieces that hold an op of each module, those below it included.

    Of a module whose ops are in no piece, those that read them.
    """
    held: dict[str, dict[int, None]] = {}
    read: dict[str, dict[int, None]] = {}
    for node in captured.graph.nodes:
        path = str(node.meta.get("path", "")) if node.op == "call_function" else ""
        if path and node.name in by_node:
            found = held if node.name in pieces.of else read
            for module in accumulate(path.split("."), "{}.{}".format):
                found.setdefault(module, {}).update(by_node[node.name])
    return read | held


# -- contradictions ---------------------------------------------------------------------------


def _check_order(pins: Sequence[_Pin], pieces: Pieces, num_stages: int) -> None:
    """Whether a cut exists: stages follow the pieces, from the first stage to the last, none empty.

    From a piece to the next the stage stays or goes up by one; so it is enough to look at
    neighbouring pins, and at both ends.
    """
    last = len(pieces) - 1
    if last < num_stages - 1:
        return  # no cut at all, whatever is pinned: the solver says so
    for pin in pins:
        lowest = max(0, num_stages - 1 - (last - pin.piece))
        highest = min(num_stages - 1, pin.piece)
        if not lowest <= pin.stage <= highest:
            raise HintError(_too_near_an_end(pin, lowest, highest, pieces))
    for before, after in pairwise(pins):
        if before.stage > after.stage:
            raise HintError(_backwards(before, after, pieces))
        if after.stage - before.stage > after.piece - before.piece:
            raise HintError(_too_few_between(before, after, pieces))


def _says(pin: _Pin, pieces: Pieces) -> str:
    reads = f" (it reads {pin.parameter!r})" if pin.parameter else ""
    return f"{pin.origin} puts {pieces.names[pin.piece]!r}{reads} on stage {pin.stage}"


def _advice(pins: Sequence[_Pin], pieces: Pieces) -> str:
    """A parameter that several pieces read is tied, and its hint most likely means one module."""
    for pin in pins:
        readers = [
            name
            for name, paths in zip(pieces.names, pieces.parameters, strict=True)
            if pin.parameter in paths
        ]
        if len(readers) > 1:
            return (
                f" {pin.parameter!r} is read by {len(readers)} parts of the model "
                f"({_first(readers)}), which the hint puts on one stage: hint the module that is "
                "meant instead."
            )
    return ""


def _twice(first: _Pin, second: _Pin, pieces: Pieces) -> str:
    return (
        f"{_says(first, pieces)}, and {_says(second, pieces)}: a part of the model is on one "
        f"stage. Drop or change one.{_advice((first, second), pieces)}"
    )


def _backwards(before: _Pin, after: _Pin, pieces: Pieces) -> str:
    return (
        f"{_says(before, pieces)}, and {_says(after, pieces)}, but {pieces.names[after.piece]!r} "
        f"runs after {pieces.names[before.piece]!r}, and stages follow each other in the order in "
        f"which the model runs. Give it stage {before.stage} or later, or drop one."
        f"{_advice((before, after), pieces)}"
    )


def _too_few_between(before: _Pin, after: _Pin, pieces: Pieces) -> str:
    parts, stages = after.piece - before.piece - 1, after.stage - before.stage - 1
    return (
        f"{_says(before, pieces)}, and {_says(after, pieces)}: between them "
        f"{_room(parts, stages)}. Bring the stages nearer to each other, or drop one."
        f"{_advice((before, after), pieces)}"
    )


def _too_near_an_end(pin: _Pin, lowest: int, highest: int, pieces: Pieces) -> str:
    if pin.stage > highest:
        parts, stages, side = pin.piece, pin.stage, "before"
        fix = f"stage {highest}" + (" or earlier" if highest > lowest else "")
    else:
        parts, side = len(pieces) - 1 - pin.piece, "after"
        stages = parts + lowest - pin.stage
        fix = f"stage {lowest}" + (" or later" if highest > lowest else "")
    return (
        f"{_says(pin, pieces)}, but stages follow each other in the order in which the model runs, "
        f"each with a part of it: {side} it {_room(parts, stages)}. Give it {fix}, or drop the "
        f"hint.{_advice((pin,), pieces)}"
    )


def _room(parts: int, stages: int) -> str:
    return (
        f"{'is' if parts == 1 else 'are'} {parts} part{'s' * (parts != 1)} of the model for "
        f"{stages} stage{'s' * (stages != 1)}"
    )
