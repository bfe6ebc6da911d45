"""Follow: a given plan on a model; what holds is held, the rest is solved again around it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from autoplan.baselines import baselines
from autoplan.capture import Captured
from autoplan.describe import describe_plan
from autoplan.errors import InfeasibleError, PlanFileError
from autoplan.formulate import formulate
from autoplan.found import Found
from autoplan.memory.peak import peak_memory
from autoplan.memory.schedule import Block
from autoplan.memory.within_memory import solve_within_memory
from autoplan.pipelining.pieces import pieces_of
from autoplan.plan import Plan
from autoplan.planfiles.fitting import Fit, annotate_as, differences, fit, nearest, said_in_file
from autoplan.planfiles.read import EDITED
from autoplan.planning import Planned
from autoplan.pricing import Pricer
from autoplan.recompute.blocks import blocks_of
from autoplan.recompute.pricing import SecondRuns
from autoplan.request import Request
from autoplan.sites import Annotated, Candidate
from autoplan.solver import Certificate, Problem, Solution
from autoplan.solver.problem import FloatArray
from autoplan.units import size
from autoplan.why.origin import Origin

_ROUNDS = 3
"""How far from what is solved again decisions may be given up that leave it no choice."""


def follow(captured: Captured, plan: Plan, request: Request) -> Planned:
    """The sites and choices of a plan of this very model; PlanFileError where it does not fit."""
    annotated = annotate_as(captured, plan)
    found = fit(plan, annotated)
    for key in (*found.new, *found.changed, *found.gone):
        raise PlanFileError(f"{key!r} is not in both, the plan and this rank's model; plan again.")
    choices = tuple(found.held[at] for at in range(len(annotated.sites)))
    plan.remember(Origin(captured, request, plan.model))
    pricer = request.pricer(annotated.mesh)
    return Planned(plan, annotated, choices, pricer, blocks_of(annotated, pricer, plan.recomputed))


def adopt(captured: Captured, plan: Plan, request: Request) -> Planned:
    """A plan that was loaded, on this model, which may have changed since, or the file.

    Decisions are held by key where they fit; the others are solved within the memory limit, and
    the notes list them. The plan has the numbers of this model. Raises PlanFileError for a plan of
    another model, for a choice that its op cannot take, and where what is held leaves no plan.
    """
    planned = adopt_choices(captured, plan, request)
    described = msgspec.structs.replace(planned.plan, baselines=baselines(captured, request))
    described.remember(Origin(captured, request, plan.model))
    return replace(planned, plan=described)


def adopt_choices(captured: Captured, plan: Plan, request: Request) -> Planned:
    """`adopt` without baselines: of a model, or of one stage of it."""
    annotated = annotate_as(captured, plan)
    found = fit(plan, annotated)
    pricer = request.pricer(annotated.mesh)
    blocks, strangers = _recomputed(plan, annotated, pricer)
    problem = formulate(annotated, pricer, request.whole_outputs)
    problem = SecondRuns.of(annotated, pricer).added_to(problem, blocks)
    held = _without_contradictions(problem, annotated, plan, found)
    if len(held) == len(annotated.sites):
        choices = tuple(held[at] for at in range(len(annotated.sites)))
        solution = Solution(choices, given(problem.objective(choices), len(choices)))
    else:
        solution, held = _solved_around(annotated, problem, held, found.keys, request, blocks)
    memory = peak_memory(annotated, solution.choices, pricer, blocks)
    if memory.total > request.memory_bytes:
        raise InfeasibleError(
            f"the plan takes {size(memory.total)} a device on this model, more than the limit of "
            f"{size(request.memory_bytes)}; give memory={memory.total}, or plan again."
        )
    described = describe_plan(
        Found((), annotated, pricer, solution, memory, blocks),
        request,
        plan.model,
        (),
    )
    freed = [found.keys[at] for at in sorted(found.held.keys() - held.keys())]
    notes = differences(plan, found, freed)
    proof = described.certificate
    if len(held) < len(annotated.sites):
        num_held = len(plan.choices) - len((*found.changed, *found.gone, *freed))
        status = f"{proof.status} around the {num_held} decisions of the plan file that are held"
        proof = msgspec.structs.replace(proof, status=status)
    elif not found.gone and math.isclose(described.step_time_s, plan.step_time_s, rel_tol=1e-9):
        proof = plan.certificate
        described = msgspec.structs.replace(described, pins=plan.pins)
    else:
        proof = msgspec.structs.replace(proof, status="given, not solved")
    described = msgspec.structs.replace(
        described,
        hints=plan.hints,
        config=plan.config,
        certificate=proof,
        notes=tuple(dict.fromkeys((*described.notes, *notes, *strangers))),
    )
    return Planned(described, annotated, solution.choices, pricer, blocks)


def _recomputed(
    plan: Plan, annotated: Annotated, pricer: Pricer
) -> tuple[tuple[Block, ...], list[str]]:
    """The blocks of a plan that this model has, and a note on those that it has not.

    In a file that was edited these are an error: a name was typed wrong. Otherwise the model
    changed.
    """
    known = pieces_of(annotated.captured).names
    strangers = [name for name in plan.recomputed if name not in known]
    if strangers and EDITED in plan.notes:
        near = difflib.get_close_matches(strangers[0], known, n=1, cutoff=0.0)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise PlanFileError(
            f"the plan file, [recomputation] blocks, names {strangers[0]!r}, which is no block of "
            f"this model{meant}; correct it, or take it out."
        )
    blocks = blocks_of(annotated, pricer, plan.recomputed)
    return blocks, [f"plan file: not in this model, left out: {each}" for each in strangers]


def given(objective_s: float, num_variables: int) -> Certificate:
    """No proof: the choices were not solved for."""
    return Certificate(
        objective=objective_s,
        bound=0.0,
        gap=1.0,
        seconds=0.0,
        status="optimal",
        num_variables=num_variables,
        num_binaries=0,
        num_variables_after_reduction=0,
        folding=None,
    )


def _without_contradictions(
    problem: Problem, annotated: Annotated, plan: Plan, found: Fit
) -> dict[int, int]:
    """What is held, less decisions that cannot run here, or that no boxing joins.

    In a file that was edited they are an error: the edit is wrong. Otherwise the model changed.
    """
    held = dict(found.held)
    costs = [variable.cost for variable in problem.variables]
    wrong: list[dict[int, FloatArray]] = [
        {at: costs[at]} for at, choice in held.items() if math.isinf(costs[at][choice])
    ]
    wrong += [
        {u: matrix[:, held[v]] + costs[u], v: matrix[held[u]] + costs[v]}
        for (u, v), matrix in problem.edges.items()
        if u in held and v in held and math.isinf(matrix[held[u], held[v]])
    ]
    for prices in wrong:
        known = [at for at in prices if found.keys[at] in plan.choices]
        if EDITED in plan.notes or not known:
            raise PlanFileError(_contradiction(annotated, plan, found, prices))
        for at in known:
            held.pop(at, None)
    return held


def _contradiction(
    annotated: Annotated, plan: Plan, found: Fit, prices: Mapping[int, FloatArray]
) -> str:
    """The error for decisions that do not go together, with what would go with each other one."""
    said, fitting = [], []
    for at, price in prices.items():
        key = found.keys[at]
        if key in plan.choices:
            possible = np.flatnonzero(np.isfinite(price))
            texts = [str(annotated.sites[at].candidates[each]) for each in possible]
            said.append(said_in_file(key, plan.choices[key]))
            fitting.append(f"{key!r}: {nearest(key, plan.choices[key], texts)}")
    return (
        f"the plan file, {', and '.join(said)}, which contradict what they stand beside: nothing "
        "turns one layout into the other. Possible if all others stay are, for "
        f"{'; for '.join(fitting)}. Correct a line, or take it out to have the decision made again."
    )


def _solved_around(
    annotated: Annotated,
    problem: Problem,
    held: dict[int, int],
    keys: Sequence[str],
    request: Request,
    blocks: Sequence[Block],
) -> tuple[Solution, dict[int, int]]:
    """The fastest choices with all others held, and what could be held.

    Where what is held leaves no plan, its neighbours are freed, up to some steps away.
    """
    for _ in range(_ROUNDS):
        try:
            return _solve_held(annotated, held, request, blocks), held
        except InfeasibleError:
            beside = {
                at for edge in problem.edges if not held.keys() >= set(edge) for at in edge
            } - _given_by_the_model(annotated)
            held = {at: choice for at, choice in held.items() if at not in beside}
    try:
        return _solve_held(annotated, held, request, blocks), held
    except InfeasibleError as error:
        lines = sorted(keys[at] for at in held.keys() - _given_by_the_model(annotated))
        shown = ", ".join(map(repr, lines[:4])) + (", ..." if len(lines) > 4 else "")
        held_yet = f"Take out lines of the file, such as {shown}, or plan" if lines else "Plan"
        raise PlanFileError(
            f"what the plan file holds leaves no plan for the rest ({error}). {held_yet} again."
        ) from error


def _given_by_the_model(annotated: Annotated) -> set[int]:
    """Sites that no plan decides: arguments, buffers and constants."""
    return {
        at for at, site in enumerate(annotated.sites) if site.kind not in ("parameter", "op", "box")
    }


def _solve_held(
    annotated: Annotated, held: Mapping[int, int], request: Request, blocks: Sequence[Block]
) -> Solution:
    """Solve with one candidate at held sites; choices count all candidates."""
    # Equal choices of equal sites stay one object: repeated blocks are known by it.
    kept: dict[tuple[int, int], tuple[Candidate, ...]] = {}
    sites = [
        replace(
            site,
            candidates=kept.setdefault(
                (id(site.candidates), held[at]), (site.candidates[held[at]],)
            ),
        )
        if at in held
        else site
        for at, site in enumerate(annotated.sites)
    ]
    narrowed = replace(annotated, sites=tuple(sites))
    # Prices are kept by candidates: these have their own.
    solution, _ = solve_within_memory(narrowed, request.pricer(narrowed.mesh), request, blocks)
    choices = tuple(held.get(at, choice) for at, choice in enumerate(solution.choices))
    return replace(solution, choices=choices)
