"""Plan a pipeline: where the chain is cut, and how every stage lies on its own ranks.

The model is first solved whole on the ranks of one stage. Its prices, piece by piece, decide the
cut; then every stage is solved on its own, with the microbatches that its schedule keeps in flight.
Cuts beside the best one are tried in the same way, since a stage may choose other layouts alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt

from autoplan.capture import Captured
from autoplan.errors import HintError, InfeasibleError
from autoplan.found import Found
from autoplan.parallel import MeshChoice
from autoplan.pipeline_choice import PipelineChoice
from autoplan.pipelining.floors import floor_s
from autoplan.pipelining.pieces import Pieces, pieces_as, pieces_of, reads_at_home
from autoplan.pipelining.schedules import Schedule
from autoplan.pipelining.stage_hints import allowed_stages
from autoplan.pipelining.stages import (
    Frame,
    Kind,
    Staged,
    about_s,
    kind_of,
    solve_stages,
    too_little_memory,
)
from autoplan.recompute.blocks import named_blocks
from autoplan.request import Request
from autoplan.search import find_on_mesh, hints_on
from autoplan.solver.chain import (
    Chain,
    Pipeline,
    StageHintError,
    StageMemoryError,
    TooManyStagesError,
    assign,
)

_UNLIMITED = 1 << 62
"""Bytes that no stage needs."""
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Piped:
    """The best pipeline that was found: `staged`, and the cut that the solver prefers by itself.

    `bound`: no cut of the same pieces at the same prices takes less; `floor`: no plan at all.
    """

    staged: Staged
    automatic: tuple[int, ...]
    bound: float
    floor: float
    seconds: float

    @property
    def step_time_s(self) -> float:
        """Seconds of a step, as its schedule runs."""
        return self.staged.step_time_s

    @property
    def peak_memory_bytes(self) -> int:
        """Bytes at the peak of the fullest rank."""
        return max(self.staged.memory_bytes)


def search_pipeline(
    captured: Captured, request: Request, cuts: Sequence[Sequence[int]] = ()
) -> Piped:
    """The best cut into stages over the meshes in question, within the memory of every rank.

    `cuts`: that are to be tried first, as the stage of every piece. Raises HintError or
    InfeasibleError where there is none, ConfigError for a stage map that does not fit the model.
    """
    start = time.perf_counter()
    asked = request.pipeline
    assert asked is not None
    pieces, held = held_cut(captured, request)
    options = list(_mesh_options(asked, request))
    best: tuple[Staged, float, BoolArray] | None = None
    failure: HintError | InfeasibleError | None = None
    floors: list[float] = []
    for number, meshes in enumerate(options):
        left_s = start + request.time_limit_s - time.perf_counter()
        share_s = max(_LEAST_TIME_S, left_s / (len(options) - number))
        try:
            frame = _frame(captured, request, pieces, asked.order, asked.size, meshes, share_s)
            floors.append(floor_s(frame, _FLOOR * share_s))
            if held is not None:
                allowed = np.ones((len(pieces), asked.num_stages), dtype=np.bool_)
                found = _fitting(frame, held), 0.0
            else:
                allowed = _allowed(frame)
                found = best_cut(frame, allowed, cuts)
        except (HintError, InfeasibleError) as error:
            failure = failure or error
            continue
        if best is None or found[0].step_time_s < best[0].step_time_s * (1 - 1e-9):
            best = (*found, allowed)
    if best is None:
        assert failure is not None
        raise failure
    staged, bound, allowed = best
    automatic = staged.stage_of if held is not None else _automatic(staged, allowed)
    seconds = time.perf_counter() - start
    return Piped(staged, automatic, bound, min(floors), seconds)


_LEAST_TIME_S = 0.5
_FLOOR = 0.1
"""Of the time for a mesh, for the proof of what no cut takes less than."""


def pieces_in_force(captured: Captured, request: Request) -> Pieces:
    """The pieces to be cut; of a module whose parameters have places, cut as it is already."""
    return held_cut(captured, request)[0]


def held_cut(captured: Captured, request: Request) -> tuple[Pieces, tuple[int, ...] | None]:
    """The pieces, and their stages where parameters have places already: None leaves them free.

    The pieces of the first form of arguments, where these have the same ones; else one for each
    stage. Raises InputError where a parameter or buffer is not where it is needed.
    """
    asked = request.pipeline
    if asked is None or not asked.held:
        return pieces_of(captured), None
    pieces = pieces_of(captured)
    if set(pieces.names) == set(asked.held_pieces):
        stages = tuple(asked.held_pieces[name] for name in pieces.names)
        if list(stages) == sorted(stages) and reads_at_home(captured, pieces, stages, asked.homes):
            return pieces, stages
    count = asked.num_stages
    return pieces_as(captured, asked.held, asked.homes, count), tuple(range(count))


def _mesh_options(asked: PipelineChoice, request: Request) -> Iterator[tuple[MeshChoice, ...]]:
    """The meshes of all pipeline ranks: the same for all, or what the user says of each."""
    if asked.meshes is None:
        for choice in request.meshes:
            yield (choice,) * asked.size
        return
    longest = max(len(each) for each in asked.meshes)
    for number in range(longest):
        yield tuple(each[min(number, len(each) - 1)] for each in asked.meshes)


def _frame(
    captured: Captured,
    request: Request,
    pieces: Pieces,
    schedule: Schedule,
    size: int,
    meshes: tuple[MeshChoice, ...],
    time_limit_s: float,
) -> Frame:
    """Solves the model whole on each of `meshes`, whatever its memory; bad hints fail here."""
    start = time.perf_counter()
    distinct = {kind_of(choice): choice for choice in meshes}
    unlimited = replace(
        request,
        memory_bytes=_UNLIMITED,
        recompute="none",
        time_limit_s=time_limit_s / (2 * len(distinct)),
    )
    wholes: dict[Kind, Found] = {
        kind: find_on_mesh(captured, unlimited, choice) for kind, choice in distinct.items()
    }
    deadline = start + max(_LEAST_TIME_S, time_limit_s)
    return Frame(captured, request, pieces, schedule, size, meshes, wholes, deadline)


def _allowed(frame: Frame) -> BoolArray:
    """Where hints and a stage map let each piece be."""
    hints = hints_on(frame.captured, frame.request, frame.meshes[0])
    asked = frame.request.pipeline
    assert asked is not None
    found, _ = allowed_stages(
        frame.pieces, frame.captured, hints, asked.stage_map, frame.num_stages
    )
    return found


def best_cut(
    frame: Frame, allowed: BoolArray, cuts: Sequence[Sequence[int]] = ()
) -> tuple[Staged, float]:
    """The best cut that was found, its stages solved, and the bound of the chain's prices.

    `cuts` are tried first; then, while there is time, those that are best by the chain's prices,
    and their neighbours. Raises InfeasibleError where no cut that was tried fits, and HintError
    where hints allow none.
    """
    chain, forced = _chain(frame, allowed), _recomputed(frame)
    at = np.arange(len(allowed))
    first = [
        tuple(each)
        for each in cuts
        if len(each) == len(allowed) and allowed[at, np.array(each)].all()
    ]
    bound = 0.0
    failure: InfeasibleError | None = None
    limit = frame.request.memory_bytes
    most = chain.most_bytes(frame.num_stages, max(frame.in_flight))
    for memory_bytes in (float(limit), np.inf) if limit < most else (np.inf,):
        try:
            left_s = max(_LEAST_TIME_S, (frame.deadline - time.perf_counter()) / 4)
            asked = _pipeline(frame, memory_bytes)
            found = assign(chain, asked, forced, min(_ASSIGN_S, left_s))
        except StageMemoryError as error:
            failure = failure or error
            continue
        except TooManyStagesError as error:
            raise InfeasibleError(_too_many_stages(frame)) from error
        except StageHintError as error:
            raise HintError(_clash(frame, error)) from error
        bound = found.bound
        if _stages(found.first) not in first:
            first.append(_stages(found.first))
    best: Staged | None = None
    for each in first:
        if best is not None and time.perf_counter() > frame.deadline:
            break
        try:
            staged = _fitting(frame, each)
        except InfeasibleError as error:
            failure = error
            continue
        if best is None or staged.step_time_s < best.step_time_s:
            best = staged
    if best is None:
        assert failure is not None
        raise failure
    return _beside(frame, best, allowed), bound


_ASSIGN_S = 20.0


def _fitting(frame: Frame, stage_of: Sequence[int]) -> Staged:
    """A cut with its stages solved within the memory of every rank; or InfeasibleError.

    What several stages hold at once, or one between its events, may be a little more than each is
    solved for: then the stages of that rank are solved again for as much less.
    """
    most, parts = frame.request.memory_bytes, dict[int, float]()
    for _ in range(_TIMES_SMALLER):
        staged = solve_stages(frame, stage_of, parts)
        over = {rank: held for rank, held in enumerate(staged.memory_bytes) if held > most}
        if not over:
            return staged
        parts |= {rank: parts.get(rank, 1.0) * most / held for rank, held in over.items()}
    error = too_little_memory(staged)
    assert error is not None
    raise error


_TIMES_SMALLER = 4


def _chain(frame: Frame, allowed: BoolArray) -> Chain:
    """The chain of the model, with what hints allow."""
    chain = frame.chain
    if _recomputed(frame) is None:  # stray parts are recomputed only where they are named
        again = np.where(frame.pieces.blocks, chain.recompute_s, np.inf)
        chain = replace(chain, recompute_s=again)
    return replace(chain, allowed=allowed)


def _recomputed(frame: Frame) -> BoolArray | None:
    """The pieces that are to be recomputed, where the user says which."""
    names = named_blocks(frame.pieces, frame.request.recompute)
    if names is None:
        return None
    return np.array([name in names for name in frame.pieces.names])


def _pipeline(frame: Frame, memory_bytes: float) -> Pipeline:
    group = tuple(frame.rank_of(stage) for stage in range(frame.num_stages))
    in_flight = np.array(frame.in_flight, dtype=np.float64)
    # One microbatch takes as long on any cut: the cut that would suit two shares the work out.
    microbatches = max(2, frame.request.setting.microbatches)
    return Pipeline(group, in_flight, microbatches, np.array(memory_bytes))


def _stages(first: Sequence[int]) -> tuple[int, ...]:
    """The stage of every piece, of the positions at which stages begin."""
    lengths = np.diff(np.array(first))
    return tuple(int(stage) for stage in np.repeat(np.arange(len(lengths)), lengths))


def _beside(frame: Frame, best: Staged, allowed: BoolArray) -> Staged:
    """Tries cuts that are about as fast by the prices of the model solved whole, fastest first.

    All cuts where there are few, else those near the best one so far, until none of them helps.
    """
    deadline, tried = frame.deadline, {best.stage_of}
    count, stages = len(frame.pieces), frame.num_stages
    few = math.comb(count - 1, stages - 1) <= _FEW_CUTS
    while True:
        near = _every_cut(count, stages) if few else _neighbours(best.stage_of, stages)
        promising = []
        for first in near:
            if time.perf_counter() > deadline:
                break
            stage_of = _stages(first)
            legal = bool(allowed[np.arange(count), stage_of].all())
            if legal and stage_of not in tried:
                price = about_s(frame, stage_of)
                if price < best.step_time_s * _PROMISING:
                    promising.append((price, stage_of))
        before = best
        for price, stage_of in sorted(promising):
            if time.perf_counter() > deadline or price > best.step_time_s * _PROMISING:
                break
            tried.add(stage_of)
            try:
                staged = _fitting(frame, stage_of)
            except InfeasibleError:
                continue
            if staged.step_time_s < best.step_time_s * (1 - 1e-9):
                best = staged
        if few or best is before or time.perf_counter() > deadline:
            return best


_FEW_CUTS = 1000
_PROMISING = 1.03
"""A stage alone is rarely more than this faster than as part of the model solved whole."""


def _every_cut(count: int, stages: int) -> Iterator[tuple[int, ...]]:
    return ((0, *inner, count) for inner in combinations(range(1, count), stages - 1))


def _neighbours(stage_of: Sequence[int], stages: int) -> Iterator[tuple[int, ...]]:
    """Cuts with one boundary, or two that follow each other, a piece earlier or later."""
    first = [stage_of.index(stage) for stage in range(stages)] + [len(stage_of)]
    for boundary in range(1, stages):
        for last in (boundary, min(boundary + 1, stages - 1)):
            for steps in product((-1, 1), repeat=last - boundary + 1):
                moved = [*first]
                for at, step in enumerate(steps, start=boundary):
                    moved[at] += step
                if all(a < b for a, b in pairwise(moved)):
                    yield tuple(moved)


def _automatic(staged: Staged, allowed: BoolArray) -> tuple[int, ...]:
    """The cut that the solver prefers where nothing binds it: never a slower one than `staged`."""
    if allowed.all():
        return staged.stage_of
    free = np.ones_like(allowed)
    try:
        frame = replace(staged.frame, deadline=time.perf_counter() + _AUTOMATIC_S)
        found, _ = best_cut(frame, free)
    except (HintError, InfeasibleError):
        return staged.stage_of
    return found.stage_of if found.step_time_s <= staged.step_time_s else staged.stage_of


_AUTOMATIC_S = 5.0


def _too_many_stages(frame: Frame) -> str:
    blocks = sum(frame.pieces.blocks)
    strays = len(frame.pieces) - blocks
    return (
        f"{frame.num_stages} pipeline stages, but the model has {len(frame.pieces)} pieces to put "
        f"on them ({blocks} blocks and {strays} parts beside them: "
        f"{', '.join(frame.pieces.names[:4])}{', ...' * (len(frame.pieces) > 4)}); give a pipeline "
        f"of at most {len(frame.pieces)} stages."
    )


def _clash(frame: Frame, error: StageHintError) -> str:
    pins = [
        f"{frame.pieces.names[piece]!r} on stage {' or '.join(map(str, on)) or 'none'}"
        for piece, on in zip(error.pieces, error.stages, strict=True)
    ]
    return (
        f"the stage hints put {', '.join(pins)}, which no cut into {error.num_stages} stages does: "
        "stages follow the order in which the model runs, and each has at least one part; change "
        "or drop a hint."
    )
