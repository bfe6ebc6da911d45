"""Floors: what no pipeline of a model takes less than, however it is cut."""

from __future__ import annotations

import numpy as np

from autoplan.errors import InfeasibleError
from autoplan.formulate import formulate
from autoplan.memory.within_memory import repeated_classes
from autoplan.pipelining.stages import Frame
from autoplan.recompute.blocks import blocks_of, named_blocks
from autoplan.recompute.pricing import SecondRuns
from autoplan.solver import Problem, ProblemBuilder, solve
from autoplan.solver.problem import FloatArray


def busiest_part(size: int, microbatches: int) -> float:
    """Of the work of all microbatches on all ranks, the part that a step takes at least.

    Where each rank has one stage, and a backward is whole, rank s waits for the stages before it,
    at the beginning and at the end of the step: with t_s seconds of a microbatch on stage s and T
    of all, no rank is done before t_0 + .. + t_(s-1) + m t_s, and the least that the largest of
    these can be is T / (1 - (1 - 1/m)^p).
    """
    return 1.0 / microbatches / (1.0 - (1.0 - 1.0 / microbatches) ** size)


def floor_s(frame: Frame, time_limit_s: float) -> float:
    """Seconds that no pipeline takes less than; blocks that the user names are recomputed.

    The stages of a cut, with what is boxed between them, are choices of the model solved whole, so
    that together they cost its bound at least. The busiest rank has at least the mean of it; or, of
    what each microbatch takes, the part that plain schedules wait for. Where meshes differ nothing
    is known.
    """
    if not frame.alike:
        return 0.0
    whole = frame.whole(0)
    setting = frame.request.setting
    mean = 1.0 / frame.size
    known = whole.solution.certificate.bound * mean
    names = named_blocks(frame.pieces, frame.request.recompute) if setting.training else ()
    busiest = mean
    if frame.schedule.is_plain:
        busiest = busiest_part(frame.size, setting.microbatches)
    if not names and busiest <= mean:
        return known
    problem = formulate(whole.annotated, whole.pricer, frame.request.whole_outputs)
    if names:
        blocks = blocks_of(whole.annotated, whole.pricer, names)
        problem = SecondRuns.of(whole.annotated, whole.pricer).added_to(problem, blocks)
    once = np.array([site.parameter_only for site in whole.annotated.sites])
    classes = repeated_classes(whole.annotated)
    floors = [known]
    # What is paid once a step is paid on any rank, while others still work.
    for body, rest in {(busiest, 0.0), (mean, mean)}:
        weighted = _weighted(problem, np.where(once, rest, body))
        try:
            found = solve(weighted, classes, time_limit_s / 2, frame.request.gap)
        except InfeasibleError:  # out of time
            continue
        floors.append(found.certificate.bound)
    return max(floors)


def _weighted(problem: Problem, weights: FloatArray) -> Problem:
    """Costs times the weight of their variable, or of where the edge begins."""
    builder = ProblemBuilder()
    for weight, each in zip(weights, problem.variables, strict=True):
        builder.add_variable(each.name, _times(weight, each.cost))
    for (u, v), matrix in problem.edges.items():
        builder.add_edge(u, v, _times(weights[u], matrix))
    return builder.build()


def _times(weight: float, costs: FloatArray) -> FloatArray:
    """What is impossible stays so, whatever it weighs."""
    finite = np.isfinite(costs)
    return np.where(finite, weight * np.where(finite, costs, 0.0), np.inf)
