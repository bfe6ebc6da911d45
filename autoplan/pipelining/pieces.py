"""Pieces: the chain that a pipeline cuts, read off the graph.

A piece is a run of consecutive ops: one of the model's repeated blocks (`transformer.h.3`), or a
stray part between them (embeddings, final norm, head, loss). What depends on arguments alone, such
as masks, belongs to no piece: every stage that reads it computes it, so that it never travels.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import fx

from autoplan.capture import Captured
from autoplan.errors import InputError

_SMALLEST_BLOCK = 8
"""Ops below which numbered modules inside a block are no blocks of their own."""


@dataclass(frozen=True)
class Pieces:
    """The chain of a model, in the order in which it runs.

    `of`: graph node -> number of its piece, for nodes that belong to one. `outer`: of each piece,
    the outermost numbered module that it is in, or "" for a stray part.
    """

    names: tuple[str, ...]
    of: Mapping[str, int]
    outer: tuple[str, ...]
    parameters: tuple[tuple[str, ...], ...]
    """Paths of the parameters that each piece reads."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def blocks(self) -> tuple[bool, ...]:
        """Whether each piece is (a part of) a numbered block, and not a stray part."""
        return tuple(bool(each) for each in self.outer)

    @property
    def outer_blocks(self) -> tuple[str, ...]:
        """The outermost numbered modules, in order: what a stage map usually counts."""
        return tuple(dict.fromkeys(each for each in self.outer if each))


def pieces_of(captured: Captured) -> Pieces:
    """Cut the graph where its blocks and stray parts meet."""
    roles = Roles.of(captured)
    calls = [node for node in captured.graph.nodes if node.name in roles.body]
    trailing = _trailing(calls, roles)
    body = [node for node in calls if node not in trailing]
    units = _units(body)
    runs: list[list[fx.Node]] = []
    for node in body:
        if runs and (units[node][0] == units[runs[-1][-1]][0] or _is_piece_of(node, runs[-1])):
            runs[-1].append(node)
        else:
            runs.append([node])
    reads = _parameters_read(captured, roles)
    heads, runs = _with_parameters(_with_buffers_whole(runs, captured), reads)
    of = {node.name: number for number, run in enumerate(runs) for node in run}
    for node in calls:
        if node in trailing:
            of[node.name] = max(of[s.name] for s in node.all_input_nodes if s.name in roles.body)
    outer = tuple(units[head][1] for head in heads)
    found: list[dict[str, None]] = [{} for _ in runs]
    for name, read in reads.items():
        found[of[name]] |= read
    names = _names([units[head][0] for head in heads], heads)
    return Pieces(names, of, outer, tuple(tuple(each) for each in found))


def pieces_as(
    captured: Captured,
    stage_of: Mapping[str, int],
    allowed: Mapping[str, Collection[int]],
    num_stages: int,
) -> Pieces:
    """One piece for each stage, as modules are placed already; one may be empty here.

    `stage_of`: by path of a module, its (first) stage; `allowed`: by path of a parameter, stages.
    An op goes there, or as far on as what it reads; of other modules, where what it reads is. A
    buffer that some stages have is read there alone. Raises InputError where a parameter or buffer
    is needed after the stages that have it, or a buffer changes that several have.
    """
    fixed = {path for path, stages in allowed.items() if len(set(stages)) < num_stages}
    roles = Roles.of(captured, fixed)
    reads = _parameters_read(captured, roles)
    buffers = {each.node: each.path for each in captured.inputs_of("buffer")}
    for path in captured.updates:
        if len(set(allowed.get(path, (0,)))) > 1:
            raise InputError(
                f"these arguments change the buffer {path!r}, of which several pipeline ranks have "
                "a copy, since it did not change in the first form of arguments; parallelize in "
                "the form that changes it (train mode, say) first."
            )
    of: dict[str, int] = {}
    for node in captured.graph.nodes:
        if node.name in roles.body:
            stage = stage_of.get(str(node.meta.get("path", "")), 0)
            stage = max([stage, *(of[s.name] for s in node.all_input_nodes if s.name in of)])
            held = [buffers[s.name] for s in node.all_input_nodes if s.name in buffers]
            places = {p: set(allowed[p]) for p in (*reads[node.name], *held) if p in allowed}
            while stage < num_stages and any(stage not in each for each in places.values()):
                stage += 1
            if stage == num_stages:
                raise InputError(_not_there(node, places))
            of[node.name] = stage
    names = tuple(f"stage {number}" for number in range(num_stages))
    found: list[dict[str, None]] = [{} for _ in names]
    for name, stage in of.items():
        found[stage] |= reads[name]
    return Pieces(names, of, ("",) * num_stages, tuple(tuple(each) for each in found))


def reads_at_home(
    captured: Captured,
    pieces: Pieces,
    stage_of: Sequence[int],
    homes: Mapping[str, Collection[int]],
) -> bool:
    """Whether every piece finds its parameters and buffers on its stage, and alone changes them."""
    for stage, paths in zip(stage_of, pieces.parameters, strict=True):
        if any(stage not in homes.get(path, (stage,)) for path in paths):
            return False
    users = {node.name: node.users for node in captured.graph.nodes}
    for each in captured.inputs_of("buffer"):
        there = set(homes.get(each.path, stage_of))
        if there.issuperset(stage_of) and each.path not in captured.updates:
            continue
        reading = [pieces.of.get(user.name) for user in users[each.node] if user.op != "output"]
        if len(there) > 1 or any(p is None or stage_of[p] not in there for p in reading):
            return False  # a stage that has no copy would compute what depends on it
    return True


def _not_there(node: fx.Node, places: Mapping[str, Collection[int]]) -> str:
    path, stages = max(places.items(), key=lambda each: -max(each[1]))
    return (
        f"with these arguments {str(node.meta.get('path', '')) or 'the model'!r} reads {path!r} "
        f"after pipeline stage {max(stages)}, where the first form of arguments put it; "
        "parallelize with arguments of this form first, or hint the module onto that stage."
    )


@dataclass(frozen=True)
class Roles:
    """What a node depends on decides where it may run; all are sets of node names."""

    body: frozenset[str]
    """Runs once, in the stage of its piece."""
    copied: frozenset[str]
    """Depends on arguments, constants, or parameters alone: runs in every stage that reads it."""

    @staticmethod
    def of(captured: Captured, fixed: Collection[str] = ()) -> Roles:
        """Roles of the graph's calls. `fixed`: buffers that not every stage can read."""
        kinds = {each.node: each for each in captured.inputs}
        updated = {*captured.updates, *fixed}
        given: set[str] = set()  # no gradient, no parameter
        stored: set[str] = set()  # parameters, constants and buffers that stay as they are
        calls: list[fx.Node] = []
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                each = kinds.get(node.name)
                changes = each is not None and each.path in updated
                trained = bool(node.meta.get("requires_grad"))
                kind = "constant" if each is None else each.kind
                if kind not in ("parameter", "received") and not changes and not trained:
                    given.add(node.name)
                if each is not None and kind not in ("input", "received") and not changes:
                    stored.add(node.name)
            elif node.op == "call_function":
                calls.append(node)
                read = [source.name for source in node.all_input_nodes]
                if all(name in given for name in read) and not node.meta.get("requires_grad"):
                    given.add(node.name)
                if "draw" not in node.meta and all(name in stored for name in read):
                    stored.add(node.name)
        names = frozenset(node.name for node in calls)
        copied = names & (given | stored)
        return Roles(names - copied, copied)


def _trailing(calls: Sequence[fx.Node], roles: Roles) -> frozenset[fx.Node]:
    """Calls that no gradient flows through and only the model's outputs read, such as new running
    statistics, wherever they stand: they belong to the piece of what they read last."""
    found: set[fx.Node] = set()
    if not any(node.meta.get("requires_grad") for node in calls):
        return frozenset()  # inference: no gradient tells them apart
    for node in reversed(calls):
        reads = any(source.name in roles.body for source in node.all_input_nodes)
        unread = all(user.op == "output" or user in found for user in node.users)
        if reads and unread and not node.meta.get("requires_grad"):
            found.add(node)
    return frozenset(found)


def _is_piece_of(node: fx.Node, run: Sequence[fx.Node]) -> bool:
    """A getitem stays with the op whose results it takes apart."""
    return node.target is operator.getitem and node.args[0] in run


# -- blocks and stray parts -----------------------------------------------------------------


def _units(body: Sequence[fx.Node]) -> dict[fx.Node, tuple[str, str]]:
    """The unit of every node, and the outermost numbered module that it is in."""
    paths = [str(node.meta.get("path", "")) for node in body]
    crossing = _crossing(body)
    blocks = {path: _numbered(path) for path in dict.fromkeys(paths)}
    first = [blocks[path][0] if blocks[path] else "" for path in paths]
    deepened = _deepened(first, paths, blocks, crossing)
    chosen = [deepened.get((own, path), own) for own, path in zip(first, paths, strict=True)]
    around = _around(chosen)
    return {
        node: (block or _stray(path, around), outer)
        for node, path, block, outer in zip(body, paths, chosen, first, strict=True)
    }


def _numbered(path: str) -> list[str]:
    """Prefixes of `path` that end in a number, outermost first."""
    return [each for each in _prefixes(path) if each.rpartition(".")[2].isdigit()]


def _prefixes(path: str) -> Iterator[str]:
    return accumulate(path.split("."), "{}.{}".format) if path else iter(())


def _crossing(body: Sequence[fx.Node]) -> list[int]:
    """How many differentiable values (any, in inference) cross before each position."""
    position = {node: at for at, node in enumerate(body)}
    change = [0] * (len(body) + 1)
    inference = not any(node.meta.get("requires_grad") for node in body)
    for at, node in enumerate(body):
        ends = [position[user] for user in node.users if user in position]
        if ends and (inference or node.meta.get("requires_grad")):
            change[at + 1] += 1
            change[max(ends) + 1] -= 1
    return list(accumulate(change))


def _deepened(
    first: Sequence[str],
    paths: Sequence[str],
    blocks: Mapping[str, Sequence[str]],
    crossing: Sequence[int],
) -> dict[tuple[str, str], str]:
    """(outer block, path) -> numbered module inside it that is a block of its own.

    Inside an outer block, numbered modules are blocks where at least two of one list are large
    enough, and no more values cross between them than between outer blocks.
    """
    starts: dict[str, int] = {}
    for at, block in enumerate(first):
        starts.setdefault(block, at)
    lists: dict[str, list[int]] = {}
    for block, at in starts.items():
        if block:
            lists.setdefault(block.rpartition(".")[0], []).append(crossing[at])
    widest = {name: max(counts) for name, counts in lists.items()}
    found: dict[tuple[str, str], str] = {}
    for outer in starts:
        members = [at for at, block in enumerate(first) if block == outer] if outer else []
        inner: dict[str, list[int]] = {}
        for at in members:
            if len(blocks[paths[at]]) > 1:
                inner.setdefault(blocks[paths[at]][1], []).append(at)
        allowed = widest.get(outer.rpartition(".")[0], 0)
        siblings: dict[str, int] = {}
        for name, nodes in inner.items():
            if len(nodes) >= _SMALLEST_BLOCK:
                siblings[name.rpartition(".")[0]] = siblings.get(name.rpartition(".")[0], 0) + 1
        for name, nodes in inner.items():
            together = siblings.get(name.rpartition(".")[0], 0) >= 2
            if together and crossing[nodes[0]] <= allowed:
                found.update({(outer, paths[at]): name for at in nodes})
    return found


def _around(blocks: Collection[str]) -> frozenset[str]:
    """Modules that hold a block, and are none."""
    distinct = set(blocks) - {""}
    return frozenset(each for block in distinct for each in _prefixes(block)) - distinct


def _stray(path: str, around: Collection[str]) -> str:
    """The largest module around a stray op that holds no block."""
    return next((each for each in _prefixes(path) if each not in around), path)


def _names(units: Sequence[str], heads: Sequence[fx.Node]) -> tuple[str, ...]:
    """A name for each piece: its module, or `MODULE/op` where a module around others calls ops."""
    seen: dict[str, int] = {}
    names = []
    around = {each for unit in units for each in list(_prefixes(unit))[:-1]}
    for unit, head in zip(units, heads, strict=True):
        op = str(head.target).removeprefix("aten.").partition(".")[0]
        name = f"{unit}/{op}" if not unit or unit in around else unit
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(names)


# -- what pieces read -----------------------------------------------------------------------


def _with_buffers_whole(runs: list[list[fx.Node]], captured: Captured) -> list[list[fx.Node]]:
    """Join runs that read one buffer which a call changes: it lives in one place."""
    of = {node: number for number, run in enumerate(runs) for node in run}
    updated = set(captured.updates)
    nodes = {node.name: node for node in captured.graph.nodes}
    last = list(range(len(runs)))
    for each in captured.inputs:
        if each.path in updated:
            users = [of[user] for user in nodes[each.node].users if user in of]
            new = captured.updated_buffers[each.path]
            users += [of[new]] if new in of else []
            if users:
                last[min(users)] = max(last[min(users)], max(users))
    joined: list[list[fx.Node]] = []
    until = -1
    for number, run in enumerate(runs):
        if number <= until:
            joined[-1] = [*joined[-1], *run]
        else:
            joined.append(run)
        until = max(until, last[number])
    return joined


def _with_parameters(
    runs: Sequence[list[fx.Node]], reads: Mapping[str, Mapping[str, None]]
) -> tuple[list[fx.Node], list[list[fx.Node]]]:
    """Join runs that read no parameter to the one before, or the first to the one after.

    So no stage is without parameters, and no optimizer of a rank empty. Also, of each, the first
    node of the run that gives the piece its name.
    """
    holds = [any(reads[node.name] for node in run) for run in runs]
    heads: list[fx.Node] = []
    joined: list[list[fx.Node]] = []
    waiting: list[fx.Node] = []
    for run, held in zip(runs, holds, strict=True):
        if held or not any(holds):
            heads.append(run[0])
            joined.append([*waiting, *run])
            waiting = []
        elif joined:
            joined[-1] = [*joined[-1], *run]
        else:
            waiting += run
    return heads, joined


def _parameters_read(captured: Captured, roles: Roles) -> dict[str, dict[str, None]]:
    """By node of the body, the paths of the parameters that it reads."""
    paths = {each.node: each.path for each in captured.inputs_of("parameter")}
    through: dict[str, dict[str, None]] = {}
    found: dict[str, dict[str, None]] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder" and node.name in paths:
            through[node.name] = {paths[node.name]: None}
        elif node.op == "call_function":
            read: dict[str, None] = {}
            for source in node.all_input_nodes:
                read |= through.get(source.name, {})
            if node.name in roles.copied:
                through[node.name] = read
            else:
                found[node.name] = read
    return found
