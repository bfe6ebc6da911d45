"""The blocks of an annotated model that may be recomputed, and the user's choice among them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from autoplan.errors import ConfigError
from autoplan.memory.holding import Holding
from autoplan.memory.schedule import Block
from autoplan.pipelining.pieces import Pieces, pieces_of
from autoplan.pricing import Pricer
from autoplan.sites import Annotated


def blocks_of(
    annotated: Annotated, pricer: Pricer, names: Collection[str] | None = None
) -> tuple[Block, ...]:
    """The pieces called `names`, or all of them, that keep anything for backward, in order."""
    pieces = pieces_of(annotated.captured)
    holding = Holding(annotated, pricer)
    members = sites_of(annotated, pieces)
    found = []
    for number, name in enumerate(pieces.names):
        if names is None or name in names:
            block = _block(name, members.get(number, ()), holding)
            if block is not None:
                found.append(block)
    return tuple(found)


def sites_of(annotated: Annotated, pieces: Pieces) -> dict[int, tuple[int, ...]]:
    """Piece -> its sites that run in the body."""
    members: dict[int, list[int]] = {}
    views = _views_of_parameters(annotated, pieces)
    for at, site in enumerate(annotated.sites):
        number = pieces.of.get(site.name.partition(":")[0], views.get(at))
        if number is not None and site.kind in ("op", "box") and not site.parameter_only:
            members.setdefault(number, []).append(at)
    return {number: tuple(sites) for number, sites in members.items()}


def _views_of_parameters(annotated: Annotated, pieces: Pieces) -> dict[int, int]:
    """Views of parameters that the body makes -> the piece whose ops alone read them."""
    sites = annotated.sites
    made: set[int] = set()
    readers: dict[int, list[int]] = {}
    for at, site in enumerate(sites):
        for source in site.inputs:
            readers.setdefault(source.site, []).append(at)
        sources = {source.site for source in site.inputs}
        in_body = site.call is not None and not site.parameter_only
        if in_body and sources and all(sites[e].parameter_only or e in made for e in sources):
            made.add(at)
    found: dict[int, int] = {}
    for at in sorted(made, reverse=True):
        of = {
            pieces.of.get(sites[each].name.partition(":")[0], found.get(each))
            for each in readers.get(at, ())
        }
        if len(of) == 1 and None not in of:
            found[at] = next(number for number in of if number is not None)
    return found


def _block(name: str, sites: Sequence[int], holding: Holding) -> Block | None:
    """None where nothing is kept that could be made again.

    A second run ends as soon as everything that is kept has been made: what follows the last op
    that keeps something does not run, nor this op itself if it keeps only what it reads.
    """
    keeping = [at for at in sites if holding.may_keep(at)]
    if not keeping:
        return None
    first, last = keeping[0], keeping[-1]
    if holding.keeps_inputs_only(last):
        again, reading = [at for at in sites if at < last], frozenset({last})
    else:
        again, reading = [at for at in sites if at <= last], frozenset()
    return Block(name, tuple(sites), tuple(again), reading, first, last)


def named_blocks(pieces: Pieces, option: object) -> tuple[str, ...] | None:
    """The names that the option `recompute` means; None where the planner decides.

    True or "all" are all numbered blocks; a list has patterns of paths, of blocks or other pieces.
    Raises ConfigError, with the nearest name, for a pattern that matches none.
    """
    names = pieces.names
    blocks = [name for name, yes in zip(names, pieces.blocks, strict=True) if yes]
    if option == "auto":
        return None
    if option in ("none", "all"):
        return tuple(blocks) if option == "all" else ()
    assert isinstance(option, tuple)
    chosen: dict[str, None] = {}
    for pattern in option:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(_unknown(pattern, names))
        chosen |= dict.fromkeys(found)
    return tuple(name for name in names if name in chosen)


def _unknown(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
    shown = ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"recompute: no block of the model matches {pattern!r}{meant}; give paths or patterns of "
        f"{shown}, or 'all'."
    )
