"""The fastest plan that fits: the solver under limits on what it can sum, judged by liveness."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from autoplan.errors import InfeasibleError
from autoplan.formulate import formulate, repeated_blocks
from autoplan.peak import peak_memory
from autoplan.plan import Memory
from autoplan.pricing import Pricer
from autoplan.request import Request
from autoplan.sites import Annotated
from autoplan.solver import Problem, Solution, Variable, solve
from autoplan.units import size

_FOLD_FROM = 400
"""Sites above which repeated blocks share their choice; smaller models are solved unfolded."""


def repeated_classes(annotated: Annotated) -> list[Hashable] | None:
    """Classes of sites that share their choice; None for a model small enough to leave free."""
    return repeated_blocks(annotated) if len(annotated.sites) > _FOLD_FROM else None


def solve_within_memory(
    annotated: Annotated, pricer: Pricer, request: Request
) -> tuple[Solution, Memory]:
    """The fastest choices whose peak, measured by liveness, is within the limit.

    Without a binding limit that is the plain optimum. Otherwise the solver is given limits on the
    memory that it can sum (stored, gathered, kept for backward), narrowed by bisection between one
    whose plan's peak is too large and one that is known to fit; the bound is that of the first.
    """
    classes = repeated_classes(annotated)
    free = formulate(annotated, pricer, None, request.whole_outputs)
    try:
        solution = solve(free, classes, request.time_limit_s)
    except InfeasibleError as error:
        raise InfeasibleError(
            "the hints leave no plan, whatever the memory: they fix layouts that no strategy of an "
            f"op joins ({error}). Drop or widen one."
        ) from error
    memory = peak_memory(annotated, solution.choices, pricer)
    if memory.total <= request.memory_bytes:
        return solution, memory
    seen = [(solution, memory), *_frugal(annotated, pricer, free, classes, request)]
    bound = solution.certificate.bound
    # `fits` is the largest limit known to give a plan that fits, `over` the smallest that does not.
    sums = [free.memory(each.choices) for each, peak in seen if peak.total <= request.memory_bytes]
    fits, over = min(sums, default=0.0), math.inf
    limit = float(request.memory_bytes)
    for _ in range(_MEMORY_ROUNDS):
        guess = math.nan
        try:
            solution = solve(replace(free, memory_limit=limit), classes, request.time_limit_s)
        except InfeasibleError:
            fits = limit  # too tight for the sum: only larger limits are of use
        else:
            memory = peak_memory(annotated, solution.choices, pricer)
            seen.append((solution, memory))
            if memory.total <= request.memory_bytes:
                fits = limit
                if solution.certificate.objective <= bound * (1 + 1e-9):
                    break
            else:
                over = min(limit, over)
                # What the sum does not see is about the same for the next plan.
                guess = request.memory_bytes - (memory.total - free.memory(solution.choices))
        if math.isinf(over):
            over = 2 * limit
        if over - fits < 0.02 * request.memory_bytes:
            break
        limit = guess if fits < guess < 0.98 * over else (fits + over) / 2
    fitting = [each for each in seen if each[1].total <= request.memory_bytes]
    if not fitting:
        least = min((each[1] for each in seen), key=lambda memory: memory.total)
        raise InfeasibleError(_too_little(least, annotated, request))
    solution, memory = min(fitting, key=lambda each: each[0].certificate.objective)
    return _bounded(solution, bound), memory


_MEMORY_ROUNDS = 8


def _bounded(solution: Solution, bound: float) -> Solution:
    """The solution with the bound that holds under the memory limit, and its gap to that."""
    proof = solution.certificate
    gap = max(0.0, (proof.objective - bound) / proof.objective) if proof.objective else 0.0
    gap = 0.0 if gap < 1e-9 else gap
    status = proof.status if gap == 0.0 else "memory limit"
    proof = replace(proof, bound=min(bound, proof.objective), gap=gap, status=status)
    return replace(solution, certificate=proof)


def _frugal(
    annotated: Annotated, pricer: Pricer, free: Problem, classes: Any, request: Request
) -> Iterator[tuple[Solution, Memory]]:
    """Plans that need little memory: least by two measures, of which neither is the peak itself."""
    results = [pricer.output_bytes(site) for site in annotated.sites]
    fastest = 1e-9
    for weight in (0.0, 1.0):
        variables = tuple(
            Variable(
                v.name,
                np.where(np.isfinite(v.cost), v.memory + weight * extra + fastest * v.cost, np.inf),
                np.zeros_like(v.memory),
            )
            for v, extra in zip(free.variables, results, strict=True)
        )
        edges = {k: np.where(np.isfinite(m), fastest * m, np.inf) for k, m in free.edges.items()}
        try:
            found = solve(Problem(variables, edges), classes, request.time_limit_s)
        except InfeasibleError:
            continue
        objective = free.objective(found.choices)
        proof = replace(found.certificate, objective=objective, bound=0.0, gap=1.0)
        memory = peak_memory(annotated, found.choices, pricer)
        yield Solution(found.choices, proof), memory


def _too_little(memory: Memory, annotated: Annotated, request: Request) -> str:
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "gathered parameters": memory.gathered,
        "activations": memory.activations,
    }
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"memory of {size(request.memory_bytes)} a device is too small on mesh "
        f"{annotated.mesh}: the least that a plan was found for is {size(memory.total)}, "
        f"of which {largest} take {size(parts[largest])}. Give more memory or devices, a "
        "smaller batch, or more microbatches."
    )
