"""Lean: candidates that trade time for memory, offered where memory binds or a hint asks for them.

No plan gets faster by them, so that where the fastest fits, what it is and its proof stay as they
are, and so does the time to find it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from autoplan.errors import InfeasibleError
from autoplan.hints import Hint
from autoplan.memory.within_memory import TooLittleMemoryError
from autoplan.mesh import Mesh
from autoplan.recompute.choose import Chosen, bounded
from autoplan.request import Request
from autoplan.sites import Annotated
from autoplan.strategies.rule import is_streaming

Solve: TypeAlias = Callable[[Request, bool], tuple[Annotated, Chosen]]
"""Solves one mesh, with lean candidates or without."""

_LEAST_SHARE = 0.5
"""Of the time limit, for lean candidates where nothing was found without."""


def asks_for_lean(hints: Sequence[Hint]) -> bool:
    """Whether a hint speaks of candidates that are not offered otherwise."""
    return any(
        (hint.at == "gather" and not _accepts_the_usual(hint))
        or (hint.at == "op" and _names_a_stream(hint))
        for hint in hints
    )


def _names_a_stream(hint: Hint) -> bool:
    labels = (str(each) for one in hint.conditions.values() for each in one.allowed or ())
    return any(map(is_streaming, labels))


def _accepts_the_usual(hint: Hint) -> bool:
    return all(condition.accepts("step") for condition in hint.conditions.values())


def solve_lean_where_memory_asks(
    solve: Solve, request: Request, hints: Sequence[Hint], mesh: Mesh
) -> tuple[Annotated, Chosen]:
    """The faster of what is found without and, where memory binds, with lean candidates.

    Raises InfeasibleError as `solve` does where there is neither.
    """
    if asks_for_lean(hints) or not mesh.ndim:
        return solve(request, asks_for_lean(hints))
    start = time.perf_counter()
    deadline = start + request.time_limit_s
    plain: tuple[Annotated, Chosen] | None = None
    try:
        plain = solve(request, False)
        if not plain[1].limited:
            return plain
        share = 0.0
    except TooLittleMemoryError:
        share = _LEAST_SHARE
    now = time.perf_counter()
    left_s = max(deadline - now, share * request.time_limit_s)
    if plain is not None and left_s < now - start:  # the same takes as long again, and more
        return plain[0], bounded(plain[1], plain[1].floor, request.gap)
    try:
        lean = solve(replace(request, time_limit_s=left_s), True)
    except InfeasibleError as error:
        if plain is None:
            raise
        floor = plain[1].floor
        unseen = max(getattr(error, "bound", floor), floor)
        bound = min(unseen, plain[1].solution.certificate.bound)
        return plain[0], bounded(plain[1], bound, request.gap)
    proof = lean[1].solution.certificate
    if plain is None or proof.objective < _objective(plain) * (1 - 1e-9):
        return lean
    bound = min(proof.bound, plain[1].solution.certificate.bound)
    return plain[0], bounded(plain[1], bound, request.gap)


def _objective(found: tuple[Annotated, Chosen]) -> float:
    return found[1].solution.certificate.objective
