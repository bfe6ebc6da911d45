"""Search: the best plan over the meshes in question, each annotated and solved within memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autoplan.annotate import annotate
from autoplan.capture import Captured
from autoplan.describe import module_paths
from autoplan.errors import HintError, InfeasibleError
from autoplan.found import Found
from autoplan.hints import Hint, parse_hints
from autoplan.hints.inside import hints_in_forward
from autoplan.layouts import Layout
from autoplan.lean import solve_lean_where_memory_asks
from autoplan.memory.within_memory import TooLittleMemoryError
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.recompute.choose import Chosen, solve_recomputing
from autoplan.recompute.known import Known
from autoplan.registry import rules_in_force
from autoplan.request import Request
from autoplan.sites import Annotated
from autoplan.solver.problem import relative_gap
from autoplan.strategies.presets import preset_hints


def search(captured: Captured, request: Request) -> Found:
    """The best over the request's meshes, with the bound of all; or the first mesh's error.

    The time limit is that of the whole search: each mesh has its share of what is left.
    """
    deadline = time.perf_counter() + request.time_limit_s
    best: Found | None = None
    failure: HintError | InfeasibleError | None = None
    bounds: list[float] = []
    for number, choice in enumerate(request.meshes):
        left_s = max(_LEAST_TIME_S, deadline - time.perf_counter())
        share_s = left_s / (len(request.meshes) - number)
        try:
            found = find_on_mesh(captured, replace(request, time_limit_s=share_s), choice)
        except (HintError, InfeasibleError) as error:
            failure = failure or error
            if isinstance(error, TooLittleMemoryError):  # none was found, and there may be one
                bounds.append(error.bound)
            continue
        bounds.append(found.solution.certificate.bound)
        objective = found.solution.certificate.objective
        # Meshes come by number of axes: of equal plans the one with fewer axes stays.
        if best is None or objective < best.solution.certificate.objective * (1 - 1e-9):
            best = found
    if best is None:
        assert failure is not None
        raise failure
    return _bounded_by_all(best, bounds)


_LEAST_TIME_S = 0.1


def _bounded_by_all(best: Found, bounds: Sequence[float]) -> Found:
    """The best with the bound of the whole search: the least of all meshes' bounds."""
    proof = best.solution.certificate
    bound = min(bounds)
    if bound >= proof.bound:
        return best
    proof = replace(proof, bound=bound, gap=relative_gap(proof.objective, bound))
    return replace(best, solution=replace(best.solution, certificate=proof))


def find_on_mesh(captured: Captured, request: Request, choice: MeshChoice) -> Found:
    """The best on one mesh; HintError or InfeasibleError if hints or memory leave none."""
    return find_with_hints(captured, request, choice.mesh, hints_on(captured, request, choice))


def find_with_hints(
    captured: Captured,
    request: Request,
    mesh: Mesh,
    hints: tuple[Hint, ...],
    wires: Mapping[str, Layout] | None = None,
    known: Known | None = None,
) -> Found:
    """The best on one mesh, of a model or of a pipeline stage whose values travel as `wires`.

    `known`: of models among which some may be equal.
    """
    solve_one = solve_recomputing if known is None else known.solve
    rules, pricer = rules_in_force(), request.pricer(mesh)

    def solve(request: Request, lean: bool) -> tuple[Annotated, Chosen]:
        annotated = annotate(
            captured, mesh, rules, hints, request.local_inputs, wires=wires, lean=lean
        )
        return annotated, solve_one(annotated, pricer, request)

    annotated, chosen = solve_lean_where_memory_asks(solve, request, hints, mesh)
    best = chosen.solution, chosen.memory, chosen.recomputed, chosen.limited
    return Found(hints, annotated, pricer, *best)


def hints_on(captured: Captured, request: Request, choice: MeshChoice) -> tuple[Hint, ...]:
    """All hints on one mesh: the user's, those inside forward, the schemes', the layouts held."""
    return (
        *user_hints(captured, request, choice),
        *hints_in_forward(captured.pins, choice.mesh, choice.named, request.num_stages),
        *scheme_hints(captured, choice),
        *(hint for hint in request.held if set(hint.allowed) <= set(choice.mesh.axes)),
    )


def user_hints(captured: Captured, request: Request, choice: MeshChoice) -> tuple[Hint, ...]:
    """The request's hints as pins of the model's tensors; an alias' is its parameter's."""
    parameters = {each.path: len(each.meta.shape) for each in captured.inputs_of("parameter")}
    for alias, kept in captured.aliases.items():
        if kept in parameters:
            parameters[alias] = parameters[kept]
    hints = parse_hints(
        request.hints,
        choice.mesh,
        parameters,
        module_paths(captured),
        {
            **{name: node.meta["val"].ndim for name, node in captured.named_outputs.items()},
            **{each.path: len(each.meta.shape) for each in captured.inputs_of("input")},
        },
        choice.named,
        request.num_stages,
    )
    return tuple(
        replace(hint, pattern=captured.aliases.get(hint.pattern, hint.pattern)) for hint in hints
    )


def scheme_hints(captured: Captured, choice: MeshChoice) -> tuple[Hint, ...]:
    """The hints of the schemes that the axes of a mesh are bound to."""
    sizes = dict(zip(choice.mesh.axes, choice.mesh.sizes, strict=True))
    schemes = {axis: scheme for axis, scheme in choice.schemes.items() if axis in sizes}
    return preset_hints(captured, schemes, sizes)
