"""Planning: capture -> annotate -> formulate -> solve, over the meshes in question; then a Plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from torch import nn

from autoplan.annotate import annotate
from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured, capture, check_arguments
from autoplan.cost_models import Roofline
from autoplan.describe import choices_of, describe_plan, module_paths
from autoplan.errors import ConfigError, HintError, InfeasibleError, InputError
from autoplan.formulate import formulate
from autoplan.hints import Hint, parse_hints
from autoplan.mesh import Mesh
from autoplan.parallel import MeshChoice
from autoplan.peak import peak_memory
from autoplan.plan import Baseline, Plan
from autoplan.pricing import Pricer
from autoplan.registry import rules_in_force
from autoplan.request import Request, make_request
from autoplan.runtime.batches import Example, microbatches, whole_batch
from autoplan.sites import Annotated
from autoplan.solver import Certificate as SolverCertificate
from autoplan.solver import Solution, solve
from autoplan.strategies.presets import preset_hints
from autoplan.within_memory import repeated_classes, solve_within_memory


@dataclass(frozen=True)
class Planned:
    """A solved problem with what emission needs: sites, choices, and prices of paths."""

    plan: Plan
    annotated: Annotated
    choices: tuple[int, ...]
    pricer: Pricer


def plan_captured(captured: Captured, request: Request, model: str) -> Planned:
    """The best plan over the request's meshes; HintError or InfeasibleError if none works."""
    best: Planned | None = None
    failure: HintError | InfeasibleError | None = None
    baseline = _baseline(captured, request)
    bounds: list[float] = []
    for choice in request.meshes:
        try:
            planned = _plan_on_mesh(captured, request, choice, model, baseline)
        except (HintError, InfeasibleError) as error:
            failure = failure or error
            continue
        bounds.append(planned.plan.certificate.bound)
        # Meshes come by number of axes: of equal plans the one with fewer axes stays.
        if best is None or planned.plan.step_time_s < best.plan.step_time_s * (1 - 1e-9):
            best = planned
    if best is None:
        assert failure is not None
        raise failure
    return _bounded_by_all(best, bounds)


def _bounded_by_all(best: Planned, bounds: Sequence[float]) -> Planned:
    """The best plan with the bound of the whole search: the least of all meshes' bounds."""
    proof = best.plan.certificate
    bound = min(bounds)
    if bound >= proof.bound:
        return best
    gap = max(0.0, (proof.objective - bound) / proof.objective)
    proof = msgspec.structs.replace(proof, bound=bound, gap=0.0 if gap < 1e-9 else gap)
    return replace(best, plan=msgspec.structs.replace(best.plan, certificate=proof))


def _plan_on_mesh(
    captured: Captured, request: Request, choice: MeshChoice, model: str, baseline: Baseline
) -> Planned:
    mesh = choice.mesh
    hints = (
        *user_hints(captured, request, choice),
        *scheme_hints(captured, choice),
        *request.held,
    )
    annotated = annotate(captured, mesh, rules_in_force(), hints, request.local_inputs)
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    solution, memory = solve_within_memory(annotated, pricer, request)
    plan = describe_plan(annotated, solution, pricer, request, model, memory, baseline, hints)
    return Planned(plan, annotated, solution.choices, pricer)


def user_hints(captured: Captured, request: Request, choice: MeshChoice) -> tuple[Hint, ...]:
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
    )
    return tuple(
        replace(hint, pattern=captured.aliases.get(hint.pattern, hint.pattern)) for hint in hints
    )


def scheme_hints(captured: Captured, choice: MeshChoice) -> tuple[Hint, ...]:
    sizes = dict(zip(choice.mesh.axes, choice.mesh.sizes, strict=True))
    schemes = {axis: scheme for axis, scheme in choice.schemes.items() if axis in sizes}
    return preset_hints(captured, schemes, sizes)


def _baseline(captured: Captured, request: Request) -> Baseline:
    """Plain data parallelism over all devices, priced by the same model, memory not limited."""
    mesh = Mesh.of(devices=request.devices)
    choice = MeshChoice(mesh, {"devices": "ddp"} if mesh.ndim else {})
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    try:
        annotated = annotate(
            captured, mesh, rules_in_force(), scheme_hints(captured, choice), request.local_inputs
        )
        classes = repeated_classes(annotated)
        problem = formulate(annotated, pricer, None, request.whole_outputs)
        solution = solve(problem, classes, request.time_limit_s)
    except (HintError, InfeasibleError) as error:
        return Baseline("data parallel", None, None, f"not possible: {error}")
    memory = peak_memory(annotated, solution.choices, pricer)
    return Baseline("data parallel", solution.certificate.objective, memory.total)


def plan(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    devices: int = 1,
    **options: Any,
) -> Plan:
    """Plan `model` for `devices` devices without running it; see `autoplan.plan`."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"plan takes an nn.Module, got {model!r}; build the model first.")
    request = make_request(devices, **options)
    captured = capture_microbatch(model, args, {} if kwargs is None else kwargs, request)
    return plan_captured(captured, request, type(model).__name__).plan


def capture_microbatch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], request: Request
) -> Captured:
    """Capture one microbatch of the whole batch that the example arguments stand for."""
    check_arguments(args, kwargs)
    example: Example = (tuple(args), dict(kwargs))
    training = request.setting.training
    if request.local_inputs:
        example = whole_batch(example, request.devices)
    captured = capture(model, *example, training=training)
    if request.local_inputs:
        check_local_inputs(captured)
    count = request.setting.microbatches
    if count == 1:
        return captured
    parts = microbatches(example, count, arguments_without_batch(captured, rules_in_force()))
    return capture(model, *parts[0], training=training)


def check_local_inputs(captured: Captured) -> None:
    """Raise InputError for an argument that was put together along a dimension that is no batch."""
    wrong = arguments_without_batch(captured, rules_in_force())
    for each in captured.inputs_of("input"):
        if each.position in wrong:
            raise InputError(
                f"local_inputs=True joins {each.path!r} along dimension 0, which is not the batch "
                "in this model; make it a buffer, or pass whole inputs on every rank."
            )


def follow(captured: Captured, plan: Plan, request: Request) -> Planned:
    """The sites and choices of a given plan; PlanFileError where it does not fit the model."""
    mesh = plan.mesh
    annotated = annotate(captured, mesh, rules_in_force(), (), plan.local_inputs, plan.boxed)
    pricer = Pricer(mesh, Roofline(request.cluster, mesh), request.setting)
    return Planned(plan, annotated, choices_of(plan, annotated), pricer)


def priced_again(planned: Planned, captured: Captured, request: Request) -> Planned:
    """A followed plan with the numbers of this model: it may have been edited, or made for another.

    The certificate stays where the objective is the one it was given for.
    """
    given, annotated = planned.plan, planned.annotated
    problem = formulate(annotated, planned.pricer, None, request.whole_outputs)
    objective = problem.objective(planned.choices)
    proof = given.certificate
    same = abs(objective - proof.objective) <= 1e-9 * abs(objective)
    certificate = SolverCertificate(
        objective=objective,
        bound=proof.bound if same else 0.0,
        gap=proof.gap if same else 1.0,
        seconds=proof.seconds if same else 0.0,
        status="optimal",
        num_variables=len(annotated.sites),
        num_binaries=proof.num_binaries if same else 0,
        num_variables_after_reduction=0,
        folding=None,
    )
    plan = describe_plan(
        annotated,
        Solution(planned.choices, certificate),
        planned.pricer,
        request,
        given.model,
        peak_memory(annotated, planned.choices, planned.pricer),
        _baseline(captured, request),
        (),
    )
    plan = msgspec.structs.replace(
        plan,
        boxed=given.boxed,
        hints=given.hints,
        certificate=proof
        if same
        else msgspec.structs.replace(plan.certificate, status="given, not solved"),
    )
    return replace(planned, plan=plan)
