"""Planning: capture -> annotate -> formulate -> solve, over the meshes in question; then a Plan."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from torch import nn

from autoplan.baselines import baselines
from autoplan.batch import arguments_without_batch
from autoplan.capture import Captured, capture, check_arguments
from autoplan.config import resolved_config
from autoplan.describe import describe_plan
from autoplan.errors import ConfigError, HintError, InfeasibleError, InputError
from autoplan.found import Found
from autoplan.hints.conflicts import explain_conflict
from autoplan.hints.demands import Demand, demands_of, only
from autoplan.hints.pins import PinPrice, price_pins
from autoplan.memory.schedule import Block
from autoplan.parallel import MeshChoice
from autoplan.pipelining.describe import describe_pipeline
from autoplan.pipelining.planner import Piped, search_pipeline
from autoplan.pipelining.splitting import Split
from autoplan.plan import Plan
from autoplan.pricing import Pricer
from autoplan.progress import waiting
from autoplan.registry import rules_in_force
from autoplan.request import Request, make_request
from autoplan.runtime.batches import Example, batch_size, microbatches, whole_batch
from autoplan.search import search
from autoplan.sites import Annotated
from autoplan.space.batches import Parts
from autoplan.space.captures import Captures
from autoplan.space.search import NoPlanError, search_space
from autoplan.space.shapes import Shape
from autoplan.space.tried import Tried, rows_of
from autoplan.structure import structure_of
from autoplan.why.origin import Origin, recapture


@dataclass(frozen=True)
class Planned:
    """A solved problem with what emission needs: sites, choices, and prices of paths."""

    plan: Plan
    annotated: Annotated
    choices: tuple[int, ...]
    pricer: Pricer
    recomputed: tuple[Block, ...] = ()

    @property
    def stages(self) -> tuple[Planned, ...]:
        """The model as the one stage that it is."""
        return (self,)


@dataclass(frozen=True)
class PlannedPipeline:
    """A pipeline with what emission needs: every stage as a solved problem of its own."""

    plan: Plan
    stages: tuple[Planned, ...]
    split: Split


def plan_captured(
    captured: Captured,
    request: Request,
    model: str,
    found: Found | Piped | None = None,
    tried: Sequence[Tried] = (),
) -> Planned | PlannedPipeline:
    """The best plan over the request's meshes, with baselines and the prices of its hints.

    `found`: the best, where a search knows it already, of the shapes it `tried`. Raises HintError
    or InfeasibleError if none works, naming a smallest set of demands that conflict and the
    cheapest one to give up.
    """
    searched = waiting("comparing with known schemes")
    with settled_heap(), contextlib.nullcontext() if found is None else searched:
        return _plan_captured(captured, request, model, found, tried)


@dataclass(frozen=True)
class Settled:
    """What a search made of a request: one that leaves nothing open, its model, and the best."""

    request: Request
    captured: Captured
    shape: Shape | None = None
    found: Found | Piped | None = None
    tried: tuple[Tried, ...] = ()


def settle(captures: Captures, request: Request) -> Settled:
    """Close what a request leaves open: search it; raises as `plan_captured` does."""
    if request.space is None:
        return Settled(request, captures.whole(request.setting.microbatches))
    with settled_heap():
        try:
            searched = search_space(captures, request)
        except NoPlanError as error:
            if error.captured is not None and error.request is not None:
                plan_captured(error.captured, error.request, "")  # explains what conflicts
            raise error.cause from error
    return Settled(
        searched.request, searched.captured, searched.shape, searched.found, searched.tried
    )


@contextlib.contextmanager
def settled_heap() -> Iterator[None]:
    """What is there already is left out of garbage collection.

    A third of planning's time would go into looking through torch's objects again and again.
    """
    settles = gc.isenabled() and gc.get_freeze_count() == 0
    if settles:
        gc.freeze()
    try:
        yield
    finally:
        if settles:
            gc.unfreeze()


def _plan_captured(
    captured: Captured,
    request: Request,
    model: str,
    found: Found | Piped | None,
    tried: Sequence[Tried],
) -> Planned | PlannedPipeline:
    demands = demands_of(captured, request)

    def best(captured: Captured, request: Request) -> Found | Piped:
        if request.pipeline is None:
            return search(captured, request)
        return search_pipeline(captured, request)

    def without(kept: Collection[Demand]) -> Found | Piped:
        return best(*only(captured, request, kept))

    try:
        found = best(captured, request) if found is None else found
    except (HintError, InfeasibleError) as error:
        raise explain_conflict(demands, without, error) from error
    pins = _pin_prices(found, demands, without, request)
    if isinstance(found, Piped):
        plan = describe_pipeline(found, request, model, baselines(captured, request), pins)
        meshes: Sequence[MeshChoice] = found.staged.frame.meshes
        return _planned_pipeline(_with_request(plan, request, meshes, tried), found)
    plan = describe_plan(found, request, model, baselines(captured, request), pins)
    mesh = found.annotated.mesh
    meshes = [next((each for each in request.meshes if each.mesh == mesh), MeshChoice(mesh))]
    plan = _with_request(plan, request, meshes, tried)
    plan.remember(Origin(captured, request, model))
    choices = found.solution.choices
    return Planned(plan, found.annotated, choices, found.pricer, found.recomputed)


def _with_request(
    plan: Plan, request: Request, meshes: Sequence[MeshChoice], tried: Sequence[Tried]
) -> Plan:
    """The plan with what was asked, resolved, and the shapes that it was chosen from."""
    return msgspec.structs.replace(
        plan,
        config=resolved_config(request, plan, meshes),
        num_shapes=len(tried),
        shapes=rows_of(tried) if len(tried) > 1 else (),
    )


def _planned_pipeline(plan: Plan, found: Piped) -> PlannedPipeline:
    stages = tuple(
        Planned(described, each.annotated, each.solution.choices, each.pricer, each.recomputed)
        for described, each in zip(plan.stages, found.staged.stages, strict=True)
    )
    return PlannedPipeline(plan, stages, found.staged.split)


def _pin_prices(
    found: Found | Piped, demands: Collection[Demand], without: Any, request: Request
) -> tuple[PinPrice, ...]:
    """What each hint costs. A scheme alone is compared in the baselines, and costs no search."""
    kinds = {each.kind for each in demands}
    if not kinds & {"hint", "stage_map"} or request.held:
        return ()
    return price_pins(found, tuple(demands), without, request.time_limit_s / 2)


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
    kwargs = {} if kwargs is None else kwargs
    example = check_example(args, kwargs)
    settled = settle(captures_of(model, example, request), request)
    request, captured = settled.request, settled.captured
    name, structure = type(model).__name__, structure_of(model)
    again = recapture(
        captured,
        (tuple(args), dict(kwargs)),
        lambda example: capture_microbatch(structure, *example, request),
    )
    planned = plan_captured(captured, request, name, settled.found, settled.tried)
    return planned.plan.remember(Origin(captured, request, name, again))


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


def check_example(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Example:
    """Example arguments, checked."""
    check_arguments(args, kwargs)
    return tuple(args), dict(kwargs)


def captures_of(model: nn.Module, example: Example, request: Request) -> Captures:
    """The model at every number of microbatches of the batch that `example` is."""

    def capture_all(example: Example) -> Captured:
        return capture(model, *example, training=request.setting.training)

    if request.space is None:
        return Captures(lambda _: capture_microbatch(model, *example, request), None)
    if request.local_inputs:
        example = whole_batch(example, request.devices)
        check_local_inputs(capture_all(example))
    rows = batch_size(example) if request.space.microbatches is None else None
    return Captures(Parts(capture_all, example), rows, alike=not request.hints)


def check_local_inputs(captured: Captured) -> None:
    """Raise InputError for an argument that was put together along a dimension that is no batch."""
    wrong = arguments_without_batch(captured, rules_in_force())
    for each in captured.inputs_of("input"):
        if each.position in wrong:
            raise InputError(
                f"local_inputs=True joins {each.path!r} along dimension 0, which is not the batch "
                "in this model; make it a buffer, or pass whole inputs on every rank."
            )
